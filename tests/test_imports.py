"""What a process does not import when it starts. Nearly all of a start is imports, so a name that comes back is a start
that takes longer. No time is measured here.
"""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def modules_after(code: str) -> set[str]:
    """What a new process has in `sys.modules` after this code."""
    command = [sys.executable, "-c", f"{code}\nimport sys\nprint(*sys.modules)"]
    return set(
        subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, text=True).stdout.split()
    )


@pytest.mark.parametrize(
    ("model", "needed"),
    [
        ("def predict(input): ...", set()),
        ("def predict(input: int): ...", {"pydantic"}),
        ("async def predict(input): ...", {"asyncio"}),
    ],
)
def test_a_model_process_imports_what_its_model_needs(tmp_path: Path, model: str, needed: set[str]) -> None:
    file = tmp_path / "little.py"
    file.write_text(model)
    for name in ("numbers", "string"):  # pydantic and asyncio need those of the standard library
        (tmp_path / f"{name}.py").write_text("raise ImportError('the wrong one')")
    found = modules_after(f"from processor.model.child import load_model\nload_model('{file}:predict')")
    assert found & {"asyncio", "pydantic", "redis", "structlog"} == needed


def test_make_run_imports_no_server() -> None:
    assert not modules_after("import tools.dev") & {"structlog", "uvicorn", "starlette", "prometheus_client"}


# -- common/lean_imports.py


@pytest.mark.parametrize("start", ["gateway.__main__", "processor.__main__", "tools.dev"])
def test_a_start_imports_nothing_that_only_libraries_could_use(start: str) -> None:
    assert not modules_after(f"import {start}") & {"rich", "opentelemetry"}


def test_the_packages_are_there_for_whoever_wants_them_later() -> None:
    modules_after(
        """
import os, gc, sys
import gateway.__main__
from common.tracing import Tracing

assert gc.isenabled()
assert None not in sys.modules.values()
os.environ["OTEL_EXPORTER_OTLP_ENDPOINT"] = "http://127.0.0.1:9"
tracing = Tracing.from_environment("gateway")
assert tracing.begin("a span", "INTERNAL", "", {}).is_recording()
import opentelemetry.sdk.metrics, rich.console
os._exit(0)  # nobody collects the span
"""
    )


def test_what_is_there_already_is_left_and_what_is_nowhere_stays_away() -> None:
    modules_after(
        """
import json, sys
from common import lean_imports

lean_imports.UNUSED = ("json", "nowhere")
try:
    with lean_imports.lean_imports():
        import json.tool
        import nowhere
except ModuleNotFoundError as error:
    assert error.name == "nowhere"
assert sys.modules["json"] is json
assert "nowhere" not in sys.modules
"""
    )
