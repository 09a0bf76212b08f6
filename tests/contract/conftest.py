"""The contract, seen from outside.

    BASE_URL=http://host:port pytest tests/contract

asks that deployment, whatever its model, as long as it takes a text: these are the tests that use `api`. All others
need a model that fails or waits when told to, or a server that goes away: they start services of their own, and are
skipped with BASE_URL. Without it, `api` is the default model, here.
"""

import json
import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from tests.conftest import PUNCTUAL, leftovers, wait_until
from tests.contract.api import Api
from tests.services import (
    ECHO,
    LANGUAGE,
    Service,
    Services,
    running_services,
    services,
    start_gateway,
    start_processor,
)
from tools.embedded_server import EmbeddedServer

__all__ = ["services", "start_gateway", "start_processor"]

BASE_URL = os.environ.get("BASE_URL")
MODELS = Path(__file__).with_name("models.py")
PATIENT = f"{MODELS}:Patient"
PATIENT_BATCH = f"{MODELS}:PatientBatch"
PATIENT_ASYNC = f"{MODELS}:PatientAsync"

IDLE_BODY_BYTES = 10_000

#: What no gateway may ever log: an answer that nobody planned.
STUMBLES = ("unexpected error", "Exception in ASGI application", "Traceback")

_shared: list[Services] = []


def pytest_runtest_setup(item: Any) -> None:
    if BASE_URL and "api" not in item.fixturenames:
        pytest.skip("needs services of its own, BASE_URL is asked with the others")


@pytest.fixture(autouse=True)
def no_stumble(request: pytest.FixtureRequest) -> Iterator[None]:
    """Shows what the services logged if the test fails, and fails it if a gateway stumbled."""
    own = [request.getfixturevalue("services")] if "services" in request.fixturenames else []
    for running in (*_shared, *own):
        running.forget_logs()
    yield
    stumbled = [
        word
        for running in (*_shared, *own)
        for name, log in running.show_logs()
        for word in STUMBLES
        if name == "gateway" and word in log
    ]
    assert not stumbled, f"a gateway logged {stumbled[0]!r}"


class Local(Api):
    """A deployment of ours: tests may add to it."""

    def __init__(self, gateway: Service, services: Services) -> None:
        super().__init__(gateway.url)
        self.gateway = gateway
        self.services = services

    def id_of(self, value: Any) -> str:
        """The prediction of a synchronous client that has no answer yet; nobody can ask for it over HTTP."""
        text = json.dumps(value).encode()

        def find() -> str | None:
            with Redis.from_url(self.services.redis_url) as client:
                for key in client.scan_iter("*:job:*", count=1000):
                    if client.hget(key, "input") == text:
                        return str(key.decode().rpartition(":")[2])
            return None

        return str(wait_until(find))


@contextmanager
def local(services: Services, *, model: str | None, **settings: Any) -> Iterator[Local]:
    """One gateway, and one processor unless `model` is None, started at the same time."""
    started = [services.gateway(wait=False, **settings)]
    if model:
        started.append(services.processor(model, wait=False, **settings))
    for service in started:
        service.ready()
    with closing(Local(started[0], services)) as api:
        yield api


@contextmanager
def shared(folder: Path, partitions: int, *, model: str | None, **settings: Any) -> Iterator[Local]:
    """A deployment for many tests, on a server of its own: the session's is emptied between tests."""
    with EmbeddedServer(folder / "server", aof=False, extra=PUNCTUAL) as server:
        with running_services(server.url, folder, partitions=partitions) as services:
            _shared.append(services)
            with local(services, model=model, **settings) as api:
                yield api
            _shared.remove(services)
        if model:
            with Redis.from_url(server.url, decode_responses=True) as client:
                assert not leftovers(client)


@pytest.fixture(scope="session")
def api(partitions: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """The deployment under test: it takes a text, nothing else is known of it."""
    if BASE_URL:
        with closing(Api(BASE_URL)) as api:
            yield api
        return
    with shared(tmp_path_factory.mktemp("language"), partitions, model=LANGUAGE) as api:
        yield api


@pytest.fixture(scope="session")
def echo(partitions: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """Its model returns what it is given."""
    with shared(tmp_path_factory.mktemp("echo"), partitions, model=ECHO) as api:
        yield api


@pytest.fixture(scope="session")
def moody(partitions: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """Its model does what the input says; see models.py."""
    with shared(tmp_path_factory.mktemp("moody"), partitions, model=PATIENT, MAX_ATTEMPTS=2) as api:
        yield api


@pytest.fixture(scope="session")
def idle(partitions: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Local]:
    """It has no processor: what it accepts stays queued. Its limit for bodies is low."""
    with shared(
        tmp_path_factory.mktemp("idle"), partitions, model=None, MAX_BODY_BYTES=IDLE_BODY_BYTES
    ) as api:
        yield api


@pytest.fixture
def start(services: Services) -> Iterator[Callable[..., Local]]:
    """`start(model=PATIENT, MAX_QUEUE=3)`: a deployment for this test alone; again: one more gateway on its server."""
    with ExitStack() as stack:

        def start_one(*, model: str | None = None, **settings: Any) -> Local:
            return stack.enter_context(local(services, model=model, **settings))

        yield start_one
