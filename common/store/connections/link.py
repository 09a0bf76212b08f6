"""How we talk to the server: connections by role, explicit timeouts and retries. It must never send again what cannot
be repeated.

redis-py makes the connections (TLS, ACL users, RESP3); we hold them. Its client would take one from a pool for each
command, wrap each write in a task and retry ten times in silence: that costs half of the client's share of a
prediction, and ten retries do not fit a durable queue.
"""

import asyncio
import math
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from redis import exceptions
from redis.asyncio import Connection
from redis.crc import key_slot

from common.store import keys
from common.store.connections.dial import Command, place_of, say_where, send
from common.store.connections.errors import is_slot_migrating, is_wrong_server, refused, translate
from common.store.connections.subscription import Subscription, merged
from common.store.connections.topology import Topology, make_topology

COMMAND_TIMEOUT_S = 5.0
BLOCK_S = 1.0  # a blocking read; its answer must come within BLOCK_S + COMMAND_TIMEOUT_S, or the peer is gone
REDIRECTS = 5
REDIRECT_S = 0.1
SUBSCRIPTION_PROTOCOL = 2  # redis-py takes a detour through its logger for each push of RESP3


class Link:
    """One connection to the server of one partition, which carries one exchange at a time; made again when it breaks or
    leads to the wrong server. `opened` counts how often, `server` is where the last one led."""

    def __init__(
        self, topology: Topology, partition: int, key_prefix: str, *, timeout_s: float, tries: int
    ) -> None:
        self.partition = partition
        self.key_prefix = key_prefix
        self._topology = topology
        self._slot = _slot(keys.tag(partition, key_prefix))
        self._timeout_s = timeout_s
        self._tries = tries
        self._connection: Connection | None = None
        self._lock = asyncio.Lock()
        self.opened = 0
        self.server = ""

    async def call(self, *commands: Command) -> list[Any]:
        """The reply to each command, sent together; a server's error is a reply. Raises redis-py's errors otherwise.

        A lost connection is tried once more, because it may have died long ago, idle: whatever goes through here
        with two tries may be repeated. So may what a cluster's server sends elsewhere, with one try, too: it was
        not done, or it is a read whose delivery is seen again.
        """
        # one limit for all of it, waiting for one's turn included: behind a silent server there may be a queue
        async with asyncio.timeout(self._timeout_s), self._lock:
            for left in reversed(range(self._tries)):
                try:
                    return await self._follow(commands)
                except exceptions.ConnectionError as error:
                    if not left or refused(error) or isinstance(error, exceptions.BusyLoadingError):
                        raise
            raise AssertionError("unreachable")

    async def _follow(self, commands: Sequence[Command]) -> list[Any]:
        for _ in range(REDIRECTS):
            connection = await self._open()
            replies = await self._exchange(connection, commands)
            errors = [reply for reply in replies if isinstance(reply, Exception)]
            if not errors or not await self._is_elsewhere(connection, errors):
                break
        return replies

    async def _open(self) -> Connection:
        connection = self._connection
        if connection and connection.is_connected and self._topology.current(self._slot, connection):
            return connection
        await self.aclose()
        self._connection = await self._topology.open(self._slot)
        self.opened += 1
        self.server = place_of(self._connection)
        return self._connection

    async def _exchange(self, connection: Connection, commands: Sequence[Command]) -> list[Any]:
        try:
            await send(connection, commands)
            replies = []
            for _ in commands:
                try:
                    replies.append(await connection.read_response(disable_decoding=True, timeout=math.inf))
                except exceptions.ResponseError as error:
                    replies.append(error)
            return replies
        except BaseException as error:  # a timeout, too, comes as a cancellation
            say_where(error, connection)
            await self.aclose()  # half an exchange may be under way
            self._topology.lost(connection)
            raise

    async def _is_elsewhere(self, connection: Connection, errors: list[Exception]) -> bool:
        """Whether the commands should be sent once more, after what these errors taught us."""
        for error in errors:
            if isinstance(error, exceptions.MovedError):
                self._topology.moved(self._slot, connection, error)
                return True
        if any(is_wrong_server(error) for error in errors):
            self._topology.lost(connection)
            await self.aclose()
        if any(is_slot_migrating(error) for error in errors):
            await asyncio.sleep(REDIRECT_S)
            return True
        return False

    async def command(self, *command: Any) -> Any:
        """The reply to one command. Raises redis-py's errors."""
        (reply,) = await self.call(command)
        if isinstance(reply, Exception):
            raise reply
        return reply

    async def aclose(self) -> None:
        connection, self._connection = self._connection, None
        if connection:
            await connection.disconnect(nowait=True)


class Connections:
    """One link per role and partition, made when first used, so that a large write and a lease never wait for each
    other, and each partition may live on its own server."""

    def __init__(self, url: str, key_prefix: str) -> None:
        self._topology = make_topology(url)
        self._key_prefix = key_prefix
        self._links: dict[tuple[str, int], Link] = {}

    def link(self, role: str, partition: int = 0) -> Link:
        """The link for transitions of this role."""
        key = (role, partition)
        if key not in self._links:
            self._links[key] = self._link(partition, timeout_s=COMMAND_TIMEOUT_S, tries=2)
        return self._links[key]

    def blocking_link(self, partition: int) -> Link:
        """The link for one blocking reader: not tried twice, because a read may have been delivered."""
        link = self._link(partition, timeout_s=BLOCK_S + COMMAND_TIMEOUT_S, tries=1)
        self._links["blocking", partition] = link
        return link

    def _link(self, partition: int, *, timeout_s: float, tries: int) -> Link:
        return Link(self._topology, partition, self._key_prefix, timeout_s=timeout_s, tries=tries)

    @asynccontextmanager
    async def subscription(self, channels: list[str]) -> AsyncIterator[Subscription]:
        """A subscription whose every channel a server has confirmed. Raises StoreUnavailable."""
        by_slot = {_slot(channel): channel for channel in channels}
        async with AsyncExitStack() as stack:
            try:
                parts = []
                async with asyncio.timeout(COMMAND_TIMEOUT_S):
                    for slots in await self._topology.together(list(by_slot)):
                        connection = await self._topology.open(slots[0], protocol=SUBSCRIPTION_PROTOCOL)
                        stack.push_async_callback(connection.disconnect, nowait=True)
                        await self._subscribe(connection, [by_slot[slot] for slot in slots])
                        parts.append(Subscription(connection, self._topology))
            except Exception as error:
                raise translate(error) from error
            yield parts[0] if len(parts) == 1 else await stack.enter_async_context(merged(parts))

    async def _subscribe(self, connection: Connection, channels: list[str]) -> None:
        # one command each: a cluster refuses channels of several slots in one
        await send(connection, [("SSUBSCRIBE", channel) for channel in channels])
        for channel in channels:
            try:
                reply = await connection.read_response(disable_decoding=True, timeout=math.inf)
            except exceptions.MovedError as error:
                self._topology.moved(_slot(channel), connection, error)
                raise
            except BaseException as error:
                say_where(error, connection)
                raise
            if not isinstance(reply, list) or reply[:1] != [b"ssubscribe"]:
                raise exceptions.ConnectionError("the server does not confirm a subscription")

    async def aclose(self) -> None:
        for link in self._links.values():
            await link.aclose()


def _slot(key: str) -> int:
    return key_slot(key.encode())
