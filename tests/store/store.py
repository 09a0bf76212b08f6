"""Both halves of the job store in one hand, as none of our services has them."""

from typing import Any

from common.store.claims import Claims, Job
from common.store.dead import DeadLetters
from common.store.jobs import Jobs
from common.store.queue import Queue
from common.store.session import Session


class Store(Session):
    """A session with all that stands on it."""

    def __init__(self, url: str, **options: Any) -> None:
        super().__init__(url, **options)
        self.jobs = Jobs(self)
        self.claims = Claims(self)
        self.dead_letters = DeadLetters(self)
        self.queue = Queue(self)


class Processor:
    """A processor's store and its readers: claims from every partition."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.readers = store.claims.readers()

    async def claim(self, count: int = 100) -> list[Job]:
        return [job for reader in self.readers for job in await self.store.claims.claim(reader, count)]

    async def claim_one(self) -> Job:
        (job,) = await self.claim()
        return job

    async def reclaim(self, count: int = 100, *, idle_s: float = 0.0) -> list[Job]:
        return [
            job
            for reader in self.readers
            for job in await self.store.claims.reclaim(reader, count, idle_s=idle_s)
        ]
