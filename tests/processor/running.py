"""A processor's inside, at work in the test's own process, and what its tests share."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

from prometheus_client import REGISTRY

from common.store.claims import Job
from processor.service import Processor
from processor.worker import Worker
from tests.store.store import Store

BLOCK_S = 0.05
#: long enough for inputs that are submitted together to be one batch, whatever their partitions
FILL_MS = 500

Work = Callable[..., Awaitable["Running"]]


class Running:
    """Of a processor whose models are started. `stop` drains it."""

    def __init__(self, processor: Processor) -> None:
        self.session = processor.session
        self.models = processor.models
        self.worker = Worker(processor.session, processor.models, processor.settings, processor.tracing)
        self.task = asyncio.create_task(self.worker.run())

    async def stop(self) -> None:
        if not self.task.done():
            await self.worker.drain(10)
            self.task.cancel()
            with suppress(asyncio.CancelledError):
                await self.task
        await asyncio.gather(*(model.stop() for model in self.models))
        await self.session.aclose()


def metric(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(f"foretell_{name}", labels) or 0.0


@asynccontextmanager
async def taken_by_a_thief(redis_url: str, partitions: int) -> AsyncIterator[tuple[Store, Job]]:
    """Another processor takes the only running job over, and keeps its lease like a living one."""
    thief = Store(redis_url, name="thief", partitions=partitions)
    (job,) = [
        job for reader in thief.claims.readers() for job in await thief.claims.reclaim(reader, 9, idle_s=0)
    ]

    async def keep() -> None:
        while True:
            await thief.claims.extend([job])
            await asyncio.sleep(0.05)

    keeping = asyncio.create_task(keep())
    try:
        yield thief, job
    finally:
        keeping.cancel()
        with suppress(asyncio.CancelledError):
            await keeping
        await thief.claims.leave()
        await thief.aclose()
