"""The services under chaos are the real ones; short leases, so that what a dead processor held is taken over soon."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.services import Services, running_services, services, start_gateway, start_processor
from tools.embedded_server import EmbeddedServer

__all__ = ["services", "start_gateway", "start_processor"]


@pytest.fixture
def world(own: EmbeddedServer, tmp_path: Path, partitions: int) -> Iterator[Services]:
    """Services on `own`, a server that the test makes."""
    with running_services(own.url, tmp_path, partitions=partitions) as services:
        yield services
