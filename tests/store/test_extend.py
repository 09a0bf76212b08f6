"""`extend`: Leases are renewed."""

import asyncio
from itertools import islice

import pytest

from common.store import keys
from common.store.claims import Job
from common.store.jobs import Submission
from common.store.states import Status
from tests.store.life import DONE, SORRY, new_id, status, submitted
from tests.store.store import Processor, Store

pytestmark = pytest.mark.leaves_jobs("transitions are looked at one by one, in the middle of a job's life")


class TestExtend:
    async def test_a_cancelled_and_an_unknown_job_are_lost(self, gateway: Store, a: Processor) -> None:
        kept, gone = [await submitted(gateway), await submitted(gateway)]
        jobs = await a.claim()
        await gateway.jobs.cancel(gone, SORRY)
        unknown = Job(new_id(), 0, b"1-1", 1, b"1", 0)
        lost = await a.store.claims.extend([*jobs, unknown])
        assert {job.id for job in lost} == {gone, unknown.id}
        assert await status(gateway, kept) == Status.PROCESSING

    async def test_what_this_attempt_recorded_is_not_lost(self, gateway: Store, a: Processor) -> None:
        """The leases are renewed on their own connection, perhaps before the reply to finish is there."""
        await submitted(gateway)
        job = await a.claim_one()
        await a.store.claims.finish([(job, DONE)])
        assert await a.store.claims.extend([job]) == []

    async def test_any_number_of_jobs_can_be_held(self, gateway: Store, a: Processor) -> None:
        """One Lua call takes some 8,000 values: eight model processes with batches of 1,024 hold more."""
        ids = list(islice(keys.new_ids(1), 9000))
        await asyncio.gather(*[gateway.jobs.submit(Submission(i, b"1")) for i in ids])
        jobs = await a.claim(9000)
        assert len(jobs) == 9000
        assert await a.store.claims.extend(jobs) == []
