"""`cancel`: Jobs are cancelled wherever they are."""

from itertools import islice
from typing import Any

import pytest

from common.store import keys
from common.store.jobs import Submission
from common.store.states import Fault, JobState, Status
from tests.store.conftest import MakeStore
from tests.store.life import CANCELLED, DONE, SORRY, entries, group, heard, status, submitted
from tests.store.store import Processor, Store

pytestmark = pytest.mark.leaves_jobs("transitions are looked at one by one, in the middle of a job's life")


class TestCancel:
    async def test_a_queued_job_never_runs(self, gateway: Store, a: Processor, raw: Any) -> None:
        gone, other = list(islice(keys.new_ids(1), 2))
        for i in (gone, other):
            await gateway.jobs.submit(Submission(i, b"1"))
        assert await gateway.jobs.cancel(gone, SORRY) == "cancelled"
        assert await gateway.jobs.read(gone) == CANCELLED
        assert raw.ttl(keys.job(gone, gateway.partitions)) > 0
        # its entry stays until a processor meets it, else autoscalers could not read the lag
        assert group(raw)["lag"] == 2
        assert [job.id for job in await a.claim()] == [other]
        assert raw.xlen(keys.jobs(0)) == 1
        assert (group(raw)["pending"], group(raw)["lag"]) == (1, 0)

    async def test_a_running_job_is_taken_from_its_processor(
        self, gateway: Store, a: Processor, b: Processor, raw: Any
    ) -> None:
        prediction_id = await submitted(gateway)
        job = await a.claim_one()
        async with a.store.subscription() as subscription:
            assert await gateway.jobs.cancel(prediction_id, SORRY) == "cancelled"
            assert await heard(subscription, 1) == [(prediction_id, JobState(Status.CANCELLED))]
        assert entries(raw, gateway.partitions) == 0
        assert await a.store.claims.extend([job]) == [job]
        assert await a.store.claims.finish([(job, DONE)]) == [False]
        await a.store.claims.retry([(job, 0.0)])
        assert await b.reclaim() == []
        state = await gateway.jobs.read(prediction_id)
        assert state == CANCELLED._replace(queue_us=job.queue_us)

    async def test_a_finished_job_stays_as_it_is(self, gateway: Store, a: Processor) -> None:
        prediction_id = await submitted(gateway)
        await a.store.claims.finish([(await a.claim_one(), DONE)])
        assert await gateway.jobs.cancel(prediction_id, SORRY) == "finished"
        assert await status(gateway, prediction_id) == Status.SUCCEEDED
        gone = await submitted(gateway)
        assert await gateway.jobs.cancel(gone, SORRY) == "cancelled"
        assert await gateway.jobs.cancel(gone, SORRY) == "finished"

    async def test_only_mine_spares_what_another_waits_for(
        self, gateway: Store, make_store: MakeStore
    ) -> None:
        other = make_store("other")
        mine = await submitted(gateway, watch=True)
        nobodys = await submitted(gateway)
        shared = await submitted(gateway, watch=True)
        await other.jobs.watch(shared)
        followed = await submitted(gateway, watch=True)
        await gateway.jobs.watch(followed, changes=True)  # a WebSocket on this very gateway
        assert [
            await gateway.jobs.cancel(i, SORRY, only_mine=True) for i in (mine, nobodys, shared, followed)
        ] == [
            "cancelled",
            "watched",
            "watched",
            "watched",
        ]
        assert await status(gateway, shared) == Status.QUEUED

    async def test_who_watches_is_told(self, gateway: Store) -> None:
        async with gateway.subscription() as subscription:
            prediction_id = await submitted(gateway, watch=True)
            await gateway.jobs.cancel(prediction_id, SORRY)
            ((told, state),) = await heard(subscription, 1)
        assert (told, state.status, state.fault) == (prediction_id, Status.CANCELLED, Fault.CANCELLED)
        assert state.payload == CANCELLED.payload
