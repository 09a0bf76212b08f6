"""Every command in the documents: each curl line is run as it stands, and of the others everything that they name is there.

What they do is proven where their tools are: `make run` by tests/tools/test_dev.py, compose by `make compose-test`,
Kubernetes by `make k8s-check`, the repair of a file by tests/tools/test_mend.py.
"""

import json
import re
import shlex
import subprocess
from collections.abc import Iterator
from importlib.util import find_spec
from itertools import dropwhile, groupby, pairwise
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from tests.services import LANGUAGE, ROOT, Service, running_services
from tools.embedded_server import EmbeddedServer

PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("examples/**/*.md")]
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"(?<!`)`([^`\n]+)`(?!`)")
PROGRAMS = (
    "curl",
    "make",
    "docker",
    "kubectl",
    "kind",
    "tar",
    "cp",
    "git",
    "$",
    "python",
    ".venv/bin/python",
)
VARIABLES = r"(?:[A-Z_]+=\S+ )*"
COMMAND = re.compile(rf"{VARIABLES}(?:{'|'.join(map(re.escape, PROGRAMS))}) .*", re.DOTALL)
LANGUAGES = {"", "console", "dockerfile", "json", "mermaid", "nginx", "python", "yaml"}
#: How the blocks begin that have no language and are no commands, and who proves them.
NO_COMMANDS = {
    "common/": "the folders: test_architecture.py",
    "request": "a drawing",
    "submit": "a drawing",
    "max(foretell_queue_waiting)": "PromQL: test_monitoring.py",
    "POST": "the spans of a trace: test_traces.py",
    "ACL": "a command of Redis: test_rights.py",
}
COMPOSE = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
COMPOSE_VERBS = {"up", "down", "stop", "start", "create", "cp", "run", "exec", "logs", "ps"}
OBJECT = re.compile(r"\b(deployment|statefulset|service|job|secret|namespace)[/ ]([a-z][a-z-]*)")


class Line(NamedTuple):
    page: Path
    text: str


def logical_lines(block: str) -> Iterator[str]:
    """Its lines, those together that a backslash or an open quote keeps together; without comments."""
    whole = ""
    for line in block.splitlines():
        whole += line.strip() if not whole else f"\n{line.strip()}"
        whole = re.sub(r"\\\n", "", whole)
        try:
            words = shlex.split(whole, comments=True)
        except ValueError:
            continue
        if words and not whole.endswith("\\"):
            yield re.sub(r"\s+# .*$", "", whole)
            whole = ""


def found() -> Iterator[Line]:
    for page in PAGES:
        text = page.read_text()
        for language, block in FENCE.findall(text):
            if language == "console":
                yield from (Line(page, line) for line in logical_lines(block))
            elif language == "" and COMMAND.match(block):
                lines = list(logical_lines(block))
                typed = [line.removeprefix("$ ") for line in lines if line.startswith("$ ")]
                yield from (Line(page, line) for line in typed or lines)
        for code in INLINE.findall(FENCE.sub("", text)):
            if COMMAND.fullmatch(code):
                yield Line(page, code)


LINES = sorted(set(found()))
CURLS = [line for line in LINES if line.text.startswith("curl ")]
OTHERS = [line for line in LINES if line not in CURLS]


def name(line: Line) -> str:
    return f"{line.page.name}: {line.text[:60]}"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("commands")
    with (
        EmbeddedServer(folder / "server", aof=False) as server,
        running_services(server.url, folder, partitions=1) as services,
    ):
        services.processor(LANGUAGE)
        yield services.gateway()


@pytest.mark.parametrize("line", CURLS, ids=name)
def test_a_curl_line_works(line: Line, gateway: Service) -> None:
    command = line.text.replace("http://localhost:8080", gateway.url)
    if "<prediction_id>" in command:
        submit = ["curl", "-sS", f"{gateway.url}/predict", "-H", "Content-Type: application/json"]
        accepted = subprocess.check_output([*submit, "-H", "Async-Mode: true", "-d", '{"input": "Bonjour"}'])
        command = command.replace("<prediction_id>", json.loads(accepted)["prediction_id"])
    ended = subprocess.run(
        ["bash", "-c", f"{command} -sS -w '\\n%{{http_code}}'"], capture_output=True, text=True, timeout=60
    )
    body, _, code = ended.stdout.rpartition("\n")
    # the one that cancels may come too late, and is told so
    assert code in ("200", "202") or ("-X DELETE" in command and code == "409"), (ended.stderr, body)
    assert json.loads(body)


def test_no_command_is_overlooked() -> None:
    """Neither in a block of a language that is not looked through, nor in one that begins with a program not known here."""
    blocks = [block for page in PAGES for block in FENCE.findall(page.read_text())]
    assert {language for language, _ in blocks} <= LANGUAGES
    others = {block.split()[0] for language, block in blocks if language == "" and not COMMAND.match(block)}
    assert others == NO_COMMANDS.keys()


@pytest.mark.parametrize("line", OTHERS, ids=name)
def test_what_a_command_names_is_there(line: Line) -> None:
    assert COMMAND.fullmatch(line.text), f"what is this, and who proves it? {line.text}"
    if model := re.search(r"MODEL=(examples/\w+\.py):(\w+)", line.text):
        assert re.search(rf"^(?:class|def) {model[2]}\b", (ROOT / model[1]).read_text(), re.MULTILINE)
    for words in commands_of(line.text):
        if words[0] == "make":
            assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words[1]
        elif words[0].endswith("python"):
            assert find_spec(words[words.index("-m") + 1])
        elif words[:2] == ["docker", "compose"]:
            check_compose(words[2:])
        elif words[0] == "kubectl":
            check_kubectl(words)
        elif words[0] == "cp":
            assert (ROOT / words[1]).is_file()


def commands_of(text: str) -> Iterator[list[str]]:
    """The words of each command of the line."""
    words = shlex.shlex(text, posix=True, punctuation_chars="&|")
    words.whitespace_split = True
    for is_end, command in groupby(words, lambda word: word in ("&&", "|")):
        if not is_end:
            yield list(dropwhile(re.compile("[A-Z_]+=").match, command))


def check_compose(words: list[str]) -> None:
    assert COMPOSE_VERBS & set(words), words
    for word in words:
        if service := re.match(r"([a-z]+)(?::/|=\d)", word):
            assert service[1] in COMPOSE["services"], word
        if word == "monitoring":
            assert any("monitoring" in one.get("profiles", ()) for one in COMPOSE["services"].values())


def check_kubectl(words: list[str]) -> None:
    known = {
        (one["kind"].lower(), one["metadata"]["name"])
        for file in (ROOT / "k8s").rglob("*.yaml")
        for one in yaml.safe_load_all(file.read_text())
        if one and "metadata" in one
    }
    made = {
        ("secret", "redis"),
        ("secret", "redis-tls"),
        ("secret", "api-keys"),
    }  # by the Job, or by the reader
    for kind, object_name in OBJECT.findall(" ".join(words).replace("secret generic", "secret")):
        assert (kind, object_name) in known | made, (kind, object_name)
    for flag, path in pairwise(words):
        if flag in ("-k", "-f"):
            shown = any(f"name: {Path(path).stem}" in page.read_text() for page in PAGES)
            assert (ROOT / path).exists() or shown, path
