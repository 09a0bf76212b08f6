"""`claim`: Processors are given jobs, and take over those of processors that fell silent."""

import asyncio
from itertools import islice
from typing import Any

import pytest

from common.store import keys
from common.store.jobs import Submission
from common.store.states import Fault, Status
from tests.conftest import eventually
from tests.store.life import DONE, SORRY, entries, heard, new_id, status, submitted
from tests.store.store import Processor, Store

pytestmark = pytest.mark.leaves_jobs("transitions are looked at one by one, in the middle of a job's life")


class TestClaim:
    async def test_jobs_come_in_order_with_all_that_is_needed(self, gateway: Store, a: Processor) -> None:
        ids = list(islice(keys.new_ids(1), 3))
        for number, i in enumerate(ids):
            await gateway.jobs.submit(Submission(i, b"%d" % number))
        jobs = await a.claim(2) + await a.claim(2)
        assert [(job.id, job.attempt, job.input) for job in jobs] == [
            (i, 1, b"%d" % number) for number, i in enumerate(ids)
        ]
        assert all(job.queue_us > 0 for job in jobs)
        assert {await status(gateway, i) for i in ids} == {Status.PROCESSING}
        assert await a.claim() == []

    async def test_two_processors_share_and_never_get_the_same(
        self, gateway: Store, a: Processor, b: Processor
    ) -> None:
        ids = {await submitted(gateway) for _ in range(20)}
        claimed = [job.id for p in (a, b, a, b) for job in await p.claim(3)]
        claimed += [job.id for job in await a.claim()]
        assert sorted(claimed) == sorted(ids)

    async def test_a_claim_is_one_round_trip(self, gateway: Store, a: Processor, raw: Any) -> None:
        def reads() -> int:
            return int(raw.info("stats")["total_reads_processed"])

        await a.claim()  # connected, and the script is loaded
        ids = list(islice(keys.new_ids(1), 3))
        for i in ids:
            await gateway.jobs.submit(Submission(i, b"1"))
        first, second = reads(), reads()
        assert [job.id for job in await a.store.claims.claim(a.readers[0], 10)] == ids
        assert reads() - second == 1 + (second - first)

    async def test_a_waiting_claim_gets_what_comes_and_all_that_came_with_it(
        self, gateway: Store, a: Processor, raw: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        await a.claim()
        monkeypatch.setattr("common.store.claims.BLOCK_S", 10.0)
        claim = asyncio.create_task(a.store.claims.claim(a.readers[0], 10))
        await eventually(lambda: raw.info("clients")["blocked_clients"] == 1)
        ids = list(islice(keys.new_ids(1), 3))
        await asyncio.gather(*[gateway.jobs.submit(Submission(i, b"1")) for i in ids])
        async with asyncio.timeout(5):
            assert [job.id for job in await claim] == ids

    async def test_a_claim_whose_reply_was_lost_is_the_same_attempt(
        self, gateway: Store, a: Processor
    ) -> None:
        await submitted(gateway)
        before = [reader.after for reader in a.readers]
        job = await a.claim_one()
        for reader, after in zip(a.readers, before, strict=True):
            reader.after = after
        again = await a.claim_one()
        assert (again.id, again.entry, again.attempt) == (job.id, job.entry, 1)
        assert await a.store.claims.finish([(again, DONE)]) == [True]

    async def test_an_attempt_too_many_fails_and_is_kept_for_people(
        self, gateway: Store, a: Processor, b: Processor, raw: Any
    ) -> None:
        prediction_id = await submitted(gateway, watch=True)
        async with gateway.subscription() as subscription:
            attempts = [(await a.claim_one()).attempt]
            attempts += [job.attempt for p in (b, a, b, a) for job in await p.reclaim()]
            assert attempts == [1, 2, 3]
            ((told, announced),) = await heard(subscription, 1)
        state = await gateway.jobs.read(prediction_id)
        assert state is not None
        assert (state.status, state.fault) == (Status.FAILED, Fault.GIVEN_UP)
        assert b"given up after 3 attempts" in state.payload
        assert (told, announced.payload) == (prediction_id, state.payload)
        p = keys.partition_of(prediction_id, gateway.partitions)
        ((_, dead),) = raw.xrange(keys.dead(p))
        assert (dead["id"], dead["attempts"]) == (prediction_id, "3")
        assert entries(raw, gateway.partitions) == 0


class TestReclaim:
    async def test_only_what_nobody_renewed_is_taken(
        self, gateway: Store, a: Processor, b: Processor
    ) -> None:
        await submitted(gateway)
        job = await a.claim_one()
        assert await b.reclaim(idle_s=60) == []
        (taken,) = await b.reclaim()
        assert (taken.id, taken.entry, taken.attempt) == (job.id, job.entry, 2)

    async def test_extending_keeps_every_job(
        self, gateway: Store, a: Processor, b: Processor, raw: Any
    ) -> None:
        for i in islice(keys.new_ids(1), 5):
            await gateway.jobs.submit(Submission(i, b"1"))
        jobs = await a.claim()

        def pending() -> list[Any]:
            return list(raw.xpending_range(keys.jobs(0), keys.GROUP, "-", "+", 10))

        before = await eventually(
            lambda: all(entry["time_since_delivered"] >= 50 for entry in pending()) and pending()
        )
        assert await a.store.claims.extend(jobs) == []
        after = pending()
        assert [
            new["time_since_delivered"] < old["time_since_delivered"]
            for new, old in zip(after, before, strict=True)
        ] == [True] * 5
        assert [entry["times_delivered"] for entry in after] == [entry["times_delivered"] for entry in before]

    async def test_the_tail_is_not_starved(self, gateway: Store, a: Processor, b: Processor) -> None:
        ids = list(islice(keys.new_ids(1), 25))
        await asyncio.gather(*[gateway.jobs.submit(Submission(i, b"1")) for i in ids])
        await a.claim()
        taken = [job.id for _ in range(9) for job in await b.reclaim(3)]
        assert sorted(taken) == sorted(
            ids
        )  # idle_s is 0: from the start each time, it would be the first three

    async def test_what_was_delivered_and_never_started_is_found(
        self, gateway: Store, a: Processor, b: Processor, raw: Any
    ) -> None:
        prediction_id = await submitted(gateway)
        p = keys.partition_of(prediction_id, gateway.partitions)
        raw.xreadgroup(keys.GROUP, "dead", {keys.jobs(p): ">"})
        assert await a.claim() == []
        (job,) = await b.reclaim()
        assert (job.id, job.attempt) == (prediction_id, 1)


class TestTwoEntries:
    async def test_an_entry_left_over_from_a_former_life_of_the_id_starts_nothing(
        self, gateway: Store, a: Processor, raw: Any
    ) -> None:
        """Cancelled in the queue, its TTL over before a processor met it, and submitted again."""
        again = Submission(new_id(), b"1")
        await gateway.jobs.submit(again)
        await gateway.jobs.cancel(again.id, SORRY)
        raw.delete(keys.job(again.id, 1))
        await gateway.jobs.submit(again)
        assert raw.xlen(keys.jobs(0)) == 2
        job = await a.claim_one()
        assert job.attempt == 1
        assert await a.store.claims.finish([(job, DONE)]) == [True]
        assert raw.xlen(keys.jobs(0)) == 0
