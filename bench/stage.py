"""The real thing, on this machine: an embedded server, `python -m gateway`, `python -m processor`, and the echo.

Each Stage has a server of its own, empty, in a temporary folder. The services see only the settings given here:
neither the caller's environment nor a `.env` changes a figure. Nothing outlives the `with` block.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from common.errors import StartFault
from tools import http_probe
from tools.child_process import ending, start_child
from tools.embedded_server import EmbeddedServer, free_port

ROOT = Path(__file__).parent.parent
READY_S = 30.0
STOP_S = 10.0
POLL_S = 0.02
TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Part:
    """A process that is measured: its CPU is its own and its children's."""

    def __init__(self, name: str, pid: int) -> None:
        self.name = name
        self.pid = pid

    def cpu_s(self) -> float:
        """CPU seconds so far, user and system; the clock has steps of 10 ms."""
        return sum(_ticks(pid) for pid in _family(self.pid)) / TICKS_PER_S

    def rss(self) -> int:
        """Bytes of memory that are its own, without its children's."""
        lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))


class Service(Part):
    """A Part of ours with an HTTP port."""

    def __init__(self, name: str, process: "subprocess.Popen[bytes]", port: int) -> None:
        super().__init__(name, process.pid)
        self.port = port
        self._process = process

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def get(self, path: str) -> tuple[int, bytes]:
        """Status and body. Raises OSError while nobody listens."""
        return http_probe.get("127.0.0.1", self.port, path)

    def wait_until_ready(self) -> None:
        """Until /readyz is not refused any more. Raises StartFault."""
        until = time.monotonic() + READY_S
        while not self._ready():
            if self._process.poll() is not None:
                raise StartFault(f"The {self.name} {ending(self._process.returncode)} before it was ready.")
            if time.monotonic() > until:
                raise StartFault(f"The {self.name} was not ready after {READY_S:g} s.")
            time.sleep(POLL_S)

    def _ready(self) -> bool:
        try:
            return self.get("/readyz")[0] != 503  # the echo has no such page, and needs none
        except OSError:
            return False

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            os.killpg(self.pid, signal.SIGKILL)  # its model process too
            self._process.wait()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class Stage:
    """An empty server, and what is started on it."""

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            self._folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="foretell-bench-"))
            server = stack.enter_context(EmbeddedServer(Path(self._folder) / "server"))
            assert server.pid is not None
            self.redis_url = server.url
            self.server = Part("server", server.pid)
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def gateway(self, **settings: str) -> Service:
        """Serves until the stage ends."""
        port = free_port()
        env = {"HOST": "127.0.0.1", "PORT": str(port), **settings}
        return self._stack.enter_context(self._start("gateway", ["gateway"], port, env))

    def echo(self) -> Service:
        """The yardstick, until the stage ends."""
        port = free_port()
        options = ["--loop", "uvloop", "--http", "httptools", "--no-access-log", "--log-level", "warning"]
        command = ["uvicorn", "bench.echo_app:app", "--host", "127.0.0.1", "--port", str(port), *options]
        return self._stack.enter_context(self._start("echo", command, port, {}))

    def processor(self, model: str, *, wait: bool = True, **settings: str) -> Service:
        """A processor with a model of examples/; a context manager that stops it. `wait`: until it is ready."""
        port = free_port()
        env = {"PROBE_PORT": str(port), "MODEL": str(ROOT / "examples" / model), **settings}
        return self._start("processor", ["processor"], port, env, wait=wait)

    def _start(
        self, name: str, module: list[str], port: int, env: dict[str, str], *, wait: bool = True
    ) -> Service:
        inherited = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR") if name in os.environ}
        ours = {
            "PYTHONPATH": str(ROOT),
            "REDIS_URL": self.redis_url,
            "LOG_LEVEL": "warning",
            "MAX_QUEUE": "10000000",
        }
        process = start_child([sys.executable, "-m", *module], env=inherited | ours | env, cwd=self._folder)
        service = Service(name, process, port)
        try:
            if wait:
                service.wait_until_ready()
        except BaseException:
            service.stop()
            raise
        return service


def _family(pid: int) -> list[int]:
    """The process and all that came from it and still lives."""
    family = [pid]
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has ended meanwhile
            for child in (task / "children").read_text().split():
                family += _family(int(child))
    return family


def _ticks(pid: int) -> int:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return int(fields[11]) + int(fields[12])  # utime and stime, the 14th and 15th of all
