"""`sweep`: What lost its place in the queue is queued again, and what is gone is counted no longer."""

from collections.abc import Callable
from typing import Any

import pytest

from common.store import keys
from common.store.jobs import Submission
from common.store.states import Status
from tests.store.conftest import MakeStore
from tests.store.life import DONE, SORRY, heard, new_id, submitted
from tests.store.store import Processor, Store

pytestmark = pytest.mark.leaves_jobs("a queue is damaged here")

STREAM, UNFINISHED, ALARMS = keys.jobs(0), keys.unfinished(0), f"{keys.tag(0)}:alarms:default"

Damage = Callable[[Any, str], object]


def _acknowledge(raw: Any, prediction_id: str) -> None:
    entry = raw.hget(keys.job(prediction_id, 1), "entry")
    raw.xreadgroup(keys.GROUP, "somebody", {STREAM: ">"}, count=100)
    raw.xack(STREAM, keys.GROUP, entry)


@pytest.fixture
def partitions() -> int:
    """One, unless a test asks for more: most look at its keys."""
    return 1


DAMAGES: dict[str, Damage] = {
    "the stream is deleted": lambda raw, _: raw.delete(STREAM),
    "the stream is trimmed": lambda raw, _: raw.xtrim(STREAM, maxlen=0, approximate=False),
    "its entry is deleted": lambda raw, i: raw.xdel(STREAM, raw.hget(keys.job(i, 1), "entry")),
    "its entry is acknowledged": _acknowledge,
    "the group is told to begin behind it": lambda raw, _: raw.xgroup_setid(STREAM, keys.GROUP, "$"),
    "the group is made again behind it": lambda raw, _: (
        raw.xgroup_destroy(STREAM, keys.GROUP),
        raw.xgroup_create(STREAM, keys.GROUP, "$"),
    ),
}


@pytest.fixture(params=DAMAGES.values(), ids=DAMAGES.keys())
def damage(request: pytest.FixtureRequest) -> Damage:
    return request.param


async def finished(processor: Processor, prediction_id: str) -> int:
    """It runs to its end here; returns the attempt."""
    await processor.store.queue.prepare()  # as a processor does that finds no group
    jobs = await processor.claim()
    assert [job.id for job in jobs] == [prediction_id]
    assert await processor.store.claims.finish([(jobs[0], DONE)]) == [True]
    return jobs[0].attempt


class TestPlace:
    async def test_a_job_that_waits_is_queued_again(
        self, gateway: Store, a: Processor, raw: Any, damage: Damage
    ) -> None:
        prediction_id = await submitted(gateway)
        damage(raw, prediction_id)
        assert await a.store.claims.sweep(silent_s=0.0) == 1
        assert await a.store.claims.sweep(silent_s=0.0) == 0
        assert await finished(a, prediction_id) == 1
        assert (await gateway.queue.ring()).unfinished == 0

    async def test_a_job_of_a_dead_processor_too_and_whoever_watches_is_told(
        self, gateway: Store, a: Processor, b: Processor, raw: Any, damage: Damage
    ) -> None:
        prediction_id = await submitted(gateway)
        job = await a.claim_one()
        await gateway.jobs.watch(prediction_id, changes=True)
        damage(raw, prediction_id)
        await gateway.queue.prepare()
        async with gateway.subscription() as subscription:
            if await b.store.claims.sweep(silent_s=0.0):
                ((told, state),) = await heard(subscription, 1)
                assert (told, state.status) == (prediction_id, Status.QUEUED)
        (again,) = await b.claim() or await b.reclaim()  # what is still pending is taken over as ever
        assert (again.id, again.attempt) == (prediction_id, 2)
        assert await a.store.claims.finish([(job, DONE)]) == [False]
        assert await b.store.claims.finish([(again, DONE)]) == [True]

    async def test_a_job_whose_processor_lives_stays_with_it(
        self, gateway: Store, a: Processor, b: Processor, raw: Any, damage: Damage
    ) -> None:
        prediction_id = await submitted(gateway)
        job = await a.claim_one()
        damage(raw, prediction_id)
        await gateway.queue.prepare()
        raw.hset(keys.job(prediction_id, 1), "started", 1)  # it takes long
        assert await a.store.claims.extend([job]) == []
        assert await b.store.claims.sweep(silent_s=60.0) == 0
        assert await a.store.claims.finish([(job, DONE)]) == [True]
        assert (await gateway.queue.ring()).unfinished == 0

    async def test_a_retry_whose_alarm_is_gone(self, gateway: Store, a: Processor, raw: Any) -> None:
        prediction_id = await submitted(gateway)
        await a.store.claims.retry([(await a.claim_one(), 3600.0)])
        assert await a.store.claims.sweep(silent_s=0.0) == 0
        raw.delete(ALARMS)
        assert await a.store.claims.sweep(silent_s=0.0) == 1
        assert await finished(a, prediction_id) == 2

    async def test_a_deadline_whose_alarm_is_gone(self, gateway: Store, a: Processor, raw: Any) -> None:
        prediction_id = new_id()
        await gateway.jobs.submit(Submission(prediction_id, b"1", deadline_us=60_000_000))
        due = raw.zscore(ALARMS, prediction_id)
        raw.delete(ALARMS)
        assert await a.store.claims.sweep(silent_s=0.0) == 0
        assert raw.zscore(ALARMS, prediction_id) == due

    @pytest.mark.parametrize("partitions", [1, 4])
    async def test_of_more_than_one_page_none_is_missed(
        self, gateway: Store, a: Processor, raw: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("common.store.claims.SWEEP_JOBS", 10)
        ids = [await submitted(gateway) for _ in range(300)]
        for p in range(gateway.partitions):
            raw.xtrim(keys.jobs(p), maxlen=0, approximate=False)
        assert await a.store.claims.sweep(silent_s=0.0) == 300
        assert sorted(job.id for job in await a.claim(1000)) == sorted(ids)


class TestCount:
    async def test_a_job_that_was_deleted_makes_room(self, make_store: MakeStore, raw: Any) -> None:
        store = make_store("gate", max_queue=1, partitions=1)
        await store.queue.prepare()
        prediction_id = await submitted(store)
        refused = Submission(new_id(), b"1")
        assert (await store.jobs.submit(refused)).decision == "full"
        raw.delete(keys.job(prediction_id, 1))
        assert await store.claims.sweep(silent_s=0.0) == 0
        assert (await store.jobs.submit(refused)).decision == "queued"

    async def test_a_lost_list_of_the_unfinished_is_made_again(
        self, gateway: Store, a: Processor, raw: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("common.store.claims.SWEEP_JOBS", 2)
        ids = [await submitted(gateway) for _ in range(5)]
        await gateway.jobs.cancel(ids[0], SORRY)
        running = (await a.claim())[0]
        raw.delete(*[keys.unfinished(p) for p in range(gateway.partitions)])
        assert await a.store.claims.sweep(silent_s=0.0) == 0
        assert (await gateway.queue.ring()).unfinished == 4
        await a.store.claims.finish([(running, DONE)])
        assert (await gateway.queue.ring()).unfinished == 3


class TestTurns:
    async def test_in_one_lease_only_the_first_looks(
        self, gateway: Store, a: Processor, b: Processor, raw: Any
    ) -> None:
        await a.store.claims.sweep(silent_s=60.0)
        await submitted(gateway)
        raw.delete(STREAM)
        assert await b.store.claims.sweep(silent_s=60.0) == 0
        assert await b.store.claims.sweep(silent_s=0.0) == 1

    async def test_a_clock_that_stepped_back_does_not_put_it_off(
        self, gateway: Store, a: Processor, raw: Any
    ) -> None:
        await submitted(gateway)
        raw.delete(STREAM)
        seconds, _ = raw.time()
        raw.hset(f"{keys.tag(0)}:counts:default", "swept", (seconds + 3600) * 1_000_000)
        assert await a.store.claims.sweep(silent_s=60.0) == 1

    async def test_an_empty_server_is_swept_too(self, gateway: Store, a: Processor, raw: Any) -> None:
        raw.flushall()
        assert await a.store.claims.sweep(silent_s=0.0) == 0
