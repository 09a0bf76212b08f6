"""The topology of one server, which is at one address, always. It never asks who else there is: a server that turns out
to be one of a cluster is a mistake in REDIS_URL.
"""

from collections.abc import Sequence
from typing import NoReturn

from redis import exceptions
from redis.asyncio import Connection

from common.errors import StoreMisconfigured
from common.store.connections.dial import Dial
from common.store.connections.redis_url import RedisUrl


class OneServer:
    """At one address, always."""

    def __init__(self, url: RedisUrl) -> None:
        self._dial = Dial(url)

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
