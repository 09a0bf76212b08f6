"""What containers ask themselves."""

import subprocess
import sys
from collections.abc import Callable

import pytest

from tests.conftest import wait_until
from tests.services import ECHO, ROOT, Service
from tools.ports import free_port


def ask(name: str, path: str, **environment: str) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "common.http.healthcheck", name, path]
    return subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)


def test_it_is_well_if_the_service_says_so(
    start_gateway: Callable[..., Service], start_processor: Callable[..., Service]
) -> None:
    for service, variable in ((start_gateway(), "PORT"), (start_processor(ECHO), "PROBE_PORT")):
        for path in ("/livez", "/readyz"):
            done = ask(service.name, path, **{variable: str(service.port)})
            assert (done.returncode, done.stdout) == (0, "HTTP/1.1 200 OK\n")


def test_a_gateway_without_redis_is_alive_and_not_ready(start_gateway: Callable[..., Service]) -> None:
    gateway = start_gateway(REDIS_URL="redis://127.0.0.1:1/0", wait=False)
    wait_until(lambda: gateway.answers("/livez") == 200, 30)
    assert ask("gateway", "/livez", PORT=str(gateway.port)).returncode == 0
    assert ask("gateway", "/readyz", PORT=str(gateway.port)).returncode == 1


def test_what_it_says_need_not_be_written(start_gateway: Callable[..., Service]) -> None:
    """A full disk makes nobody unwell."""
    command = [sys.executable, "-m", "common.http.healthcheck", "gateway", "/livez"]
    with open("/dev/full", "w") as full:
        port = str(start_gateway().port)
        assert subprocess.run(command, cwd=ROOT, env={"PORT": port}, stdout=full, timeout=60).returncode == 0


@pytest.mark.parametrize("name", ["gateway", "processor"])
def test_where_nobody_answers_it_says_so(name: str) -> None:
    port = str(free_port())
    done = ask(name, "/livez", PORT=port, PROBE_PORT=port)
    assert done.returncode == 1
    assert f"{name} does not answer at port {port}" in done.stdout
