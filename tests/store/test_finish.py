"""`finish`: Ends are recorded, and only by whoever has the job."""

from typing import Any

import pytest

from common.store import keys
from common.store.claims import Job, Outcome
from common.store.states import Fault, JobState, Status
from tests.store.conftest import MakeStore
from tests.store.life import BROKEN, DONE, entries, group, status, submitted
from tests.store.store import Processor, Store

pytestmark = pytest.mark.leaves_jobs("transitions are looked at one by one, in the middle of a job's life")


class TestFinish:
    async def test_the_result_is_there_and_its_life_begins(
        self, gateway: Store, a: Processor, raw: Any
    ) -> None:
        prediction_id = await submitted(gateway)
        key = keys.job(prediction_id, gateway.partitions)
        assert raw.ttl(key) == -1
        job = await a.claim_one()
        assert raw.ttl(key) == -1
        assert await a.store.claims.finish([(job, DONE)]) == [True]
        state = await gateway.jobs.read(prediction_id)
        assert state == JobState(Status.SUCCEEDED, b"1", "", b'"done"', job.queue_us, 42)
        assert 3590 < raw.ttl(key) <= 3600
        assert entries(raw, gateway.partitions) == 0
        assert group(raw, job.partition)["pending"] == 0

    async def test_a_failure_has_its_sentence_and_its_fault(
        self, gateway: Store, a: Processor, raw: Any
    ) -> None:
        prediction_id = await submitted(gateway)
        await a.store.claims.finish([(await a.claim_one(), BROKEN)])
        state = await gateway.jobs.read(prediction_id)
        assert state is not None
        assert (state.status, state.fault, state.payload) == (Status.FAILED, Fault.MODEL, b'"It broke."')
        assert not raw.exists(keys.dead(0))  # a model that raises is nothing for people

    async def test_a_result_passes_away(self, make_store: MakeStore, gateway: Store, raw: Any) -> None:
        a = Processor(make_store("proc-a", result_ttl_s=1))
        prediction_id = await submitted(gateway)
        await a.store.claims.finish([(await a.claim_one(), DONE)])
        assert raw.ttl(keys.job(prediction_id, gateway.partitions)) == 1

    async def test_many_at_once_each_get_their_own(self, gateway: Store, a: Processor) -> None:
        ids = [await submitted(gateway, b"%d" % number) for number in range(20)]
        jobs = await a.claim()
        outcomes = [(job, Outcome(Status.SUCCEEDED, b"[%s]" % job.input)) for job in reversed(jobs)]
        assert await a.store.claims.finish(outcomes) == [True] * 20
        for number, i in enumerate(ids):
            state = await gateway.jobs.read(i)
            assert state is not None
            assert state.payload == b"[%d]" % number

    async def test_again_is_recorded_still(self, gateway: Store, a: Processor) -> None:
        await submitted(gateway)
        job = await a.claim_one()
        assert await a.store.claims.finish([(job, DONE)]) == [True]
        assert await a.store.claims.finish([(job, DONE)]) == [True]
        assert await a.store.claims.finish([(job, BROKEN)]) == [False]


class TestFence:
    """Once another processor has a job, nothing that its former owner does changes it."""

    @pytest.fixture
    async def jobs(self, gateway: Store, a: Processor, b: Processor) -> tuple[Job, Job]:
        """The same job in the hands of `a`, who was silent too long, and of `b`."""
        await submitted(gateway)
        old = await a.claim_one()
        (new,) = await b.reclaim()
        return old, new

    async def test_a_late_result_is_refused(
        self, jobs: tuple[Job, Job], gateway: Store, a: Processor, b: Processor
    ) -> None:
        old, new = jobs
        assert await a.store.claims.finish([(old, BROKEN)]) == [False]
        assert await status(gateway, new.id) == Status.PROCESSING
        assert await b.store.claims.finish([(new, DONE)]) == [True]
        assert await a.store.claims.finish([(old, BROKEN)]) == [False]
        assert await a.store.claims.finish([(old, DONE)]) == [False]
        state = await gateway.jobs.read(new.id)
        assert state is not None
        assert state.payload == DONE.payload

    async def test_a_late_extension_is_lost(self, jobs: tuple[Job, Job], a: Processor, b: Processor) -> None:
        old, new = jobs
        assert await a.store.claims.extend([old]) == [old]
        assert await b.store.claims.extend([new]) == []
        (taken,) = await a.reclaim()
        assert taken.attempt == 3

    async def test_a_late_release_gives_nothing_back(
        self, jobs: tuple[Job, Job], gateway: Store, a: Processor, b: Processor
    ) -> None:
        old, new = jobs
        await a.store.claims.release([old])
        assert await status(gateway, new.id) == Status.PROCESSING
        assert await a.claim() == []
        assert await b.store.claims.finish([(new, DONE)]) == [True]

    @pytest.mark.parametrize("late", ["finish", "extend", "release"])
    async def test_a_processor_is_fenced_from_what_it_released_itself(
        self, gateway: Store, a: Processor, raw: Any, late: str
    ) -> None:
        """An uncounted release makes the same attempt number come again: the entry tells them apart."""
        await submitted(gateway)
        old = await a.claim_one()
        await a.store.claims.release([old])
        new = await a.claim_one()
        assert (new.attempt, new.entry != old.entry) == (1, True)
        if late == "finish":
            assert await a.store.claims.finish([(old, BROKEN)]) == [False]
        elif late == "extend":
            assert await a.store.claims.extend([old]) == [old]
        else:
            await a.store.claims.release([old])
        assert await status(gateway, new.id) == Status.PROCESSING
        assert await a.store.claims.finish([(new, DONE)]) == [True]
        assert entries(raw, gateway.partitions) == 0

    async def test_one_processor_that_took_its_own_job_over(self, gateway: Store, a: Processor) -> None:
        await submitted(gateway)
        old = await a.claim_one()
        (new,) = await a.reclaim()
        assert await a.store.claims.extend([old, new]) == [old]
        assert await a.store.claims.finish([(old, BROKEN)]) == [False]
        assert await a.store.claims.finish([(new, DONE)]) == [True]
