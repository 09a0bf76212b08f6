"""Which server has the keys: what a link asks of a topology, and the one that REDIS_URL names.

A topology opens connections to the right server and remembers which that is. It must never wait for
long: who asks in vain gets redis-py's error at once and asks again.
"""

from collections.abc import Sequence
from typing import Protocol

from redis import exceptions
from redis.asyncio import Connection

from common.store.connections.cluster import Cluster
from common.store.connections.one_server import OneServer
from common.store.connections.redis_url import parse_url
from common.store.connections.sentinels import Sentinels


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
        """For a connection that nothing has come over for a while. Raises ConnectionError at the wrong server."""

    async def together(self, slots: Sequence[int]) -> list[list[int]]:
        """The slots, those of one server together. Raises redis-py's errors."""


def make_topology(url: str) -> Topology:
    parsed = parse_url(url)
    if parsed.kind == "sentinel":
        return Sentinels(parsed)
    return Cluster(parsed) if parsed.kind == "cluster" else OneServer(parsed)
