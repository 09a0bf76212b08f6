"""How we talk to the server: connections by role, explicit timeouts and retries, and which of its errors pass.

redis-py makes the connections (TLS, ACL users, RESP3); we hold them. Its client would take one from a pool for each
command, wrap each write in a task and retry ten times in silence: that costs half of the client's share of a
prediction, and ten retries do not fit a durable queue.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from hiredis import pack_command
from redis import exceptions
from redis.asyncio import Connection, ConnectionPool
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from common.errors import StoreMisconfigured, StoreUnavailable

COMMAND_TIMEOUT_S = 5.0
BLOCK_S = 1.0  # a blocking read; its answer must come within BLOCK_S + COMMAND_TIMEOUT_S, or the peer is gone

Command = Sequence[Any]

_PASSING = (
    exceptions.ConnectionError,  # BusyLoadingError too
    exceptions.TimeoutError,
    exceptions.ReadOnlyError,
    exceptions.OutOfMemoryError,
    exceptions.ClusterDownError,
    exceptions.TryAgainError,
    OSError,  # TimeoutError too
)
# errors that redis-py has no class for, or not in every place they come from (a script prefixes its own)
_PASSING_WORDS = (
    "OOM ", "READONLY ", "LOADING ", "MISCONF ", "MASTERDOWN ", "NOREPLICAS ", "CLUSTERDOWN ", "TRYAGAIN ",
    "UNBLOCKED ", "BUSY ", "NOGROUP ",
)  # fmt: skip
_REFUSED = (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError)


def translate(error: Exception) -> Exception:
    """Our error for one of redis-py's; what is neither passing nor refused is a fault of ours and stays as it is."""
    # while it connects, redis-py wraps a refusal in a ConnectionError
    if isinstance(error, _REFUSED) or isinstance(error.__cause__, _REFUSED):
        return StoreMisconfigured(f"Redis refuses us ({error}): check the user and password in REDIS_URL.")
    if isinstance(error, _PASSING) or any(word in str(error) for word in _PASSING_WORDS):
        return StoreUnavailable(f"Redis is not available ({type(error).__name__}: {error}).")
    return error


class Link:
    """One connection that carries one exchange at a time, and is made again when it breaks."""

    def __init__(self, connection: Connection, *, timeout_s: float, tries: int) -> None:
        self._connection = connection
        self._timeout_s = timeout_s
        self._tries = tries
        self._lock = asyncio.Lock()

    async def call(self, *commands: Command) -> list[Any]:
        """The reply to each command, sent together; a server's error is a reply. Raises redis-py's errors otherwise.

        A lost connection is tried once more, because it may have died long ago, idle: whatever goes through here
        with two tries may be repeated.
        """
        async with self._lock:
            for left in reversed(range(self._tries)):
                try:
                    async with asyncio.timeout(self._timeout_s):
                        return await self._exchange(commands)
                except exceptions.ConnectionError as error:
                    if not left or isinstance(error, (*_REFUSED, exceptions.BusyLoadingError)):
                        raise
            raise AssertionError("unreachable")

    async def _exchange(self, commands: Sequence[Command]) -> list[Any]:
        connection = self._connection
        try:
            if not connection.is_connected:
                await connection.connect()  # type: ignore[no-untyped-call]
            # hiredis packs five times faster than redis-py's own encoder
            packed = [pack_command(tuple(command)) for command in commands]
            await connection.send_packed_command(packed, check_health=False)
            replies = []
            for _ in commands:
                try:
                    replies.append(await connection.read_response(disable_decoding=True, timeout=math.inf))
                except exceptions.ResponseError as error:
                    replies.append(error)
            return replies
        except BaseException:
            await connection.disconnect(nowait=True)  # half an exchange may be under way
            raise

    async def command(self, *command: Any) -> Any:
        """The reply to one command. Raises redis-py's errors."""
        (reply,) = await self.call(command)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def aclose(self) -> None:
        await self._connection.disconnect(nowait=True)


class Connections:
    """One link per role and partition, made when first used, so that a large write and a lease never wait for each
    other, and each partition may live on its own server."""

    def __init__(self, url: str) -> None:
        # redis-py's own timeouts are off: each exchange has one of ours around all of it, connecting included
        self._pool = ConnectionPool.from_url(
            url, socket_timeout=None, retry=Retry(NoBackoff(), 0), protocol=3, legacy_responses=False
        )
        # RESP2 for subscriptions: redis-py takes a detour through its logger for each RESP3 push
        self._subscriptions = ConnectionPool.from_url(
            url, socket_timeout=None, retry=Retry(NoBackoff(), 0), protocol=2, legacy_responses=False
        )
        self._links: dict[tuple[str, int], Link] = {}

    def link(self, role: str, partition: int = 0) -> Link:
        """The link for transitions of this role."""
        key = (role, partition)
        if key not in self._links:
            self._links[key] = Link(_connection(self._pool), timeout_s=COMMAND_TIMEOUT_S, tries=2)
        return self._links[key]

    def blocking_link(self, partition: int) -> Link:
        """The link for one blocking reader: not tried twice, because a read may have been delivered."""
        limit = BLOCK_S + COMMAND_TIMEOUT_S
        link = Link(_connection(self._pool), timeout_s=limit, tries=1)
        self._links["blocking", partition] = link
        return link

    @asynccontextmanager
    async def subscription(self, channels: list[str]) -> AsyncIterator["Subscription"]:
        """A subscription whose every channel the server has confirmed. Raises StoreUnavailable."""
        connection = _connection(self._subscriptions)
        try:
            async with asyncio.timeout(COMMAND_TIMEOUT_S):
                await connection.connect()  # type: ignore[no-untyped-call]
                await connection.send_packed_command(connection.pack_command("SSUBSCRIBE", *channels))
                for _ in channels:
                    await connection.read_response(timeout=math.inf)
            yield Subscription(connection)
        except Exception as error:
            raise translate(error) from error
        finally:
            await connection.disconnect(nowait=True)

    async def aclose(self) -> None:
        for link in self._links.values():
            await link.aclose()


def _connection(pool: ConnectionPool) -> Connection:
    connection: Connection = pool.make_connection()  # type: ignore[no-untyped-call]
    return connection


class Subscription:
    """Payloads as they come. A connection that answers neither with a message nor with a PONG for two
    `PING_S` is dead, whatever TCP says (a half-open peer is silent for hours)."""

    PING_S = 2.0

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def receive(self) -> bytes | None:
        """The next payload, or None for a sign of life without one. Raises StoreUnavailable."""
        try:
            reply = await self._read()
            if reply is None:
                await self._connection.send_packed_command(self._connection.pack_command("PING"))
                reply = await self._read()
            if reply is None:
                raise exceptions.TimeoutError("the subscription's connection is silent")
        except Exception as error:
            raise translate(error) from error
        is_message = isinstance(reply, list) and reply[0] == b"smessage"
        return reply[2] if is_message else None

    async def _read(self) -> Any:
        """None when the time is up: redis-py does not raise for a timeout that is its argument."""
        return await self._connection.read_response(
            disable_decoding=True, timeout=self.PING_S, disconnect_on_error=False
        )
