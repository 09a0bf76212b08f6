"""One process at the store: its name among the others, its connections, and what it was configured with.

`Jobs` and `Claims`, the two halves of the store, stand on it, and so do `DeadLetters` and `Queue`.
"""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal

from common.settings import CommonSettings
from common.store import keys
from common.store.connections.link import Connections, Link
from common.store.connections.subscription import Subscription

#: How far a submission must get before it counts as accepted: into the server, into one replica, onto the disk.
Durability = Literal["server", "replicated", "fsync"]

UNLIMITED = 1 << 52  # bytes; Lua's numbers are exact up to there


class Session:
    """`name` is a gateway's channel, or a processor's consumer and channel."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        partitions: int = 1,
        result_ttl_s: int = 3600,
        max_queue: int = 100_000,
        max_queue_bytes: int = 0,
        max_attempts: int = 3,
        durability: Durability = "server",
        key_prefix: str = "",
    ) -> None:
        self.name = name
        self.key_prefix = key_prefix
        self.partitions = partitions
        self.result_ttl_s = result_ttl_s
        self.max_attempts = max_attempts
        self.durability: Durability = durability
        self._max_queue = max_queue
        self._max_queue_bytes = max_queue_bytes or UNLIMITED
        self._connections = Connections(url, key_prefix)

    @classmethod
    def from_settings(
        cls, settings: CommonSettings, *, name: str, durability: Durability = "server"
    ) -> "Session":
        return cls(
            settings.redis_url,
            name=name,
            partitions=settings.partitions,
            result_ttl_s=settings.result_ttl_s,
            max_queue=settings.max_queue,
            max_queue_bytes=settings.max_queue_bytes,
            max_attempts=settings.max_attempts,
            durability=durability,
            key_prefix=settings.key_prefix,
        )

    def link(self, role: str, partition: int) -> Link:
        """The connection for transitions of this role, to the server of this partition."""
        return self._connections.link(role, partition)

    def blocking_link(self, partition: int) -> Link:
        """The connection of this partition's one blocking reader."""
        return self._connections.blocking_link(partition)

    def subscription(self) -> AbstractAsyncContextManager[Subscription]:
        """What is announced to this process; see `parse_announcement`. Raises StoreUnavailable."""
        channels = [keys.relay(p, self.name, self.key_prefix) for p in range(self.partitions)]
        return self._connections.subscription(channels)

    def partition_of(self, prediction_id: str) -> int:
        return keys.partition_of(prediction_id, self.partitions)

    def queue_limit(self, partition: int) -> int:
        """Each partition keeps its share of max_queue: ids are random, so the shares fill evenly."""
        return self._share(self._max_queue, partition)

    def byte_limit(self, partition: int) -> int:
        """Its share of max_queue_bytes, for all inputs that wait or run."""
        return self._share(self._max_queue_bytes, partition)

    def _share(self, whole: int, partition: int) -> int:
        share, rest = divmod(whole, self.partitions)
        return share + (partition < rest)

    async def on_every_partition(self, call: Callable[[int], Awaitable[Any]]) -> list[Any]:
        """The reply of every partition, asked at the same time: one that is silent costs its time once."""
        return await asyncio.gather(*[call(p) for p in range(self.partitions)])

    async def aclose(self) -> None:
        await self._connections.aclose()
