"""The life of a gateway process: serve the probes, wait for Redis, hear, take predictions, drain."""

import asyncio

import structlog

from common.entry import open_files_limit, stop_or_end
from common.http.listener import bind
from common.http.server import Server, make_server
from common.settings import GatewaySettings
from common.tracing import Tracing
from gateway.app import make_app
from gateway.gateway import Gateway

log = structlog.get_logger("foretell")

ANSWER_S = 1.0  # of DRAIN_S, left to tell those who still wait where to read their result
EXIT_S = 0.3  # of it, left to close what is still open then
FILES = 200  # beside clients: connections to Redis, listeners, logs


async def serve(settings: GatewaySettings, stop: asyncio.Event) -> None:
    """Run until `stop`, then drain within DRAIN_S.

    Raises StartFault for a taken port, StoreMisconfigured if the server cannot keep our promises.
    """
    listener = bind(settings.host, settings.port, variable="PORT")
    if open_files_limit() < settings.max_connections + FILES:
        log.warning("the limit of open files is below what MAX_CONNECTIONS needs", limit=open_files_limit())
    gateway = Gateway(settings, Tracing.from_environment("gateway"))
    server = make_server(make_app(gateway), max_connections=settings.max_connections)
    try:
        async with asyncio.TaskGroup() as group:
            hearing = group.create_task(_hear(stop, gateway), name="relay")
            serving = group.create_task(server.serve(sockets=[listener]), name="server")
            log.info("gateway serves", host=settings.host, port=listener.getsockname()[1])
            await stop_or_end(stop, serving)
            await _drain(gateway, server, serving)
            hearing.cancel()
    finally:
        await gateway.json.aclose()
        await gateway.session.aclose()
        gateway.tracing.close()
    log.info("gateway stopped")


async def _hear(stop: asyncio.Event, gateway: Gateway) -> None:
    """Wait for the server, then hear announcements; predictions are taken from the first moment that works."""
    if await gateway.queue.prepare_when_up(stop):
        async with asyncio.TaskGroup() as group:
            group.create_task(gateway.relay.run(), name="relay")
            group.create_task(gateway.clock.run(), name="alarms")
            group.create_task(gateway.fitness.run(), name="fitness")
            await gateway.relay.connected.wait()
            gateway.started = True


async def _drain(gateway: Gateway, server: Server, serving: asyncio.Task[None]) -> None:
    """Readiness is red at once, while the listener still accepts: who balances the load needs a moment to see it.
    Then only what has begun is ended, and who still waits at the end is told where to read the result."""
    drain_s = gateway.settings.drain_s
    now = asyncio.get_running_loop().time
    until = now() + drain_s
    gateway.drain()
    server.answer_last()
    await asyncio.wait({serving}, timeout=min(gateway.settings.shutdown_delay_s, drain_s / 2))
    server.stop(within_s=until - EXIT_S - now())
    await asyncio.wait({serving}, timeout=until - ANSWER_S - now())
    while not serving.done():
        gateway.relay.stop()  # again and again: a request whose body came slowly may begin to wait now
        await asyncio.wait({serving}, timeout=0.1)
