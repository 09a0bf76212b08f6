"""The server's clock steps: by an administrator, by NTP after a bad start, or because a replica on another machine takes
over. Nobody's work is taken from them, and what the dead held is taken over all the same.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from common.errors import ClockJumped
from common.store import keys
from common.store.jobs import Submission
from common.store.states import Status
from tests.clock import MovableClock
from tests.conftest import eventually
from tests.store.conftest import MakeStore
from tests.store.life import DONE, SORRY, new_id, status, submitted
from tests.store.store import Processor, Store
from tools.embedded_server import EmbeddedServer

pytestmark = pytest.mark.leaves_jobs("transitions are looked at one by one, in the middle of a job's life")

HOUR = 3600


@pytest.fixture
def clock(tmp_path: Path) -> MovableClock:
    return MovableClock(tmp_path)


@pytest.fixture
def server(clock: MovableClock, tmp_path: Path) -> Iterator[EmbeddedServer]:
    with clock.server(tmp_path / "server") as server:
        yield server


@pytest.fixture
def raw(server: EmbeddedServer) -> Iterator[Any]:
    with Redis.from_url(server.url, decode_responses=True) as client:
        yield client


@pytest.fixture
def partitions() -> int:
    return 1


@pytest.fixture
async def gateway(server: EmbeddedServer, open_store: MakeStore) -> Store:
    store = open_store(server.url, name="gate")
    await store.queue.prepare()
    await store.queue.ring()
    return store


@pytest.fixture
def a(gateway: Store, server: EmbeddedServer, open_store: MakeStore) -> Processor:
    return Processor(open_store(server.url, name="proc-a"))


@pytest.fixture
def b(gateway: Store, server: EmbeddedServer, open_store: MakeStore) -> Processor:
    return Processor(open_store(server.url, name="proc-b"))


async def test_what_a_dead_processor_held_is_taken_over_after_a_step_back(
    gateway: Store, a: Processor, b: Processor, clock: MovableClock
) -> None:
    prediction_id = await submitted(gateway)
    await a.claim_one()
    clock.step(-HOUR)
    await gateway.queue.ring()
    (job,) = await eventually(lambda: b.reclaim(idle_s=0.05))
    assert (job.id, job.attempt) == (prediction_id, 2)
    assert await b.store.claims.finish([(job, DONE)]) == [True]
    assert job.queue_us == 0  # not less than none


async def test_a_lease_that_was_restarted_is_no_longer_than_any_other(
    gateway: Store, a: Processor, b: Processor, clock: MovableClock
) -> None:
    """Each ring after the step finds the same clock, and leaves the leases alone."""
    await submitted(gateway)
    await a.claim_one()
    clock.step(-HOUR)

    async def taken_over() -> list[Any]:
        await gateway.queue.ring()
        return await b.reclaim(idle_s=0.2)

    assert await eventually(taken_over)


async def test_who_works_keeps_what_it_has_through_a_step_back(
    gateway: Store, a: Processor, b: Processor, clock: MovableClock
) -> None:
    await submitted(gateway)
    job = await a.claim_one()
    clock.step(-HOUR)
    await gateway.queue.ring()
    assert await b.reclaim(idle_s=60) == []
    assert await a.store.claims.extend([job]) == []
    assert await a.store.claims.finish([(job, DONE)]) == [True]


async def test_nothing_is_taken_over_because_the_clock_has_jumped(
    gateway: Store, a: Processor, b: Processor, clock: MovableClock
) -> None:
    await submitted(gateway)
    job = await a.claim_one()
    assert await b.claim() == []
    clock.step(HOUR)
    with pytest.raises(ClockJumped):
        await b.reclaim(idle_s=60)
    assert await a.store.claims.extend([job]) == []
    assert await b.reclaim(idle_s=60) == []  # by the new clock
    assert await a.store.claims.finish([(job, DONE)]) == [True]


async def test_the_dead_lose_what_they_hold_after_a_jump_too(
    gateway: Store, a: Processor, b: Processor, clock: MovableClock
) -> None:
    await submitted(gateway)
    await a.claim_one()
    assert await b.claim() == []
    clock.step(HOUR)
    with pytest.raises(ClockJumped):
        await b.reclaim(idle_s=60)
    (job,) = await b.reclaim(idle_s=60)  # the caller has waited for a lease in between
    assert await b.store.claims.finish([(job, DONE)]) == [True]


async def test_a_retry_does_not_wait_until_the_clock_has_caught_up(
    gateway: Store, a: Processor, clock: MovableClock
) -> None:
    prediction_id = await submitted(gateway)
    await a.store.claims.retry([(await a.claim_one(), 0.1)])
    clock.step(-HOUR)

    async def due() -> list[Any]:
        await gateway.queue.ring()
        return await a.claim()

    (job,) = await eventually(due)
    assert (job.id, job.attempt) == (prediction_id, 2)
    await a.store.claims.finish([(job, DONE)])


@pytest.mark.parametrize("running", [False, True], ids=["waiting", "running"])
async def test_a_deadline_does_not_either(
    gateway: Store, a: Processor, clock: MovableClock, running: bool
) -> None:
    prediction_id = new_id()
    await gateway.jobs.submit(Submission(prediction_id, b"1", deadline_us=200_000))
    if running:
        await a.claim_one()
    clock.step(-HOUR)

    async def expired() -> bool:
        await gateway.queue.ring()
        return await status(gateway, prediction_id) == Status.EXPIRED

    await eventually(expired)
    assert await a.claim() == []


async def test_the_dead_are_removed_from_the_group_after_a_step_back(
    gateway: Store, a: Processor, b: Processor, raw: Any, clock: MovableClock
) -> None:
    assert await a.claim() == await b.claim() == []
    clock.step(-HOUR)

    async def gone() -> bool:
        await gateway.claims.remove_dead_consumers(idle_s=0.05)
        return raw.xinfo_consumers(keys.jobs(0), keys.GROUP) == []

    await eventually(gone)


async def test_how_long_the_oldest_has_waited_is_right_for_who_came_after_a_step_back(
    gateway: Store, clock: MovableClock
) -> None:
    """The server numbers entries as if its clock had not stepped."""
    first = await submitted(gateway)
    clock.step(-HOUR)
    assert (await gateway.queue.measure()).oldest_s == 0
    await gateway.jobs.cancel(first, SORRY)
    await submitted(gateway)

    async def has_waited() -> bool:
        return ((await gateway.queue.measure()).oldest_s or 0) > 0.01

    await eventually(has_waited)


@pytest.mark.parametrize("gone", ["group", "stream"])
async def test_a_ring_after_a_step_back_needs_no_queue(
    gateway: Store, raw: Any, clock: MovableClock, gone: str
) -> None:
    """What is due is done while nobody has made the group again."""
    prediction_id = new_id()
    await gateway.jobs.submit(Submission(prediction_id, b"1", deadline_us=1))
    raw.delete(keys.jobs(0)) if gone == "stream" else raw.xgroup_destroy(keys.jobs(0), keys.GROUP)
    clock.step(-HOUR)

    async def expired() -> bool:
        await gateway.queue.ring()
        return await status(gateway, prediction_id) == Status.EXPIRED

    await eventually(expired)
