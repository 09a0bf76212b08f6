"""`measure`: The queue is measured."""

from itertools import islice
from typing import Any

import pytest

from common.store import keys
from common.store.claims import Outcome
from common.store.jobs import Submission
from common.store.states import Fault, Status
from tests.conftest import eventually
from tests.store.life import DONE, SORRY
from tests.store.store import Processor, Store

pytestmark = pytest.mark.leaves_jobs("transitions are looked at one by one, in the middle of a job's life")


class TestMeasure:
    async def test_it_counts_what_waits_runs_and_has_ended(
        self, gateway: Store, a: Processor, b: Processor
    ) -> None:
        nothing = dict.fromkeys((Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED), 0)
        assert await gateway.queue.measure() == (0, 0, 0, 0, None, nothing, 0)
        ids = list(islice(keys.new_ids(gateway.partitions), 6))
        for prediction_id in ids:
            await gateway.jobs.submit(Submission(prediction_id, b"1"))
        jobs = await a.claim(100)
        assert len(jobs) == 6
        measure = await gateway.queue.measure()
        assert (measure.unfinished, measure.running, measure.processors) == (6, 6, 1)
        assert measure.oldest_s is None
        given_up = Outcome(Status.FAILED, b'"no"', Fault.MODEL, given_up=True)
        await a.store.claims.finish([(jobs[0], DONE), (jobs[1], DONE), (jobs[2], given_up)])
        await gateway.jobs.cancel(jobs[3].id, SORRY)
        await a.store.claims.retry([(jobs[4], 3600.0)])
        expected = nothing | {Status.SUCCEEDED: 2, Status.FAILED: 1, Status.CANCELLED: 1}
        assert await gateway.queue.measure() == (2, 1, 1, 1, None, expected, 1)
        await gateway.jobs.cancel(jobs[4].id, SORRY)
        await a.store.claims.release([jobs[5]])
        await a.store.claims.leave()
        measure = await gateway.queue.measure()
        assert (measure.unfinished, measure.running, measure.processors) == (1, 0, 0)
        assert measure.oldest_s is not None

    async def test_the_oldest_is_the_first_that_somebody_wants(self, gateway: Store, raw: Any) -> None:
        gone, wanted = islice(keys.new_ids(1), 2)

        def queued_ms(prediction_id: str) -> int:
            return int(raw.hget(keys.job(prediction_id, gateway.partitions), "entry").partition("-")[0])

        def now_ms() -> float:
            seconds, us = raw.time()
            return float(seconds * 1e3 + us / 1e3)

        await gateway.jobs.submit(Submission(gone, b"1"))
        await gateway.jobs.cancel(gone, SORRY)
        await eventually(lambda: now_ms() > queued_ms(gone) + 50)
        await gateway.jobs.submit(Submission(wanted, b"1"))
        before = now_ms()
        oldest = (await gateway.queue.measure()).oldest_s
        assert oldest is not None
        assert before <= queued_ms(wanted) + oldest * 1e3 + 0.001 <= now_ms() + 0.001

    async def test_it_does_without_the_stream_of_an_empty_server(self, gateway: Store, raw: Any) -> None:
        raw.flushall()
        assert (await gateway.queue.measure())[:5] == (0, 0, 0, 0, None)
