"""The embedded server: ready when it says so, durable, alone in its folder, gone when we are."""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from redis import Redis

from common.errors import StartFault
from tests.ports import free_port
from tools.embedded_server import EmbeddedServer

ROOT = Path(__file__).resolve().parents[2]


def alive(pid: int) -> bool:
    """Not gone, and not a zombie that nobody has collected (in a container pid 1 may not)."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_text() != ""
    except OSError:
        return False


def test_what_was_written_survives_a_stop_and_a_kill(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        with Redis.from_url(server.url) as client:
            client.set("stopped", "1")
        server.stop()
        assert server.pid is None
        server.start()
        with Redis.from_url(server.url) as client:
            client.set("killed", "1")
        server.kill()
        server.start()
        with Redis.from_url(server.url) as client:
            assert client.mget("stopped", "killed") == [b"1", b"1"]


def test_it_never_evicts(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server, Redis.from_url(server.url) as client:
        assert client.config_get("maxmemory-policy") == {"maxmemory-policy": "noeviction"}


@pytest.mark.parametrize("name", ["a folder with spaces, é and #", "long" * 40])
def test_any_folder_will_do(tmp_path: Path, name: str) -> None:
    with EmbeddedServer(tmp_path / name) as server, Redis.from_url(server.url) as client:
        assert client.ping()
        assert (tmp_path / name / "appendonlydir").is_dir()


def test_a_port_and_more_options(tmp_path: Path) -> None:
    port = free_port()
    server = EmbeddedServer(tmp_path, port=port, aof=False, extra=["--maxmemory", "10mb"])
    with server, Redis.from_url(server.url) as client:
        assert server.url == f"redis://127.0.0.1:{port}/0"
        assert client.config_get("maxmemory") == {"maxmemory": "10485760"}


@pytest.mark.skipif(not shutil.which("redis-server"), reason="needs redis-server")
def test_another_binary(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path, binary=shutil.which("redis-server")) as server:
        with Redis.from_url(server.url) as client:
            client.set("key", "1")
        server.kill()
        server.start()
        with Redis.from_url(server.url) as client:
            assert client.get("key") == b"1"
            assert client.config_get("hash-max-listpack-value") == {"hash-max-listpack-value": "1024"}


async def test_in_an_event_loop(tmp_path: Path) -> None:
    async with EmbeddedServer(tmp_path) as server:
        assert server.pid is not None
    assert server.pid is None


def test_a_folder_has_one_server(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path), pytest.raises(StartFault, match="Another server is using"):
        EmbeddedServer(tmp_path).start()


def test_a_server_that_cannot_start_says_why(tmp_path: Path) -> None:
    with pytest.raises(StartFault, match="ended with exit status 1: argument must be a memory value"):
        EmbeddedServer(tmp_path, extra=["--maxmemory", "plenty"]).start()
    (tmp_path / "appendonlydir").mkdir()
    (tmp_path / "appendonlydir" / "appendonly.aof.manifest").write_text("rubbish\n")
    with pytest.raises(StartFault, match=r"ended with exit status 1: .*manifest"):
        EmbeddedServer(tmp_path).start()
    with pytest.raises(StartFault, match="No such file"):
        EmbeddedServer(tmp_path, binary=tmp_path / "missing").start()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child that its parent died")
def test_it_ends_when_its_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import sys, time; from tools.embedded_server import EmbeddedServer; "
        "print(EmbeddedServer(sys.argv[1]).start().pid, flush=True); time.sleep(60)"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    until = time.monotonic() + 10
    while alive(pid):
        assert time.monotonic() < until
        time.sleep(0.05)
    # its data is free for the next one
    EmbeddedServer(tmp_path).start().stop()


def test_a_silent_server_is_not_ready(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server:
        server.send_signal(signal.SIGSTOP)
        assert server.why_not_ready()
        server.send_signal(signal.SIGCONT)
        assert server.why_not_ready() is None
