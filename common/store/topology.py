"""Which server has the keys: one server, the primary that sentinels name, or the masters of a cluster.

A topology opens connections to the right server and remembers which that is. Nothing here waits for long: who asks
in vain gets redis-py's error at once and asks again.
"""

import asyncio
import math
from collections.abc import Sequence
from typing import Any, NoReturn, Protocol

from hiredis import pack_command
from redis import exceptions
from redis.asyncio import Connection
from redis.asyncio.connection import parse_url as connection_settings
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from common.errors import StoreMisconfigured
from common.store.redis_url import Address, RedisUrl, parse_url

ASK_S = 1.0  # for one server to be reached and to answer, when there are others to ask

_REFUSED = (exceptions.AuthenticationError, exceptions.AuthorizationError, exceptions.NoPermissionError)

Command = Sequence[Any]


class Topology(Protocol):
    """What a link asks of it. A slot stands for the keys of one partition."""

    async def open(self, slot: int, *, protocol: int = 3) -> Connection:
        """A connection to the server that has the slot's keys and takes writes. Raises redis-py's errors."""

    def current(self, slot: int, connection: Connection) -> bool:
        """Whether, as far as is known, the connection still leads to the slot's server."""

    def lost(self, connection: Connection) -> None:
        """The connection broke or its server does not answer: it may be replaced."""

    def moved(self, slot: int, connection: Connection, error: exceptions.MovedError) -> None:
        """The connection's server says that another one has the slot. Raises StoreMisconfigured if that cannot be."""

    async def confirm(self, connection: Connection) -> None:
        """For a connection that nothing has come over for a while. Raises ConnectionError if it leads astray."""

    async def together(self, slots: Sequence[int]) -> list[list[int]]:
        """The slots, those of one server together. Raises redis-py's errors."""


def make_topology(url: str) -> Topology:
    parsed = parse_url(url)
    if parsed.kind == "sentinel":
        return Sentinels(parsed)
    return Cluster(parsed) if parsed.kind == "cluster" else OneServer(parsed)


# -- connections


def refused(error: BaseException) -> bool:
    """Whether the server refuses our user or password."""
    # while it connects, redis-py wraps a refusal in a ConnectionError
    return isinstance(error, _REFUSED) or isinstance(error.__cause__, _REFUSED)


def _in_words(error: Exception) -> str:
    return str(error) or type(error).__name__


class _Dial:
    """Makes connections the way we want them: redis-py's own timeouts and retries are off, because each exchange has
    one timeout of ours around all of it, connecting included."""

    def __init__(self, plain_url: str, **overrides: Any) -> None:
        settings: dict[str, Any] = {**connection_settings(plain_url), **overrides}
        self._kind = settings.pop("connection_class", Connection)
        defaults = {"socket_timeout": None, "retry": Retry(NoBackoff(), 0), "legacy_responses": False}
        self._settings = defaults | settings

    async def __call__(self, address: Address | None = None, *, protocol: int = 3) -> Connection:
        where = {"host": address[0], "port": address[1]} if address else {}
        connection: Connection = self._kind(**self._settings | where, protocol=protocol)
        try:
            await connection.connect()  # type: ignore[no-untyped-call]
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        return connection


async def send(connection: Connection, commands: Sequence[Command]) -> None:
    # hiredis packs five times faster than redis-py's own encoder
    packed = [pack_command(tuple(command)) for command in commands]
    await connection.send_packed_command(packed, check_health=False)


async def ask(connection: Connection, *command: Any) -> Any:
    """The reply to one command. Raises redis-py's errors."""
    await send(connection, [command])
    return await connection.read_response(disable_decoding=True, timeout=math.inf)


def _where(connection: Connection) -> Address:
    return connection.host, int(connection.port)


# -- the three


class OneServer:
    """At one address, always."""

    def __init__(self, url: RedisUrl) -> None:
        self._dial = _Dial(url.plain)

    async def open(self, slot: int, *, protocol: int = 3) -> Connection:
        return await self._dial(protocol=protocol)

    def current(self, slot: int, connection: Connection) -> bool:
        return True

    def lost(self, connection: Connection) -> None:
        pass

    def moved(self, slot: int, connection: Connection, error: exceptions.MovedError) -> NoReturn:
        raise StoreMisconfigured("Redis at REDIS_URL is one of a cluster: use redis+cluster:// in it.")

    async def confirm(self, connection: Connection) -> None:
        pass

    async def together(self, slots: Sequence[int]) -> list[list[int]]:
        return [list(slots)]


class Sentinels(OneServer):
    """The primary that the sentinels name, if it agrees that it is one."""

    def __init__(self, url: RedisUrl) -> None:
        super().__init__(url)
        self._service = url.service
        self._sentinels = list(url.addresses)  # the one that answered last comes first
        as_sentinel = {"username": url.sentinel_user, "password": url.sentinel_password, "db": 0}
        self._dial_sentinel = _Dial(url.plain, **as_sentinel)
        self._primary: Address | None = None

    async def open(self, slot: int, *, protocol: int = 3) -> Connection:
        why = []
        for sentinel in tuple(self._sentinels):
            try:
                async with asyncio.timeout(ASK_S):
                    return await self._open(await self._ask(sentinel), protocol)
            except (exceptions.RedisError, OSError) as error:
                if refused(error):
                    raise
                why.append(_in_words(error))
        raise exceptions.ConnectionError(f"no sentinel leads to a primary: {'; '.join(why)}")

    async def _open(self, primary: Address, protocol: int) -> Connection:
        connection = await self._dial(primary, protocol=protocol)
        try:
            if b"role:master" not in await ask(connection, "INFO", "replication"):
                raise exceptions.ConnectionError(f"{primary[0]}:{primary[1]} is a replica")
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._primary = primary
        return connection

    def current(self, slot: int, connection: Connection) -> bool:
        return _where(connection) == self._primary

    async def confirm(self, connection: Connection) -> None:
        """A server that was the primary may answer for long, as a replica or cut off from the others."""
        for sentinel in tuple(self._sentinels):
            try:
                async with asyncio.timeout(ASK_S):
                    primary = await self._ask(sentinel)
            except (exceptions.RedisError, OSError):
                continue
            if primary != _where(connection):
                raise exceptions.ConnectionError("another server is the primary now")
            return

    async def _ask(self, sentinel: Address) -> Address:
        connection = await self._dial_sentinel(sentinel)
        try:
            found = await ask(connection, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", self._service)
        finally:
            await connection.disconnect(nowait=True)
        if not found:
            raise exceptions.ConnectionError(f"the sentinel knows no service {self._service!r}")
        self._sentinels.sort(key=lambda other: other != sentinel)
        return found[0].decode(), int(found[1])


class Cluster(OneServer):
    """The master of each slot. The map of them is asked for when it is missing, corrected where a server says that a
    slot has moved, and forgotten where a server is lost."""

    def __init__(self, url: RedisUrl) -> None:
        super().__init__(url)
        self._seeds = url.addresses
        self._masters: dict[int, Address] = {}
        self._asking = asyncio.Lock()

    async def open(self, slot: int, *, protocol: int = 3) -> Connection:
        master = await self._master(slot)
        try:
            async with asyncio.timeout(ASK_S):
                return await self._dial(master, protocol=protocol)
        except (exceptions.ConnectionError, OSError):
            self._forget(master)
            raise

    def current(self, slot: int, connection: Connection) -> bool:
        here = _where(connection)
        return self._masters.get(slot, here) == here

    def lost(self, connection: Connection) -> None:
        self._forget(_where(connection))

    def moved(self, slot: int, connection: Connection, error: exceptions.MovedError) -> None:  # type: ignore[override]
        self._masters[slot] = (error.host or connection.host, error.port)

    async def together(self, slots: Sequence[int]) -> list[list[int]]:
        groups: dict[Address, list[int]] = {}
        for slot in slots:
            groups.setdefault(await self._master(slot), []).append(slot)
        return list(groups.values())

    def _forget(self, master: Address) -> None:
        for slot in [slot for slot, address in self._masters.items() if address == master]:
            del self._masters[slot]

    async def _master(self, slot: int) -> Address:
        if slot not in self._masters:
            async with self._asking:  # one answer is for all who ask
                if slot not in self._masters:
                    await self._learn()
        try:
            return self._masters[slot]
        except KeyError:
            raise exceptions.ClusterDownError("CLUSTERDOWN nobody has the slot") from None

    async def _learn(self) -> None:
        """Ask one server after the other for the map, those first that worked before."""
        why = []
        for server in dict.fromkeys((*self._masters.values(), *self._seeds)):
            try:
                async with asyncio.timeout(ASK_S):
                    connection = await self._dial(server)
                    try:
                        ranges = await ask(connection, "CLUSTER", "SLOTS")
                    finally:
                        await connection.disconnect(nowait=True)
            except (exceptions.RedisError, OSError) as error:
                if "cluster support disabled" in str(error):
                    raise StoreMisconfigured(
                        "Redis at REDIS_URL is no cluster: use redis:// in it."
                    ) from None
                if refused(error):
                    raise
                why.append(_in_words(error))
                continue
            self._masters = {
                # a server that does not know its own name leaves the host out
                slot: ((host or b"").decode() or server[0], port)
                for first, last, (host, port, *_), *_ in ranges
                for slot in range(first, last + 1)
            }
            return
        raise exceptions.ConnectionError(f"no server of the cluster answers: {'; '.join(why)}")
