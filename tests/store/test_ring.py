"""`ring`: What is due is done: deadlines pass, retries come."""

from typing import Any

import pytest

from common.store import keys
from common.store.jobs import Submission
from common.store.states import Fault, Status
from tests.store.life import DONE, heard, new_id, pass_deadline
from tests.store.store import Processor, Store

pytestmark = pytest.mark.leaves_jobs("transitions are looked at one by one, in the middle of a job's life")


class TestDeadline:
    async def test_one_that_passed_in_the_queue_is_expired_and_never_started(
        self, gateway: Store, a: Processor
    ) -> None:
        prediction_id = new_id()
        await gateway.jobs.submit(Submission(prediction_id, b"1", deadline_us=1))
        assert await a.claim() == []
        state = await gateway.jobs.read(prediction_id)
        assert state is not None
        assert (state.status, state.fault) == (Status.EXPIRED, Fault.EXPIRED)
        assert (await gateway.queue.ring()) == (None, 0, 1)

    async def test_without_any_processor_too(self, gateway: Store, a: Processor) -> None:
        prediction_id = new_id()
        async with gateway.subscription() as subscription:
            await gateway.jobs.submit(Submission(prediction_id, b"1", watch=True, deadline_us=1))
            await gateway.queue.ring()
            ((told, state),) = await heard(subscription, 1)
        assert (told, state.status) == (prediction_id, Status.EXPIRED)
        assert await a.claim() == []  # and removes the entry
        assert (await gateway.queue.ring()) == (None, 0, 1)

    async def test_one_that_passes_while_it_runs_is_expired_and_its_owner_told(
        self, gateway: Store, a: Processor, raw: Any
    ) -> None:
        prediction_id = new_id()
        await gateway.jobs.submit(Submission(prediction_id, b"1", deadline_us=60_000_000))
        job = await a.claim_one()
        pass_deadline(raw, prediction_id)
        async with a.store.subscription() as subscription:
            await gateway.queue.ring()
            ((told, state),) = await heard(subscription, 1)
        assert (told, state.status) == (prediction_id, Status.EXPIRED)
        assert await a.store.claims.finish([(job, DONE)]) == [False]
        assert await a.store.claims.extend([job]) == [job]
        assert not raw.xlen(keys.jobs(0))

    async def test_one_that_is_met_leaves_no_alarm(self, gateway: Store, a: Processor, raw: Any) -> None:
        await gateway.jobs.submit(Submission(new_id(), b"1", deadline_us=60_000_000))
        await a.store.claims.finish([(await a.claim_one(), DONE)])
        assert not raw.exists(f"{keys.tag(0)}:alarms:default")
