"""Log lines that cannot be written cost nothing but themselves, whatever is the matter with the standard streams."""

import contextlib
import os
import select
import signal
import subprocess
import sys
import threading
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from textwrap import dedent
from typing import Any

import httpx2
import pytest

from common.log_stream import PATIENCE_MS, LogStream
from tests.conftest import wait_until
from tests.services import ROOT, Service, Services
from tools.http_probe import get
from tools.ports import free_port

#: Replaces the standard streams, then becomes the service: its process id, signals and exit code are the service's.
LAUNCHER = """
import os, sys
{fault}
os.execv(sys.executable, [sys.executable, "-m", "{module}"])
"""
FAULTS = {
    "the disk is full": "full = os.open('/dev/full', os.O_RDWR); os.dup2(full, 1); os.dup2(full, 2)",
    "the reader is gone": "r, w = os.pipe(); os.close(r); os.dup2(w, 1); os.dup2(w, 2)",
    "the reader does not read": "r, w = os.pipe(); os.set_inheritable(r, True); os.dup2(w, 1); os.dup2(w, 2)",
    "all are closed": "os.closerange(0, 3)",
    "only the first is open": "os.closerange(1, 3)",
    "they are only for reading": "null = os.open(os.devnull, os.O_RDONLY); os.dup2(null, 1); os.dup2(null, 2)",
}
DROPPED = "foretell_log_lines_dropped_total"
each_fault = pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)

Start = Callable[..., Service]


def launched(module: str, fault: str) -> list[str]:
    return ["-c", LAUNCHER.format(fault=fault, module=module)]


@pytest.fixture
def start(redis_url: str, tmp_path: Path) -> Iterator[Start]:
    """`start("gateway", fault, **settings)`; each must end well."""
    with ExitStack() as stack:

        def start_one(name: str, fault: str, **settings: Any) -> Service:
            port = free_port()
            env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "REDIS_URL": redis_url} | settings
            env |= {"HOST": "127.0.0.1", "PORT": str(port), "PROBE_PORT": str(port), "DRAIN_S": "5"}
            log = tmp_path / f"{name}.log"
            service = Service(name, port, env, log, command=launched(name, fault))
            stack.callback(service.stop)
            return service

        yield start_one


@pytest.mark.slow
@each_fault
def test_predictions_go_on_and_what_was_dropped_is_counted(start: Start, tmp_path: Path, fault: str) -> None:
    (tmp_path / "model.py").write_text(
        dedent("""
            import sys
            def predict(input):
                print("x" * 6000)
                print("y" * 6000, file=sys.stderr, flush=True)
                if input == "raise": raise ValueError("z" * 6000)
                return input
        """)
    )
    gateway = start("gateway", fault, ACCESS_LOG="true", LOG_LEVEL="debug")
    model = f"{tmp_path}/model.py:predict"
    processor = start("processor", fault, MODEL=model, LOG_LEVEL="debug", LOG_INPUTS="true")
    gateway.ready(), processor.ready()
    with httpx2.Client(base_url=gateway.url, timeout=30, trust_env=False) as client:
        for i in range(300):
            assert client.post("/predict", json={"input": i}).json()["result"] == i
        assert client.post("/predict", json={"input": "raise"}).status_code == 500
    for service in (gateway, processor):
        assert service.metrics()[DROPPED] > 0


@pytest.mark.parametrize("encoding", ["", "ascii"])
def test_a_model_may_print_any_text(services: Services, tmp_path: Path, encoding: str) -> None:
    (tmp_path / "model.py").write_text(
        dedent("""
            import sys
            def predict(input):
                print(chr(input)), print(chr(input), file=sys.stderr)
                return input
        """)
    )
    gateway = services.gateway()
    processor = services.processor(f"{tmp_path}/model.py:predict", PYTHONIOENCODING=encoding)
    with httpx2.Client(base_url=gateway.url, timeout=30, trust_env=False) as client:
        for text in "aé\ud800\U0001f600\0":
            assert client.post("/predict", json={"input": ord(text)}).json()["result"] == ord(text)
    wait_until(lambda: processor.log.count("\\\\ud800") == 2)


@pytest.mark.slow
@each_fault
def test_a_start_that_fails_has_its_usual_exit_code(start: Start, tmp_path: Path, fault: str) -> None:
    for name, settings in (("gateway", {"MAX_QUEUE": "-1"}), ("processor", {"MODEL": "nowhere.py:model"})):
        service = start(name, fault, **settings)
        assert service.process.wait(30) == 1
        service.kill()


@pytest.mark.slow
@each_fault
def test_make_run_goes_on(tmp_path: Path, fault: str) -> None:
    port, probe_port = free_port(), free_port()
    env = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOST": "127.0.0.1", "PORT": str(port)}
    env |= {"PROBE_PORT": str(probe_port), "MODEL": f"{ROOT}/examples/echo.py:echo"}
    command = [sys.executable, *launched("tools.dev", fault)]
    with subprocess.Popen(command, cwd=tmp_path, env=env) as process:
        try:
            for one in (probe_port, port):
                wait_until(lambda: process.poll() is not None or is_ready(one), timeout=60)  # noqa: B023
            answer = httpx2.post(f"http://127.0.0.1:{port}/predict", json={"input": 1}, trust_env=False)
            assert answer.json()["result"] == 1
        finally:
            process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


def is_ready(port: int) -> bool:
    try:
        return get("127.0.0.1", port, "/readyz")[0] == 200
    except OSError:
        return False


@pytest.fixture
def pipe() -> Iterator[tuple[int, LogStream]]:
    """The end to read, and the stream."""
    reader, writer = os.pipe()
    stream = LogStream(writer)
    stream.prepare()
    yield reader, stream
    os.close(reader)
    os.close(writer)


def test_lines_come_again_when_somebody_reads_again(pipe: tuple[int, LogStream]) -> None:
    reader, stream = pipe
    lines = [f"{number} {'x' * 5000}\n" for number in range(100)]
    for line in lines:
        stream.write(line)
    assert stream.dropped_lines > 0
    os.set_blocking(reader, False)
    found = read(reader)
    stream.write("again\n")
    found += read(reader)
    kept = len(lines) - stream.dropped_lines
    assert found[:kept] == lines[:kept]
    assert found[-1] == "again\n"
    assert len(found) - kept in (1, 2)  # the line that was cut, on its own


def read(reader: int) -> list[str]:
    text = b""
    while True:
        try:
            text += os.read(reader, 1 << 16)
        except BlockingIOError:
            return text.decode().splitlines(keepends=True)


def ends(work: Callable[[], object]) -> bool:
    """Whether it does not wait for ever."""
    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    thread.join(30)
    return not thread.is_alive()


@pytest.mark.parametrize("length", [50, 700, 5000])
@pytest.mark.parametrize("raw", [False, True])
def test_a_terminal_that_nobody_reads_holds_nobody_up(length: int, raw: bool) -> None:
    master, terminal = os.openpty()
    if raw:
        tty.setraw(terminal)
    stream = LogStream(terminal)
    stream.prepare()
    assert ends(lambda: [stream.write(f"{'x' * length}\n") for _ in range(2000)])
    assert stream.dropped_lines > 0
    os.close(master)
    os.close(terminal)


def test_a_pipe_that_another_process_fills_first_holds_nobody_up(
    pipe: tuple[int, LogStream], monkeypatch: pytest.MonkeyPatch
) -> None:
    """All three of `make run` write to one pipe."""
    _, stream = pipe
    other = os.open(f"/proc/self/fd/{stream.fileno()}", os.O_WRONLY | os.O_NONBLOCK)

    class LatePoll:
        def register(self, descriptor: int, events: int) -> None: ...

        def poll(self, timeout: float) -> bool:
            with contextlib.suppress(BlockingIOError):
                while os.write(other, bytes(4096)):
                    ...
            return True

    monkeypatch.setattr(select, "poll", LatePoll)
    assert ends(lambda: stream.write("line\n"))
    assert stream.dropped_lines == 1
    os.close(other)


def test_the_pipe_of_others_stays_as_it_was(pipe: tuple[int, LogStream]) -> None:
    assert os.get_blocking(pipe[1].fileno())


def test_a_reader_that_is_slow_slows_nobody_down(pipe: tuple[int, LogStream]) -> None:
    """It takes a page whenever the stream has waited for it a little: each wait would be worth it, all are too many."""
    reader, stream = pipe
    done = threading.Event()

    def read_slowly() -> None:
        while not done.wait(PATIENCE_MS / 5 / 1000):
            os.read(reader, 4096)

    thread = threading.Thread(target=read_slowly)
    thread.start()
    for _ in range(300):
        stream.write(f"{'x' * 4000}\n")
    done.set()
    thread.join()
    assert stream.dropped_lines > 0


@pytest.mark.parametrize("text", ["\ud800", "é", "", "a\nb", "\0"])
def test_any_text_can_be_written(pipe: tuple[int, LogStream], text: str) -> None:
    reader, stream = pipe
    assert stream.write(f"{text}\n") == len(text) + 1
    assert os.read(reader, 100).endswith(b"\n")
    assert stream.dropped_lines == 0
