"""The embedded server: ready when it says so, durable, alone in its folder, gone when we are."""

import errno
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from common.errors import StartFault
from tools.embedded_server import EmbeddedServer
from tools.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
NOBODY = 65534


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


@pytest.fixture
def somebody() -> Iterator[Path]:
    """A folder of root's, for a moment without root's rights where a test has them."""
    folder = Path(tempfile.mkdtemp(prefix="foretell-test-"))
    folder.chmod(0o555)
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    yield folder
    os.seteuid(before)
    folder.chmod(0o700)
    shutil.rmtree(folder)


def test_a_folder_that_cannot_be_written_is_one_sentence(somebody: Path) -> None:
    for path in (somebody, somebody / "new"):
        with pytest.raises(StartFault, match=rf"^{path}\S* cannot be written \(Permission denied\): .*chown"):
            # the wheel's own may lie where nobody else may look; it is not reached
            EmbeddedServer(path, binary="/bin/false").launch()


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["mkdir", "open"])
def test_a_full_or_broken_disk_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, call: str
) -> None:
    def fails(self: Path, *args: Any, **kwargs: Any) -> None:
        raise OSError(number, os.strerror(number), str(self))

    monkeypatch.setattr(Path, call, fails)
    with pytest.raises(StartFault, match=rf"^{tmp_path}\S* cannot be written \({os.strerror(number)}\): "):
        EmbeddedServer(tmp_path).launch()


def test_a_file_in_the_place_of_the_folder_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    with pytest.raises(StartFault, match=r"data cannot be written \(File exists\): .*move"):
        EmbeddedServer(tmp_path / "data").launch()
    with pytest.raises(StartFault, match=r"data/more cannot be written \(Not a directory\): .*move"):
        EmbeddedServer(tmp_path / "data" / "more").launch()


def test_what_the_server_cannot_write_comes_with_what_to_do(tmp_path: Path) -> None:
    EmbeddedServer(tmp_path).log.write_text(
        "1:M 1 Jan # Can't open or create append-only dir: Permission denied\n"
    )
    assert "chown" in EmbeddedServer(tmp_path)._last_words()


def damaged(folder: Path) -> EmbeddedServer:
    """One with 500 keys of 1000 behind the damage."""
    with EmbeddedServer(folder) as server, Redis.from_url(server.url) as client:
        for number in range(1000):
            client.set(f"{number:04}", "x" * 20)
    (file,) = (folder / "appendonlydir").glob("*.incr.aof")
    data = bytearray(file.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 40] = bytes(40)
    file.write_bytes(data)
    return server


def test_a_damaged_file_comes_with_a_way_out(tmp_path: Path) -> None:
    server = damaged(tmp_path / "a folder")
    with pytest.raises(StartFault, match=r"incr\.aof: `.* -m tools\.mend '.*/a folder'` keeps") as caught:
        server.start()
    command = shlex.split(str(caught.value).split("`")[1])
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as mending:
        assert mending.stdout is not None
        said = mending.stdout.read()
    assert mending.returncode == 0
    assert "left out" in said
    with server, Redis.from_url(server.url) as client:
        assert 400 < client.dbsize() < 600
        assert client.get("0001") == b"x" * 20
    (copy,) = server.directory.glob("appendonlydir.damaged-*")
    assert len(list(copy.iterdir())) == 3


def test_a_file_that_is_well_or_in_use_is_left(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tools.mend", str(tmp_path)]
    with EmbeddedServer(tmp_path):
        running = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    stopped = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (running.returncode, stopped.returncode) == (1, 0)
    assert "Another server is using" in running.stderr
    assert "nothing to mend" in stopped.stdout
    assert not list(tmp_path.glob("appendonlydir.damaged-*"))


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
