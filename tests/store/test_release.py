"""`release`: What is given back comes again, at once or later."""

from itertools import islice
from typing import Any

import pytest

from common.store import keys
from common.store.jobs import Submission
from common.store.states import Status
from tests.store.life import DONE, SORRY, group, new_id, pass_deadline, ring_now, status, submitted
from tests.store.store import Processor, Store

pytestmark = pytest.mark.leaves_jobs("transitions are looked at one by one, in the middle of a job's life")


class TestRelease:
    @pytest.mark.parametrize(("counted", "attempt"), [(True, 2), (False, 1)])
    async def test_another_processor_has_it_at_once(
        self, gateway: Store, a: Processor, b: Processor, counted: bool, attempt: int
    ) -> None:
        prediction_id = await submitted(gateway)
        job = await a.claim_one()
        await (a.store.claims.retry([(job, 0.0)]) if counted else a.store.claims.release([job]))
        assert await status(gateway, prediction_id) == Status.QUEUED
        assert (await gateway.queue.ring()).unfinished == 1
        job = await b.claim_one()
        assert (job.id, job.attempt) == (prediction_id, attempt)
        assert await b.store.claims.finish([(job, DONE)]) == [True]
        assert (await gateway.queue.ring()).unfinished == 0

    async def test_twice_is_once(self, gateway: Store, a: Processor, b: Processor) -> None:
        await submitted(gateway)
        job = await a.claim_one()
        await a.store.claims.release([job])
        await a.store.claims.release([job])
        assert (await b.claim_one()).attempt == 1

    async def test_the_queue_can_still_be_measured(self, gateway: Store, a: Processor, raw: Any) -> None:
        for i in islice(keys.new_ids(1), 3):
            await gateway.jobs.submit(Submission(i, b"1"))
        await a.store.claims.retry([(job, 0.0) for job in await a.claim(1)])
        assert group(raw)["lag"] == 3


class TestRetry:
    """A retry that waits for its time is in no stream: Redis keeps it among the alarms."""

    async def test_it_waits_for_its_time_and_counts(
        self, gateway: Store, a: Processor, b: Processor, raw: Any
    ) -> None:
        prediction_id = await submitted(gateway)
        job = await a.claim_one()
        await a.store.claims.retry([(job, 3600.0)])
        assert await status(gateway, prediction_id) == Status.QUEUED
        progress = await gateway.queue.ring()
        assert progress.unfinished == 1
        assert progress.next_s is not None
        assert 3590 < progress.next_s <= 3600
        assert await b.claim() == []
        ring_now(raw, prediction_id)
        assert (await gateway.queue.ring()).next_s is None
        again = await b.claim_one()
        assert (again.id, again.attempt) == (prediction_id, 2)
        assert await b.store.claims.finish([(again, DONE)]) == [True]
        assert (await gateway.queue.ring()) == (None, 0, 1)

    async def test_a_cancelled_one_never_comes(self, gateway: Store, a: Processor, raw: Any) -> None:
        prediction_id = await submitted(gateway)
        await a.store.claims.retry([(await a.claim_one(), 3600.0)])
        assert await gateway.jobs.cancel(prediction_id, SORRY) == "cancelled"
        assert (await gateway.queue.ring()) == (None, 0, 1)
        assert not raw.exists(f"{keys.tag(0)}:alarms:default")

    async def test_one_past_its_deadline_is_expired_and_not_tried(
        self, gateway: Store, a: Processor, raw: Any
    ) -> None:
        prediction_id = new_id()
        await gateway.jobs.submit(Submission(prediction_id, b"1", deadline_us=60_000_000))
        await a.store.claims.retry([(await a.claim_one(), 3600.0)])
        progress = await gateway.queue.ring()
        assert progress.next_s is not None
        assert progress.next_s <= 60
        pass_deadline(raw, prediction_id)
        await gateway.queue.ring()
        assert await status(gateway, prediction_id) == Status.EXPIRED
        assert await a.claim() == []
