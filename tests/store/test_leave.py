"""`leave`: Processors leave, and the dead are swept out."""

from itertools import islice
from typing import Any

import pytest

from common.store import keys
from common.store.jobs import Submission
from common.store.states import Status
from tests.conftest import eventually
from tests.store.life import BROKEN, DONE, group, new_id, status, submitted
from tests.store.store import Processor, Store

pytestmark = pytest.mark.leaves_jobs("transitions are looked at one by one, in the middle of a job's life")


class TestLeave:
    async def test_it_gives_back_what_it_never_started_and_is_gone(
        self, gateway: Store, a: Processor, b: Processor, raw: Any
    ) -> None:
        ids = list(islice(keys.new_ids(1), 3))
        for i in ids:
            await gateway.jobs.submit(Submission(i, b"1"))
        (job,) = await a.claim(1)
        await a.store.claims.finish([(job, DONE)])
        raw.xreadgroup(keys.GROUP, a.store.name, {keys.jobs(0): ">"}, count=1)
        await a.store.claims.leave()
        assert raw.xinfo_consumers(keys.jobs(0), keys.GROUP) == []
        assert group(raw)["lag"] == 2
        assert sorted((job.id, job.attempt) for job in await b.claim()) == sorted((i, 1) for i in ids[1:])

    async def test_what_runs_goes_back_too_without_counting_the_attempt(
        self, gateway: Store, a: Processor, b: Processor, raw: Any
    ) -> None:
        prediction_id = await submitted(gateway)
        old = await a.claim_one()
        await a.store.claims.leave()
        assert raw.xinfo_consumers(keys.jobs(old.partition), keys.GROUP) == []
        assert await status(gateway, prediction_id) == Status.QUEUED
        assert await a.store.claims.finish([(old, BROKEN)]) == [False]
        job = await b.claim_one()
        assert (job.id, job.attempt) == (prediction_id, 1)
        assert await b.store.claims.finish([(job, DONE)]) == [True]

    async def test_it_leaves_the_others_alone(self, gateway: Store, a: Processor, b: Processor) -> None:
        await submitted(gateway)
        old = await a.claim_one()
        (new,) = await b.reclaim()
        await a.store.claims.leave()
        assert await b.store.claims.extend([old, new]) == [old]
        assert await b.store.claims.finish([(new, DONE)]) == [True]

    async def test_leaving_without_ever_having_claimed(self, gateway: Store, a: Processor) -> None:
        await a.store.claims.leave()

    async def test_the_dead_are_removed_but_not_those_who_hold_something(
        self, gateway: Store, a: Processor, b: Processor, raw: Any, partitions: int
    ) -> None:
        await gateway.jobs.submit(Submission(new_id(), b"1"))
        (job,) = await a.claim()
        assert await b.claim() == []

        def idle_ms() -> int:
            return min(
                c["idle"] for p in range(partitions) for c in raw.xinfo_consumers(keys.jobs(p), keys.GROUP)
            )

        await eventually(lambda: idle_ms() > 2)
        assert await gateway.claims.remove_dead_consumers(idle_s=60) == 0
        await gateway.claims.remove_dead_consumers(idle_s=0.001)
        assert [c["name"] for c in raw.xinfo_consumers(keys.jobs(0), keys.GROUP)] == [a.store.name]
        assert await a.store.claims.finish([(job, DONE)]) == [True]
