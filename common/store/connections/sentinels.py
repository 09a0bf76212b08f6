"""The topology behind sentinels: which server is the primary now.

It must never open a connection to a server on a sentinel's word alone: the server must agree that it is the primary.
Nor does it wait for a failover: who asks in vain gets redis-py's error and asks again.
"""

import asyncio

from redis import exceptions
from redis.asyncio import Connection

from common.addresses import host_port
from common.store.connections.dial import ASK_S, Dial, address_of, ask
from common.store.connections.errors import in_words, refused
from common.store.connections.one_server import OneServer
from common.store.connections.redis_url import Address, RedisUrl


class Sentinels(OneServer):
    """The primary that the sentinels name, if it agrees that it is one."""

    def __init__(self, url: RedisUrl) -> None:
        super().__init__(url)
        self._service = url.service
        self._sentinels = list(url.addresses)  # the one that answered last comes first
        as_sentinel = {"username": url.sentinel_user, "password": url.sentinel_password, "db": 0}
        self._dial_sentinel = Dial(url, **as_sentinel)
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
                why.append(in_words(error))
        raise exceptions.ConnectionError(f"no sentinel leads to a primary: {'; '.join(why)}")

    async def _open(self, primary: Address, protocol: int) -> Connection:
        connection = await self._dial(primary, protocol=protocol)
        try:
            if b"role:master" not in await ask(connection, "INFO", "replication"):
                raise exceptions.ConnectionError(f"{host_port(*primary)} is a replica")
        except BaseException:
            await connection.disconnect(nowait=True)
            raise
        self._primary = primary
        return connection

    def current(self, slot: int, connection: Connection) -> bool:
        return address_of(connection) == self._primary

    async def confirm(self, connection: Connection) -> None:
        """A server that was the primary may answer for long, as a replica or cut off from the others."""
        for sentinel in tuple(self._sentinels):
            try:
                async with asyncio.timeout(ASK_S):
                    primary = await self._ask(sentinel)
            except (exceptions.RedisError, OSError):
                continue
            if primary != address_of(connection):
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
