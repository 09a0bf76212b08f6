"""The life of a processor: load the model, wait for the server, work, drain."""

import asyncio
import os
import secrets
import socket

import structlog
from starlette.applications import Starlette

from common.entry import stop_or_end
from common.errors import ModelFault, StoreError
from common.http.listener import bind
from common.http.probes import probe_routes
from common.http.server import make_server
from common.settings import ProcessorSettings
from common.store.queue import Queue
from common.store.session import Session
from common.tracing import Tracing
from processor.model.process import ModelProcess
from processor.worker import Worker

log = structlog.get_logger("foretell")

EXIT_S = 2.0  # of DRAIN_S, left for leaving the group and ending the model processes


class Processor:
    """What one processor has. `session.name` is new at every start: it is a consumer, and consumers do not come back."""

    def __init__(self, settings: ProcessorSettings, tracing: Tracing) -> None:
        self.settings = settings
        self.tracing = tracing
        self.session = Session.from_settings(
            settings, name=f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(4)}"
        )
        self.queue = Queue(self.session)
        self.models = [
            ModelProcess(settings.model, predict_timeout_s=settings.predict_timeout_s)
            for _ in range(settings.model_processes)
        ]
        self.worker: Worker | None = None

    async def readiness(self) -> str | None:
        """None, or one sentence why no prediction can be run now. Raises ForetellError for Redis."""
        if self.worker is None:
            return "The model is loading."
        if self.worker.stopping:
            return "This processor is stopping."
        await self.queue.ring()
        return None


async def serve(settings: ProcessorSettings, stop: asyncio.Event) -> None:
    """Run until `stop`, then drain within DRAIN_S.

    Raises StartFault for a taken port, ModelFault for a model that cannot be served, StoreMisconfigured.
    """
    listener = bind(settings.host, settings.probe_port, variable="PROBE_PORT")
    processor = Processor(settings, Tracing.from_environment("processor"))
    probes = make_server(Starlette(routes=probe_routes(processor.readiness)))
    async with asyncio.TaskGroup() as group:
        group.create_task(probes.serve(sockets=[listener]), name="probes")
        working = group.create_task(_work(stop, processor), name="worker")
        try:
            await stop_or_end(stop, working)
            if processor.worker and not working.done():
                await _drain(processor.worker, settings.drain_s)
            working.cancel()
            await asyncio.wait({working})
        finally:
            await asyncio.gather(*(model.stop() for model in processor.models))
            await processor.session.aclose()
            probes.stop(within_s=1.0)
            processor.tracing.close()
    log.info("processor stopped")


async def _work(stop: asyncio.Event, processor: Processor) -> None:
    try:
        async with asyncio.TaskGroup() as group:
            for model in processor.models:
                group.create_task(model.start(), name="load the model")
    except* ModelFault:
        if not stop.is_set():
            raise
        # who stops us may have stopped the model process too, before it knew how to take that
    if await processor.queue.prepare_when_up(stop):
        worker = Worker(processor.session, processor.models, processor.settings, processor.tracing)
        processor.worker = worker
        log.info("processor works", model=processor.settings.model, name=processor.session.name)
        await worker.run()


async def _drain(worker: Worker, drain_s: float) -> None:
    try:
        await worker.drain(max(0.1, drain_s - EXIT_S))
    except StoreError as error:
        log.warning("could not give back what is in hand: its leases will run out", error=str(error))
