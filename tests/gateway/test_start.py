"""A gateway that starts before its Redis: its probes tell the two apart, and nobody has to start it again."""

from pathlib import Path

import httpx2
import pytest

from tests.conftest import wait_until
from tests.services import running_services
from tools.embedded_server import EmbeddedServer

pytestmark = pytest.mark.slow


def test_it_waits_for_redis_alive_and_not_ready(tmp_path: Path, partitions: int) -> None:
    server = EmbeddedServer(tmp_path / "server", aof=False)
    with running_services(server.url, tmp_path, partitions=partitions) as services:
        gateway = services.gateway(wait=False)
        wait_until(lambda: gateway.answers("/livez") == 200)
        assert gateway.answers("/readyz") == 503
        answer = httpx2.post(f"{gateway.url}/predict", json={"input": 1})
        assert answer.status_code == 503
        assert answer.headers["Retry-After"]
        with server:
            services.processor()
            gateway.ready()
            assert httpx2.post(f"{gateway.url}/predict", json={"input": 1}).json() == {
                "input": 1,
                "result": 1,
            }
            services.stop()


def test_it_can_be_stopped_while_it_waits(tmp_path: Path, partitions: int) -> None:
    server = EmbeddedServer(tmp_path / "server", aof=False)
    with running_services(server.url, tmp_path, partitions=partitions) as services:
        gateway = services.gateway(wait=False)
        wait_until(lambda: gateway.answers("/livez") == 200)
        gateway.stop()
