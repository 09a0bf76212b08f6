"""What the documents promise about the code as a whole: who imports whom, where a thing is found, no task that nobody
holds, and that every setting is documented.
"""

import ast
import re
from pathlib import Path
from typing import Any

import pytest

from common.settings import CommonSettings, GatewaySettings, ProcessorSettings
from tests.operations_page import rows

ROOT = Path(__file__).resolve().parents[1]
SERVICES = ("common", "gateway", "processor")
OURS = {"common", "gateway", "processor", "examples", "tools", "bench", "tests"}
MODULES = sorted(path for folder in sorted(OURS) for path in (ROOT / folder).rglob("*.py"))

#: folder → what of ours it may import
MAY_IMPORT = {
    "common": {"common"},
    "gateway": {"common", "gateway"},
    "processor": {"common", "processor"},
    "examples": set(),
}
STORE = "common/store/"
#: folder → the half of the store that is the other service's
OTHER_HALF = {
    "gateway": {"common.store.claims"},
    "processor": {"common.store.jobs", "common.store.dead"},
}
LONG = 350  # lines; a longer file does two jobs, or says in its docstring why it does not: "Long because ..."


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(), name(path))


def imported_modules(path: Path) -> set[str]:
    """The dotted names it imports, anywhere in it: modules, and what is imported from them. Nobody imports relatively."""
    found: set[str] = set()
    for node in ast.walk(tree(path)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name(path)} imports relatively"
            assert node.module
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("import_module", "__import__")):
            found |= {str(arg.value) for arg in node.args if isinstance(arg, ast.Constant)}
    return found


def imported(path: Path) -> set[str]:
    """The top-level names it imports."""
    return {module.partition(".")[0] for module in imported_modules(path)}


def modules_of(*folders: str) -> list[Path]:
    found = [path for path in MODULES if path.relative_to(ROOT).parts[0] in folders]
    assert found
    return found


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_the_arrow(folder: str) -> None:
    wrong = {name(path): imported(path) & OURS - MAY_IMPORT[folder] for path in modules_of(folder)}
    assert not {path: names for path, names in wrong.items() if names}


def test_only_the_store_talks_to_redis() -> None:
    talkers = [name(path) for path in modules_of(*SERVICES, "examples") if "redis" in imported(path)]
    assert talkers
    assert not [path for path in talkers if not path.startswith(STORE)]


@pytest.mark.parametrize("service", OTHER_HALF)
def test_neither_service_sees_the_other_s_half_of_the_store(service: str) -> None:
    assert all((ROOT / f"{module.replace('.', '/')}.py").is_file() for module in OTHER_HALF[service])
    assert not [name(path) for path in modules_of(service) if imported_modules(path) & OTHER_HALF[service]]


def test_no_import_leads_back() -> None:
    """Whoever reads from an entry point downwards meets each file once."""
    modules = {name(path).removesuffix(".py").replace("/", "."): path for path in modules_of(*SERVICES)}
    imports = {module: imported_modules(path) & modules.keys() for module, path in modules.items()}
    while leaves := {module for module, needed in imports.items() if not needed & imports.keys()}:
        imports = {module: needed for module, needed in imports.items() if module not in leaves}
    assert not imports, f"these import one another in a circle: {sorted(imports)}"


def test_a_transition_has_one_name_in_lua_in_python_and_in_the_tests() -> None:
    pages = {page.stem for page in (ROOT / STORE / "transitions").glob("*.lua")} - {"shared"}
    methods = [
        method.name
        for path in (ROOT / STORE).glob("*.py")
        for kind in tree(path).body
        if isinstance(kind, ast.ClassDef)
        for method in kind.body
        if isinstance(method, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    assert {page: methods.count(page) for page in pages} == dict.fromkeys(pages, 1)
    assert not [page for page in pages if not (ROOT / f"tests/store/test_{page}.py").is_file()]


def test_a_long_file_says_why() -> None:
    long = [path for path in modules_of(*SERVICES, "tools", "bench") if path.read_text().count("\n") > LONG]
    assert not [name(path) for path in long if "Long because" not in (ast.get_docstring(tree(path)) or "")]


def test_the_files_that_the_documents_name_are_there() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    found = {
        path
        for page in pages
        for path in re.findall(r"\b(?:[a-z0-9_]+/)+[a-z0-9_]+\.(?:py|lua)\b", page.read_text())
    }
    assert found
    assert not [path for path in found - {"path/to/file.py"} if not (ROOT / path).is_file()]


def test_every_module_says_what_it_is_for() -> None:
    assert not [name(path) for path in MODULES if not ast.get_docstring(tree(path))]


def dropped_tasks(source: str) -> list[int]:
    """The lines where a task is made and its result dropped: it may vanish half-way, and nobody sees it fail.

    A task group holds its tasks.
    """
    lines = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            function = ast.unparse(node.value.func)
            if function.endswith(("create_task", "ensure_future")) and "group" not in function.lower():
                lines.append(node.lineno)
    return lines


def test_no_task_is_dropped() -> None:
    found = {name(path): dropped_tasks(path.read_text()) for path in modules_of(*SERVICES)}
    assert not {path: lines for path, lines in found.items() if lines}


def test_a_dropped_task_would_be_found() -> None:
    assert dropped_tasks("asyncio.create_task(f())") == [1]
    assert dropped_tasks("async def g():\n    asyncio.ensure_future(f())\n    loop.create_task(f())") == [
        2,
        3,
    ]
    assert dropped_tasks("task = asyncio.create_task(f())\ngroup.create_task(f())") == []


# -- docs/operations.md


def settings() -> dict[str, tuple[str, str]]:
    """Name → default and service."""
    found: dict[str, tuple[str, str]] = {}
    for kind, service in ((GatewaySettings, "gateway"), (ProcessorSettings, "processor")):
        for field, info in kind.model_fields.items():
            both = field in CommonSettings.model_fields
            found[field.upper()] = (written(info.default), "both" if both else service)
    return found


def written(default: Any) -> str:
    """A default the way a person writes it."""
    if default is None:
        return "json"  # LOG_FORMAT, away from a terminal
    if isinstance(default, bool):
        return str(default).lower()
    return f"{default:g}" if isinstance(default, float) else str(default)


def test_every_setting_is_documented_with_its_default_and_nothing_else_is() -> None:
    documented = {
        found.group(): (cells[1].strip("`"), cells[2])
        for _, cells in rows("Settings")
        if (found := re.search("[A-Z_]{3,}", cells[0]))
    }
    assert documented == settings()


def test_the_example_of_an_env_file_has_every_setting_with_its_default() -> None:
    lines = (ROOT / ".env.example").read_text().splitlines()
    found = dict(line.removeprefix("# ").split("=", 1) for line in lines if re.match(r"# [A-Z_]{3,}=", line))
    compose = (ROOT / "docker-compose.yml").read_text()
    for name, default in re.findall(r"\$\{([A-Z_]+):-(\w+)\}", compose):  # docker compose's own are in it too
        assert found[name] == default
    of_compose = {"PROCESSORS", "PROCESSOR_MEMORY", "REDIS_MAXMEMORY", "REDIS_MEMORY", "GRAFANA_PORT"}
    found = {name: default for name, default in found.items() if name not in of_compose}
    assert found == {setting: default for setting, (default, _) in settings().items()}
