"""A processor's inside, at work in the test's own process."""

import asyncio
from contextlib import suppress

from processor.service import Processor
from processor.worker import Worker


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
