"""A model process as the processor sees it. Five states, and every move between them:

    starting ──ready──▶ idle ◀──▶ busy
        │                │          │
        └────────────────┴──────────┴──▶ dead ──start──▶ starting      idle ──stop──▶ stopped

A dead child says in words how it died. It must never hang its owner: every wait here has a bound.
"""

import asyncio
import contextlib
import os
import signal
import socket
import sys
from asyncio.subprocess import Process
from collections.abc import AsyncIterator, Sequence
from enum import Enum

import orjson
import structlog

from common.errors import ModelFault
from common.settings import environment_without_secrets
from processor.model.frames import HEADER, ITEM, Item, Kind, pack, unpack

log = structlog.get_logger("foretell")

SETUP_LIMIT_S = 3600.0  # loading weights may take long, but not for ever
STOP_LIMIT_S = 5.0  # for the user's teardown
LINE_LIMIT = 8192
WHOLE_BYTES = 1 << 22  # a frame up to here is read as one: it is copied twice, in two milliseconds


class State(Enum):
    STARTING = "starting"
    IDLE = "idle"
    BUSY = "busy"
    STOPPED = "stopped"
    DEAD = "dead"


class ModelDied(Exception):
    """The process ended or was ended while it had work. `timeout`: it ran past PREDICT_TIMEOUT_S."""

    def __init__(self, words: str, *, timeout: bool = False) -> None:
        super().__init__(words)
        self.timeout = timeout


class ModelProcess:
    """One spawned process that runs `model`."""

    def __init__(self, model: str, *, predict_timeout_s: float) -> None:
        self._model = model
        self._timeout_s = predict_timeout_s
        self._process: Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._prints: list[asyncio.Task[None]] = []
        self.state = State.STOPPED
        self.batch = False
        self._cancels = False  # the model is async: it can be asked to give up an input
        self._batch_number = 0
        self._cancelled: set[int] = set()  # places in the batch that the model has given up

    async def start(self) -> None:
        """Spawn, load the model, run its setup. Raises ModelFault with one sentence."""
        self.state = State.STARTING
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-u", "-m", "processor.model.child", str(theirs.fileno()), self._model),
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                start_new_session=True,  # a group of its own, see _end
                env=environment_without_secrets(),
                pass_fds=(theirs.fileno(),),
            )
        self._prints = [
            asyncio.create_task(_log_lines(stream, name), name=f"model {name}")
            for stream, name in ((self._process.stdout, "stdout"), (self._process.stderr, "stderr"))
            if stream is not None
        ]
        self._reader, self._writer = await asyncio.open_connection(sock=ours, limit=1 << 20)
        try:
            async with asyncio.timeout(SETUP_LIMIT_S):
                (first,) = await self._receive()
        except ModelDied as died:
            raise ModelFault(f"{self._model}: {died} while it was loading.") from None
        except TimeoutError:
            await self.kill()
            raise ModelFault(f"{self._model}: setup took longer than {SETUP_LIMIT_S:g} s.") from None
        if first.kind == Kind.FAULT:
            await self.kill()
            raise ModelFault(first.data.decode())
        ready = orjson.loads(first.data)
        self.batch, self._cancels, self._batch_number = ready["batch"], ready["cancels"], 0
        self.state = State.IDLE

    async def predict(self, inputs: Sequence[bytes]) -> AsyncIterator[list[Item]]:
        """Outcomes in the order of `inputs`, in as many lists as the child sends. Raises ModelDied.

        The time limit is for one call of the model: it starts again with every list.
        """
        self.state = State.BUSY
        assert self._writer is not None
        if self._writer.is_closing():  # killed while it was idle
            raise ModelDied(await self._describe_exit())
        self._batch_number += 1
        self._cancelled.clear()
        self._writer.writelines(pack([Item(Kind.INPUT, 0, data) for data in inputs]))
        missing = len(inputs)
        while missing:
            try:
                async with asyncio.timeout(self._timeout_s):
                    outcomes = await self._receive()
            except TimeoutError:
                await self.kill()
                words = f"the model ran longer than {self._timeout_s:g} s and was stopped"
                raise ModelDied(words, timeout=True) from None
            if outcomes[0].kind == Kind.CANCELLED:
                given_up = [tuple(map(int, item.data.split())) for item in outcomes]
                self._cancelled.update(place for number, place in given_up if number == self._batch_number)
                continue
            missing -= len(outcomes)
            yield outcomes
        self.state = State.IDLE

    def cancel(self, place: int) -> None:
        """Ask the model to give up the input at this place of the present batch. An async model gets
        CancelledError; others cannot be asked."""
        writer = self._writer
        if self._cancels and writer and not writer.is_closing() and self.state is State.BUSY:
            writer.writelines(pack([Item(Kind.CANCEL, 0, b"%d %d" % (self._batch_number, place))]))

    def has_cancelled(self, place: int) -> bool:
        """Whether the model has ended its work on that input, or will not begin it."""
        return place in self._cancelled

    def interrupt(self) -> None:
        """SIGKILL, now; who waits for outcomes gets ModelDied a moment later."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()

    async def _receive(self) -> list[Item]:
        try:
            size, count = HEADER.unpack(await self._reader.readexactly(HEADER.size))
            if size <= WHOLE_BYTES:
                return unpack(count, await self._reader.readexactly(size))
            return await self._receive_large(count)
        except (asyncio.IncompleteReadError, OSError):
            raise ModelDied(await self._describe_exit()) from None

    async def _receive_large(self, count: int) -> list[Item]:
        """Item by item, so that each is copied once and alone: others are served in between."""
        items = []
        for kind, us, length in ITEM.iter_unpack(await self._reader.readexactly(count * ITEM.size)):
            items.append(Item(kind, us, await self._reader.readexactly(length)))
            await asyncio.sleep(0)
        return items

    async def _describe_exit(self) -> str:
        await self._end(grace_s=1.0)  # its socket closes a moment before it is gone
        self.state = State.DEAD
        assert self._process is not None
        code = self._process.returncode or 0
        if code >= 0:
            return f"the model process exited with code {code}"
        if code == -signal.SIGKILL:
            return "the model process was killed (SIGKILL), perhaps out of memory"
        known = -code in set(signal.Signals)  # real-time signals have no names
        return f"the model process died of {signal.Signals(-code).name if known else f'signal {-code}'}"

    async def kill(self) -> None:
        """End it now, whatever it does. Who waits for its outcomes gets ModelDied."""
        await self._end(grace_s=0)
        self.state = State.DEAD

    async def stop(self) -> None:
        """Let it run its teardown, for at most STOP_LIMIT_S."""
        await self._end(grace_s=STOP_LIMIT_S if self.state is State.IDLE else 0)
        self.state = State.STOPPED

    async def _end(self, *, grace_s: float) -> None:
        """Closing the socket is the child's sign to tear down and exit; SIGKILL is for those that do not, and for
        what the model started and left behind."""
        process = self._process
        if process is None:
            return
        if self._writer is not None:
            self._writer.close()
        try:
            async with asyncio.timeout(grace_s):
                await process.wait()
        except TimeoutError:
            if process.returncode is None:
                process.kill()
        await process.wait()
        _kill_orphans(process.pid)
        if self._prints:
            await asyncio.wait(self._prints, timeout=STOP_LIMIT_S)
        for task in self._prints:
            task.cancel()


def _kill_orphans(group: int) -> None:
    """SIGKILL for the rest of a process group whose leader is gone. Its number belongs to nobody else while there is
    a rest; without one it may be a new process."""
    try:
        os.kill(group, 0)
    except ProcessLookupError:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, signal.SIGKILL)
    except PermissionError:
        pass


async def _log_lines(stream: asyncio.StreamReader, name: str) -> None:
    """What the model prints goes to the log, line by line; a line above LINE_LIMIT is cut into pieces."""
    rest = b""
    while chunk := await stream.read(LINE_LIMIT):
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            log.info(line.decode(errors="replace"), source="model", stream=name)
        if len(rest) > LINE_LIMIT:
            log.info(rest.decode(errors="replace"), source="model", stream=name)
            rest = b""
    if rest:
        log.info(rest.decode(errors="replace"), source="model", stream=name)
