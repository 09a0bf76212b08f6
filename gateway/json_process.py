"""Looks through JSON texts, large ones in another process: to parse 40 MB takes up to a second and more, and holds the
interpreter lock all that time, so that a thread would not help the event loop.

The process is started for the first large text. One that dies, or takes too long, costs the request that it was at.
"""

import asyncio
import sys
from asyncio.subprocess import DEVNULL, PIPE, Process
from contextlib import suppress

import structlog

from common.json_text import NoInput, NotJson, input_of, value_digest
from common.settings import environment_without_secrets
from gateway.errors import HttpError
from gateway.json_child import ANSWER, REQUEST, Kind, Operation

log = structlog.get_logger("foretell")

#: Up to here, the worst of texts takes 12 ms (measured: many small objects).
LIGHT_BYTES = 1 << 18
#: Up to here, one of so few values takes 10 ms.
FEW_VALUES = 20_000
FEW_VALUES_BYTES = 1 << 22

LIMIT_S = 60.0
EXIT_S = 1.0

FAILED = "The gateway failed to look through this body: try again, or send less at once."


class JsonProcess:
    def __init__(self) -> None:
        self._process: Process | None = None
        self._turn = asyncio.Lock()

    async def input_of(self, body: bytes) -> bytes:
        """`json_text.input_of`. Raises HttpError 503 if the other process fails."""
        if _is_light(body):
            return input_of(body)
        kind, first, second, text = await self._ask(Operation.INPUT_OF, body)
        if kind == Kind.NOT_JSON:
            raise NotJson(text.decode())
        if kind == Kind.NO_INPUT:
            raise NoInput(text.decode())
        return body[first:second] if kind == Kind.PLACE else text

    async def value_digest(self, text: bytes) -> str:
        """`json_text.value_digest`. Raises HttpError 503 if the other process fails."""
        if _is_light(text):
            return value_digest(text)
        *_, digest = await self._ask(Operation.VALUE_DIGEST, text)
        return digest.decode()

    async def aclose(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        if process.returncode is None:
            with suppress(ProcessLookupError):
                process.kill()
        with suppress(TimeoutError):
            async with asyncio.timeout(EXIT_S):
                await process.wait()

    async def _ask(self, operation: Operation, text: bytes) -> tuple[int, int, int, bytes]:
        async with self._turn:
            try:
                async with asyncio.timeout(LIMIT_S):
                    return await self._exchange(operation, text)
            except (OSError, EOFError, TimeoutError) as error:
                await self.aclose()
                log.warning("the process that looks through large bodies failed", error=repr(error))
                raise HttpError(503, FAILED, headers={"Retry-After": "1"}) from None
            except BaseException:
                await self.aclose()  # half an exchange may be under way
                raise

    async def _exchange(self, operation: Operation, text: bytes) -> tuple[int, int, int, bytes]:
        if self._process is None:
            self._process = await _start()
        writer, reader = self._process.stdin, self._process.stdout
        assert writer
        assert reader
        writer.writelines([REQUEST.pack(operation, len(text)), text])
        await writer.drain()
        kind, first, second = ANSWER.unpack(await reader.readexactly(ANSWER.size))
        has_text = kind in (Kind.TEXT, Kind.NOT_JSON, Kind.NO_INPUT)
        return kind, first, second, await reader.readexactly(first) if has_text else b""


async def _start() -> Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "gateway.json_child"),
        stdin=PIPE,
        stdout=PIPE,
        stderr=DEVNULL,
        start_new_session=True,  # a terminal's Ctrl-C is for us
        env=environment_without_secrets(),
    )


def _is_light(text: bytes) -> bool:
    """Whether it is looked through in a moment here."""
    if len(text) <= LIGHT_BYTES:
        return True
    return len(text) <= FEW_VALUES_BYTES and sum(map(text.count, (b",", b"[", b"{"))) <= FEW_VALUES
