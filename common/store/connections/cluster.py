"""The topology of a cluster: which master has which slot.

It must never learn from a redirection of one key (ASK), only from one of a whole slot (MOVED). Nor does it wait until
a slot has a master again: who asks in vain gets redis-py's error and asks again.
"""

import asyncio
from collections.abc import Sequence

from redis import exceptions
from redis.asyncio import Connection

from common.errors import StoreMisconfigured
from common.store.connections.dial import ASK_S, address_of, ask
from common.store.connections.errors import in_words, refused
from common.store.connections.one_server import OneServer
from common.store.connections.redis_url import Address, RedisUrl


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
        here = address_of(connection)
        return self._masters.get(slot, here) == here

    def lost(self, connection: Connection) -> None:
        self._forget(address_of(connection))

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
                why.append(in_words(error))
                continue
            self._masters = {
                # a server that does not know its own name leaves the host out
                slot: ((host or b"").decode() or server[0], port)
                for first, last, (host, port, *_), *_ in ranges
                for slot in range(first, last + 1)
            }
            return
        raise exceptions.ConnectionError(f"no server of the cluster answers: {'; '.join(why)}")
