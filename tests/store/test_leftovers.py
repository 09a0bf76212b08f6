"""The check that runs after each test: does it see what it is there for?"""

from typing import Any

import pytest

from common.store import keys
from common.store.claims import Outcome
from common.store.jobs import Submission
from common.store.states import Status
from tests.conftest import leftovers
from tests.store.store import Processor, Store


@pytest.mark.leaves_jobs("that is what is looked at")
async def test_a_job_that_was_not_finished_is_found(gateway: Store, a: Processor, raw: Any) -> None:
    prediction_id = next(keys.new_ids(1))
    await gateway.jobs.submit(Submission(prediction_id, b"1"))
    stream, job = keys.jobs(0), keys.job(prediction_id, 1)
    unfinished = f"1 jobs in {keys.unfinished(0)}"
    assert leftovers(raw) == [f"1 entries in {stream}", f"{job} (queued) without a TTL", unfinished]
    await a.store.claims.claim(a.readers[0], 1)
    assert leftovers(raw) == [
        f"1 entries in {stream}",
        f"1 pending entries in {stream}",
        f"consumer proc-a of {stream}",
        f"{job} (processing) without a TTL",
        unfinished,
    ]


async def test_nothing_is_found_after_work_well_done(gateway: Store, a: Processor, raw: Any) -> None:
    await gateway.jobs.submit(Submission(next(keys.new_ids(gateway.partitions)), b"1"))
    await a.store.claims.finish([(await a.claim_one(), Outcome(Status.SUCCEEDED, b"1"))])
    await a.store.claims.leave()
    assert leftovers(raw) == []
