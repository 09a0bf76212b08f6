"""Everything here runs on uvloop, as the services do."""

import asyncio
from collections.abc import Callable, Mapping

import uvloop

from tests.gateway.world import proxy, raw, world
from tests.services import services, start_gateway, start_processor

__all__ = ["proxy", "raw", "services", "start_gateway", "start_processor", "world"]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}
