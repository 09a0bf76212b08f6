"""The relay tells everybody who waits, whatever happens to its connection. A real store, real cuts."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from redis import Redis

from common.settings import GatewaySettings
from common.store import keys
from common.store.claims import Outcome
from common.store.jobs import Submission
from common.store.states import JobState, Status
from common.tracing import Tracing
from gateway import relay as relay_module
from gateway.endpoints.predict import FinalState
from gateway.gateway import Gateway
from gateway.relay import Ending, Relay
from tests.conftest import eventually
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


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.store.claims.BLOCK_S", 0.01)


@pytest.fixture
def no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a new subscription makes the relay look, and a silent one is given up soon. Ask for it before `world`."""
    monkeypatch.setattr(relay_module, "SWEEP_S", 3600.0)
    monkeypatch.setattr("common.store.connections.Subscription.PING_S", 0.2)


@pytest.fixture
def raw(redis_url: str) -> Iterator[Any]:
    with Redis.from_url(redis_url, decode_responses=True) as client:
        yield client


@pytest.fixture
async def proxy(redis_url: str, tmp_path: Path) -> AsyncIterator[Proxy]:
    async with Proxy(redis_url, tmp_path / "p.sock") as proxy:
        yield proxy


@pytest.fixture
async def world(redis_url: str, raw: Any, proxy: Proxy, partitions: int) -> AsyncIterator[World]:
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


class Waiter:
    """Keeps what it is told; `async with` waits for nothing, but leaves in the end."""

    def __init__(
        self, world: World, prediction_id: str, *, known: bool = True, changes: bool = False
    ) -> None:
        self.told: list[JobState | Ending] = []
        self._relay = world.relay
        self._id = prediction_id
        self._waiting = self._relay.add(prediction_id, self._tell, changes=changes)
        self._waiting.known = known

    def _tell(self, news: JobState | Ending) -> None:
        self.told.append(news)

    def __enter__(self) -> "Waiter":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._relay.remove(self._id, self._tell)

    async def final(self) -> JobState | Ending:
        """The first thing it was told that ends the wait."""

        def ended() -> list[JobState | Ending]:
            return [news for news in self.told if isinstance(news, Ending) or news.final]

        return (await eventually(ended, 30))[0]

    async def result(self) -> bytes:
        news = await self.final()
        assert isinstance(news, JobState)
        return news.payload


class TestHearing:
    async def test_all_who_wait_for_one_are_told(self, world: World) -> None:
        prediction_id = await world.submit()
        with Waiter(world, prediction_id) as one, Waiter(world, prediction_id) as other:
            await world.finish()
            assert await one.result() == await other.result() == b'"done"'

    async def test_who_left_is_not_told(self, world: World) -> None:
        prediction_id = await world.submit()
        with Waiter(world, prediction_id) as one:
            with Waiter(world, prediction_id) as other:
                pass
            assert world.relay.waits_for(prediction_id)
            await world.finish()
            assert await one.result() == b'"done"'
        assert other.told == []
        assert not world.relay.waits_for(prediction_id)

    async def test_changes_come_in_order(self, world: World) -> None:
        prediction_id = await world.submit(watch=False)
        with Waiter(world, prediction_id, changes=True) as waiter:
            await world.jobs.watch(prediction_id, changes=True)
            await world.finish()
            await waiter.final()
        states = [news.status for news in waiter.told if isinstance(news, JobState)]
        assert states == [Status.PROCESSING, Status.SUCCEEDED]

    async def test_a_result_too_large_to_travel_is_fetched(self, world: World) -> None:
        large = b'"' + b"x" * 100_000 + b'"'
        prediction_id = await world.submit()
        with Waiter(world, prediction_id) as waiter:
            await world.finish(Outcome(Status.SUCCEEDED, large))
            assert await waiter.result() == large

    async def test_thousands_at_once(self, world: World) -> None:
        ids = await asyncio.gather(*(world.submit() for _ in range(2000)))
        waiters = [Waiter(world, prediction_id) for prediction_id in ids]
        while (await world.queue.ring()).unfinished:
            await world.finish()
        for waiter in waiters:
            assert await waiter.result() == b'"done"'
            waiter.__exit__()


class TestDeafness:
    @pytest.mark.usefixtures("no_sweep")
    async def test_a_cut_subscription(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(relay_module, "RECONNECT_S", 0.5)
        ids = [await world.submit() for _ in range(3)]
        waiters = [Waiter(world, prediction_id) for prediction_id in ids]
        world.cut()
        await eventually(lambda: not world.relay.connected.is_set())
        assert await world.gateway.readiness() is not None
        await world.finish()
        for waiter in waiters:
            assert await waiter.result() == b'"done"'
            waiter.__exit__()
        assert await world.gateway.readiness() is None

    async def test_cut_again_and_again(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(relay_module, "RECONNECT_S", 0.01)
        for _ in range(10):
            prediction_id = await world.submit()
            with Waiter(world, prediction_id) as waiter:
                world.cut()
                await world.finish()
                assert await waiter.result() == b'"done"'

    @pytest.mark.usefixtures("no_sweep")
    async def test_a_connection_that_is_silent_and_open(
        self, world: World, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prediction_id = await world.submit()
        monkeypatch.setattr("common.store.connections.COMMAND_TIMEOUT_S", 0.5)  # of links not made yet
        with Waiter(world, prediction_id) as waiter:
            proxy.mute()
            await world.finish()
            assert await waiter.result() == b'"done"'

    async def test_the_sweep_finds_what_nobody_announced(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(relay_module, "SWEEP_S", 0.2)
        first = await world.submit()
        with Waiter(world, first) as waiter:  # the sweep that is under way still has the old period
            world.relay._look_up_soon([first])
            await world.finish()
            await waiter.final()
        silent = await world.submit(watch=False)  # nobody is told of this one
        with Waiter(world, silent) as waiter:
            await world.finish()
            assert await waiter.result() == b'"done"'


class TestEndings:
    async def test_lost_with_the_servers_data(self, world: World) -> None:
        prediction_id = await world.submit()
        with Waiter(world, prediction_id) as waiter:
            world.raw.flushall()
            world.cut()  # a server that comes back empty has hung up
            assert await waiter.final() is Ending.LOST

    async def test_one_that_is_not_yet_submitted_is_not_lost(self, world: World) -> None:
        early, known = next(world.gateway.ids), next(world.gateway.ids)
        with Waiter(world, early, known=False) as not_yet, Waiter(world, known) as lost:
            world.cut()
            assert await lost.final() is Ending.LOST
            assert not_yet.told == []

    async def test_a_gateway_that_stops_tells_all(self, world: World) -> None:
        with Waiter(world, next(world.gateway.ids), known=False) as waiter:
            world.relay.stop()
            assert waiter.told == [Ending.STOPPING]


class TestFinalState:
    async def test_it_leaves_nothing_behind(self, world: World) -> None:
        """However the wait ends; the fixture looks."""
        prediction_id = await world.submit()
        with FinalState(world.gateway, prediction_id) as final:
            assert await final.wait(0.01) is None
        with FinalState(world.gateway, prediction_id) as final:
            waiting = asyncio.create_task(final.wait(3600))
            await asyncio.sleep(0)
            waiting.cancel()
        with pytest.raises(ZeroDivisionError), FinalState(world.gateway, prediction_id):
            raise ZeroDivisionError
        with FinalState(world.gateway, prediction_id) as final:
            await world.finish()
            news = await final.wait(30)
            assert isinstance(news, JobState)
            assert news.payload == b'"done"'

    async def test_a_result_between_submit_and_wait_is_kept(self, world: World) -> None:
        with FinalState(world.gateway, prediction_id := await world.submit()) as final:
            await world.finish()
            await eventually(lambda: final._news)
            assert await final.wait(0) is not None
        assert not world.relay.waits_for(prediction_id)

    async def test_a_client_that_hangs_up_is_seen(self, world: World) -> None:
        prediction_id = await world.submit()

        async def hangs_up() -> dict[str, str]:
            return {"type": "http.disconnect"}

        async def stays() -> dict[str, str]:
            await asyncio.sleep(3600)
            raise AssertionError

        with FinalState(world.gateway, prediction_id) as final:
            assert await final.wait_while_connected(hangs_up, 3600) is False
            assert await final.wait_while_connected(stays, 0.01) is None
            await world.finish()
            assert isinstance(await final.wait_while_connected(stays, 30), JobState)


def test_ids_are_what_the_relay_is_asked_for() -> None:
    """Everything that may wait has passed `parse_id`: one id has one spelling."""
    prediction_id = next(keys.new_ids(1))
    assert keys.parse_id(prediction_id.upper()) == prediction_id
