"""A relay at work in the test's own process, on a real store whose connections can be cut or fall silent.

`world`, and `proxy` and `raw` that it stands on, are fixtures; import them into a conftest.
"""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from redis import Redis

from common.settings import GatewaySettings
from common.store.claims import Outcome
from common.store.jobs import Submission
from common.store.states import Status
from common.tracing import Tracing
from gateway.gateway import Gateway
from gateway.relay import Relay
from tests.store.store import Store

DONE = Outcome(Status.SUCCEEDED, b'"done"')


class Proxy:
    """Stands between a client and the server, and can fall silent without hanging up."""

    def __init__(self, server_url: str, path: Path) -> None:
        self._server = unquote(urlsplit(server_url).path)
        self._path = path
        self._open: list[dict[str, bool]] = []
        self._pumps: set[asyncio.Task[None]] = set()
        self.url = f"unix://{path}?db=0"

    async def __aenter__(self) -> "Proxy":
        self._listener = await asyncio.start_unix_server(self._connected, self._path)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        self._listener.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)

    def mute(self) -> None:
        """From now on nothing comes through the connections of today; new ones are fine."""
        for connection in self._open:
            connection["muted"] = True

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server_reader, server_writer = await asyncio.open_unix_connection(self._server)
        connection = {"muted": False}
        self._open.append(connection)
        for source, sink in ((reader, server_writer), (server_reader, writer)):
            self._pumps.add(asyncio.create_task(self._pump(source, sink, connection)))

    @staticmethod
    async def _pump(
        source: asyncio.StreamReader, sink: asyncio.StreamWriter, connection: dict[str, bool]
    ) -> None:
        try:
            while data := await source.read(65536):
                if not connection["muted"]:
                    sink.write(data)
        finally:
            sink.close()


class World:
    """A relay at work, and a processor beside it."""

    def __init__(self, gateway: Gateway, processor: Store, raw: Any) -> None:
        self.gateway = gateway
        self.jobs, self.queue = gateway.jobs, gateway.queue
        self.relay: Relay = gateway.relay
        self.processor = processor
        self.raw = raw
        self._readers = processor.claims.readers()

    async def submit(self, *, watch: bool = True) -> str:
        prediction_id = next(self.gateway.ids)
        assert (await self.jobs.submit(Submission(prediction_id, b"1", watch))).decision == "queued"
        return prediction_id

    async def finish(self, outcome: Outcome = DONE) -> None:
        """All that is queued."""
        for reader in self._readers:
            jobs = await self.processor.claims.claim(reader, 100)
            if jobs:
                await self.processor.claims.finish([(job, outcome) for job in jobs])

    def cut(self) -> None:
        self.raw.client_kill_filter(_type="pubsub")


@pytest.fixture
def raw(redis_url: str) -> Iterator[Any]:
    with Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
async def proxy(redis_url: str, tmp_path: Path) -> AsyncIterator[Proxy]:
    async with Proxy(redis_url, tmp_path / "p.sock") as proxy:
        yield proxy


@pytest.fixture
async def world(
    redis_url: str, raw: Any, proxy: Proxy, partitions: int, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[World]:
    monkeypatch.setattr("common.store.claims.BLOCK_S", 0.01)
    gateway = Gateway(GatewaySettings(redis_url=proxy.url, partitions=partitions), Tracing())
    processor = Store(redis_url, name="processor", partitions=partitions)
    await processor.queue.prepare()
    running = asyncio.create_task(gateway.relay.run())
    await gateway.relay.connected.wait()
    gateway.started = True
    world = World(gateway, processor, raw)
    yield world
    assert world.relay._waiting == {}  # whoever waited has left nothing behind
    running.cancel()
    with suppress(asyncio.CancelledError):
        await running
    await processor.claims.leave()
    await processor.aclose()
    await gateway.session.aclose()
