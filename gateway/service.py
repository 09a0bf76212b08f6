"""The life of a gateway process: serve the probes, wait for Redis, hear, take predictions, drain."""

import asyncio
import signal
import socket

import structlog

from common.server import bind, make_server
from common.settings import GatewaySettings
from gateway.app import make_app
from gateway.gateway import Gateway

log = structlog.get_logger("foretell")

ANSWER_S = 1.0  # of DRAIN_S, left to tell those who still wait where to read their result


async def serve(settings: GatewaySettings) -> None:
    """Run until SIGTERM or SIGINT, then drain within DRAIN_S.

    Raises StartFault for a taken port, StoreMisconfigured if the server cannot keep our promises.
    """
    listener = bind(settings.host, settings.port, variable="PORT")
    gateway = Gateway(settings)
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        async with asyncio.TaskGroup() as group:
            hearing = group.create_task(_hear(stop, gateway), name="relay")
            await _serve_until(stop, gateway, listener)
            hearing.cancel()
    finally:
        await gateway.store.aclose()


async def _hear(stop: asyncio.Event, gateway: Gateway) -> None:
    """Wait for the server, then hear announcements; predictions are taken from the first moment that works."""
    if await gateway.store.prepare_when_up(stop):
        async with asyncio.TaskGroup() as group:
            group.create_task(gateway.relay.run(), name="relay")
            await gateway.relay.connected.wait()
            gateway.started = True


async def _serve_until(stop: asyncio.Event, gateway: Gateway, listener: socket.socket) -> None:
    drain_s = gateway.settings.drain_s
    server = make_server(make_app(gateway), drain_s=drain_s)
    serving = asyncio.create_task(server.serve(sockets=[listener]), name="server")
    stopping = asyncio.create_task(stop.wait(), name="stop")
    log.info("gateway serves", host=gateway.settings.host, port=listener.getsockname()[1])
    await asyncio.wait({serving, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    gateway.draining = server.should_exit = True
    asyncio.get_running_loop().call_later(max(0.0, drain_s - ANSWER_S), gateway.relay.stop)
    await serving
    log.info("gateway stopped")
