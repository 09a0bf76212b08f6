"""Gateways' and processors' job stores on the test's server. Tests here run on Valkey and, where there is one, on
the oldest Redis we support."""

import re
import shutil
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

import pytest
from redis import Redis

from common.store.queue import MIN_VERSION
from tests.conftest import PUNCTUAL
from tests.store.store import Processor, Store
from tools.embedded_server import EmbeddedServer


@pytest.fixture(scope="session")
def installed_redis(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    """The distribution's own redis-server."""
    binary = shutil.which("redis-server")
    if binary is None:
        pytest.skip("no redis-server on the PATH")
    words = subprocess.run([binary, "--version"], capture_output=True, text=True, check=True).stdout
    version = re.search(r"v=(\d+)\.(\d+)", words)
    if version is None or tuple(map(int, version.groups())) < MIN_VERSION:
        pytest.skip(f"the redis-server on the PATH is too old: {words}")
    with EmbeddedServer(tmp_path_factory.mktemp("redis"), aof=False, extra=PUNCTUAL, binary=binary) as redis:
        yield redis


@pytest.fixture(params=["valkey", "redis"])
def server(request: pytest.FixtureRequest, server: EmbeddedServer) -> EmbeddedServer:
    return server if request.param == "valkey" else request.getfixturevalue("installed_redis")


@pytest.fixture
def raw(redis_url: str) -> Iterator[Any]:
    """A plain client, to look at the server and to do to it what others might."""
    with Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture(autouse=True)
def _short_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """A claim that finds nothing comes back at once."""
    monkeypatch.setattr("common.store.claims.BLOCK_S", 0.001)


MakeStore = Callable[..., Store]


@pytest.fixture
async def open_store(partitions: int) -> AsyncIterator[MakeStore]:
    """Job stores on any server, closed after the test: `open_store(url, name=...)`."""
    stores = []

    def make(url: str, **settings: Any) -> Store:
        stores.append(Store(url, **{"partitions": partitions} | settings))
        return stores[-1]

    yield make
    for store in stores:
        await store.aclose()


@pytest.fixture
def make_store(redis_url: str, open_store: MakeStore) -> MakeStore:
    """Job stores on the test's server: `make_store(name)`."""
    return lambda name, **settings: open_store(redis_url, name=name, **settings)


@pytest.fixture
async def gateway(make_store: MakeStore) -> Store:
    store = make_store("gate")
    await store.queue.prepare()
    return store


@pytest.fixture
def a(gateway: Store, make_store: MakeStore) -> Processor:
    return Processor(make_store("proc-a"))


@pytest.fixture
def b(gateway: Store, make_store: MakeStore) -> Processor:
    return Processor(make_store("proc-b"))
