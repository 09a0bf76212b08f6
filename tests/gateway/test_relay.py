"""The relay tells everybody who waits, whatever happens to its connection. A real store, real cuts."""

import asyncio

import pytest

from common.errors import StoreUnavailable
from common.store import keys
from common.store.claims import Outcome
from common.store.states import JobState, Status
from gateway import relay as relay_module
from gateway.relay import Notice
from tests.conftest import eventually
from tests.gateway.world import Proxy, World


@pytest.fixture
def no_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only a new subscription makes the relay look, and a silent one is given up soon. Ask for it before `world`."""
    monkeypatch.setattr(relay_module, "SWEEP_S", 3600.0)
    monkeypatch.setattr("common.store.connections.subscription.Subscription.PING_S", 0.2)


class Listener:
    """Keeps what it is told; `async with` waits for nothing, but leaves in the end."""

    def __init__(
        self, world: World, prediction_id: str, *, known: bool = True, changes: bool = False
    ) -> None:
        self.told: list[JobState | Notice] = []
        self._relay = world.relay
        self._id = prediction_id
        self._waiting = self._relay.add(prediction_id, self._notify, changes=changes)
        self._waiting.known = known

    def _notify(self, news: JobState | Notice) -> None:
        self.told.append(news)

    def __enter__(self) -> "Listener":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._relay.remove(self._id, self._notify)

    async def final(self) -> JobState | Notice:
        """The first thing it was told that ends the wait."""

        def ended() -> list[JobState | Notice]:
            return [news for news in self.told if isinstance(news, Notice) or news.final]

        return (await eventually(ended, 30))[0]

    async def result(self) -> bytes:
        news = await self.final()
        assert isinstance(news, JobState)
        return news.payload


class TestHearing:
    async def test_all_who_wait_for_one_are_told(self, world: World) -> None:
        prediction_id = await world.submit()
        with Listener(world, prediction_id) as one, Listener(world, prediction_id) as other:
            await world.finish()
            assert await one.result() == await other.result() == b'"done"'

    async def test_who_left_is_not_told(self, world: World) -> None:
        prediction_id = await world.submit()
        with Listener(world, prediction_id) as one:
            with Listener(world, prediction_id) as other:
                pass
            assert world.relay.waits_for(prediction_id)
            await world.finish()
            assert await one.result() == b'"done"'
        assert other.told == []
        assert not world.relay.waits_for(prediction_id)

    async def test_changes_come_in_order(self, world: World) -> None:
        prediction_id = await world.submit(watch=False)
        with Listener(world, prediction_id, changes=True) as listener:
            await world.jobs.watch(prediction_id, changes=True)
            await world.finish()
            await listener.final()
        states = [news.status for news in listener.told if isinstance(news, JobState)]
        assert states == [Status.PROCESSING, Status.SUCCEEDED]

    async def test_a_result_too_large_to_travel_is_fetched(self, world: World) -> None:
        large = b'"' + b"x" * 100_000 + b'"'
        prediction_id = await world.submit()
        with Listener(world, prediction_id) as listener:
            await world.finish(Outcome(Status.SUCCEEDED, large))
            assert await listener.result() == large

    async def test_thousands_at_once(self, world: World) -> None:
        ids = await asyncio.gather(*(world.submit() for _ in range(2000)))
        listeners = [Listener(world, prediction_id) for prediction_id in ids]
        while (await world.queue.ring()).unfinished:
            await world.finish()
        for listener in listeners:
            assert await listener.result() == b'"done"'
            listener.__exit__()


class TestDeafness:
    @pytest.mark.usefixtures("no_sweep")
    async def test_a_cut_subscription(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(relay_module, "RECONNECT_S", 0.5)
        ids = [await world.submit() for _ in range(3)]
        listeners = [Listener(world, prediction_id) for prediction_id in ids]
        world.cut()
        await eventually(lambda: not world.relay.connected.is_set())
        assert await world.gateway.readiness() is not None
        await world.finish()
        for listener in listeners:
            assert await listener.result() == b'"done"'
            listener.__exit__()
        assert await world.gateway.readiness() is None

    async def test_cut_again_and_again(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(relay_module, "RECONNECT_S", 0.01)
        for _ in range(10):
            prediction_id = await world.submit()
            with Listener(world, prediction_id) as listener:
                world.cut()
                await world.finish()
                assert await listener.result() == b'"done"'

    @pytest.mark.usefixtures("no_sweep")
    async def test_a_connection_that_is_silent_and_open(
        self, world: World, proxy: Proxy, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        prediction_id = await world.submit()
        monkeypatch.setattr("common.store.connections.link.COMMAND_TIMEOUT_S", 0.5)  # of links not made yet
        with Listener(world, prediction_id) as listener:
            proxy.mute()
            await world.finish()
            assert await listener.result() == b'"done"'

    async def test_the_sweep_finds_what_nobody_announced(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(relay_module, "SWEEP_S", 0.2)
        first = await world.submit()
        with Listener(world, first) as listener:  # the sweep that is under way still has the old period
            world.relay._look_up_soon([first])
            await world.finish()
            await listener.final()
        silent = await world.submit(watch=False)  # nobody is told of this one
        with Listener(world, silent) as listener:
            await world.finish()
            assert await listener.result() == b'"done"'

    async def test_a_server_that_is_away_keeps_only_its_own_waiters_waiting(
        self, world: World, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        watch, away = world.jobs.watch, next(world.gateway.ids)

        def watch_others(prediction_id: str, *, changes: bool = False) -> asyncio.Future[JobState | None]:
            found = watch(prediction_id, changes=changes)
            if prediction_id == away:
                found = asyncio.get_running_loop().create_future()
                found.set_exception(StoreUnavailable("its server is away"))
            return found

        monkeypatch.setattr(world.jobs, "watch", watch_others)
        silent = await world.submit(watch=False)  # nobody is told of this one
        with Listener(world, away) as waiting, Listener(world, silent) as listener:
            await world.finish()
            world.cut()
            assert await listener.result() == b'"done"'
            assert waiting.told == []


class TestEndings:
    async def test_lost_with_the_servers_data(self, world: World) -> None:
        prediction_id = await world.submit()
        with Listener(world, prediction_id) as listener:
            world.raw.flushall()
            world.cut()  # a server that comes back empty has hung up
            assert await listener.final() is Notice.LOST

    async def test_one_that_is_not_yet_submitted_is_not_lost(self, world: World) -> None:
        early, known = next(world.gateway.ids), next(world.gateway.ids)
        with Listener(world, early, known=False) as not_yet, Listener(world, known) as lost:
            world.cut()
            assert await lost.final() is Notice.LOST
            assert not_yet.told == []

    async def test_a_gateway_that_stops_tells_all(self, world: World) -> None:
        with Listener(world, next(world.gateway.ids), known=False) as listener:
            world.relay.stop()
            assert listener.told == [Notice.STOPPING]


def test_ids_are_what_the_relay_is_asked_for() -> None:
    """Everything that may wait has passed `parse_id`: one id has one spelling."""
    prediction_id = next(keys.new_ids(1))
    assert keys.parse_id(prediction_id.upper()) == prediction_id
