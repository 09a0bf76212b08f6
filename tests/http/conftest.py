"""Everything here runs on uvloop, as the services do."""

import asyncio
from collections.abc import Callable, Mapping

import uvloop

from tests.services import services, start_gateway, start_processor

__all__ = ["services", "start_gateway", "start_processor"]


def pytest_asyncio_loop_factories() -> Mapping[str, Callable[[], asyncio.AbstractEventLoop]]:
    return {"uvloop": uvloop.new_event_loop}
