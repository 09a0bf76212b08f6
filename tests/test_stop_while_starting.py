"""SIGTERM and SIGINT while a service still imports: it ends at once with exit code 0, also as PID 1 of a container, to which
the kernel gives no signal that has no handler."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import wait_until
from tests.services import ROOT
from tools.ports import free_port

#: Libraries that both services load, early and late: whoever has one in its memory is in the middle of its imports.
MOMENTS = ("pydantic_core", "uvloop", "orjson", "hiredis")
AS_PID_1 = ("unshare", "--pid", "--fork", "--kill-child")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how far a start is"),
]


def may_be_pid_1() -> bool:
    try:
        return subprocess.run([*AS_PID_1, "true"], capture_output=True).returncode == 0
    except OSError:
        return False


@pytest.fixture(params=["as PID 1", "as any process"])
def wrapper(request: pytest.FixtureRequest) -> tuple[str, ...]:
    if request.param != "as PID 1":
        return ()
    if not may_be_pid_1():
        pytest.skip("this user may not make a PID namespace")
    return AS_PID_1


@pytest.fixture(params=["gateway", "processor"])
def starting(
    request: pytest.FixtureRequest, wrapper: tuple[str, ...], tmp_path: Path
) -> Iterator[subprocess.Popen[bytes]]:
    env = {
        "PATH": os.environ["PATH"],
        "PYTHONPATH": str(ROOT),
        "HOST": "127.0.0.1",
        "REDIS_URL": "redis://127.0.0.1:1",
    }
    env |= {"PORT": str(free_port()), "PROBE_PORT": str(free_port())}
    command = [*wrapper, sys.executable, "-m", request.param]
    with subprocess.Popen(
        command, env=env, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    ) as process:
        yield process
        process.kill()


def service_in(process: subprocess.Popen[bytes], wrapper: tuple[str, ...]) -> int:
    """Its process id, seen from here."""
    if not wrapper:
        return process.pid
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    return int(wait_until(lambda: children.read_text().split())[0])


@pytest.mark.parametrize("library", MOMENTS)
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_it_ends_at_once(
    starting: subprocess.Popen[bytes], wrapper: tuple[str, ...], number: int, library: str
) -> None:
    pid = service_in(starting, wrapper)
    wait_until(lambda: library in Path(f"/proc/{pid}/maps").read_text())
    os.kill(pid, number)
    output, _ = starting.communicate(timeout=30)
    assert starting.returncode == 0
    assert b"Traceback" not in output
