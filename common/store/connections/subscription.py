"""What a process hears from the servers: the payloads of one subscription, or of several as one.

It must never subscribe or connect anew: who listens makes a new subscription of the lost one and looks up what may have
been missed.
"""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from redis import exceptions
from redis.asyncio import Connection

from common.store.connections.dial import say_where, send
from common.store.connections.errors import translate
from common.store.connections.topology import Topology

MERGED = 1000  # messages of several servers that wait to be heard


class Subscription:
    """Payloads as they come. A connection that answers neither with a message nor with a PONG for two
    `PING_S` is dead, whatever TCP says (a half-open peer is silent for hours)."""

    PING_S = 2.0

    def __init__(self, connection: Connection, topology: Topology) -> None:
        self._connection = connection
        self._topology = topology

    async def receive(self) -> bytes | None:
        """The next payload, or None for a sign of life without one. Raises StoreUnavailable."""
        try:
            reply = await self._read()
            if reply is None:
                await self._topology.confirm(self._connection)
                await send(self._connection, [("PING",)])
                reply = await self._read()
            if reply is None:
                raise exceptions.TimeoutError("the subscription's connection is silent")
            kind = reply[0] if isinstance(reply, list) and reply else None
            if kind == b"sunsubscribe":
                raise exceptions.ConnectionError("a channel has moved to another server")
            payload = reply[2] if kind == b"smessage" else None
            return payload if isinstance(payload, bytes) else None
        except Exception as error:
            self._topology.lost(self._connection)
            say_where(error, self._connection)
            raise translate(error) from error

    async def _read(self) -> Any:
        """None when the time is up: redis-py does not raise for a timeout that is its argument."""
        return await self._connection.read_response(
            disable_decoding=True, timeout=self.PING_S, disconnect_on_error=False
        )


class _Merged(Subscription):
    """Several as one. The end of one is the end of all: who listens then looks up what may have been missed."""

    def __init__(self) -> None:
        self._heard: asyncio.Queue[bytes | Exception | None] = asyncio.Queue(MERGED)

    async def receive(self) -> bytes | None:
        payload = await self._heard.get()
        if isinstance(payload, Exception):
            raise payload
        return payload

    async def hear(self, part: Subscription) -> None:
        """Until cancelled, or until the part has ended."""
        while True:
            try:
                payload = await part.receive()
            except Exception as error:
                await self._heard.put(error)
                return
            await self._heard.put(payload)


@asynccontextmanager
async def merged(parts: Sequence[Subscription]) -> AsyncIterator[Subscription]:
    whole = _Merged()
    hearing = [asyncio.create_task(whole.hear(part), name="subscription") for part in parts]
    try:
        yield whole
    finally:
        for task in hearing:
            task.cancel()
        await asyncio.wait(hearing)
