"""`waiting`: What waits is listed, and cancelled at once."""

from typing import Any

import pytest

from common.store import keys
from common.store.states import Status
from common.store.waiting import WaitingJob, WaitingJobs
from tests.store.life import CANCELLED, DONE, SORRY, entries, heard, nothing_more, status, submitted
from tests.store.store import Processor, Store

pytestmark = pytest.mark.leaves_jobs("transitions are looked at one by one, in the middle of a job's life")


async def all_waiting(store: Store, count: int = 100) -> list[WaitingJob]:
    found, after, pages = [], "", 0
    while pages == 0 or after:
        page = await WaitingJobs(store).waiting(count, after=after)
        assert len(page.jobs) <= count
        found += page.jobs
        after = page.cursor
        pages += 1
    return found


class TestList:
    async def test_what_waits_is_listed_and_nothing_else(
        self, gateway: Store, a: Processor, raw: Any
    ) -> None:
        ids = [await submitted(gateway, b"12345") for _ in range(5)]
        jobs = {job.id: job for job in await a.claim()}
        await a.store.claims.finish([(jobs[ids[0]], DONE)])
        await gateway.jobs.cancel(ids[1], SORRY)
        await a.store.claims.retry([(jobs[ids[2]], 3600.0)])  # it waits for its time
        await a.store.claims.release([jobs[ids[3]]])
        found = {job.id: job for job in await all_waiting(gateway)}
        assert sorted(found) == sorted([ids[2], ids[3]])  # the fifth runs
        assert (found[ids[2]].attempts, found[ids[3]].attempts) == (1, 0)
        assert found[ids[2]].input_bytes == 5
        created = raw.hget(keys.job(ids[2], gateway.partitions), "created")
        assert found[ids[2]].accepted_us == int(created)

    @pytest.mark.parametrize("count", [1, 7, 100])
    async def test_pages_miss_none_and_repeat_none(self, gateway: Store, a: Processor, count: int) -> None:
        ids = [await submitted(gateway) for _ in range(30)]
        running = {job.id for job in await a.claim(5)}
        found = [job.id for job in await all_waiting(gateway, count)]
        expected = [i for i in ids if i not in running]
        by_partition = sorted(expected, key=lambda i: keys.partition_of(i, gateway.partitions))
        assert found == by_partition

    async def test_jobs_of_one_moment_are_all_listed(self, gateway: Store, raw: Any) -> None:
        ids = [await submitted(gateway) for _ in range(9)]
        for i in ids:
            raw.zadd(keys.unfinished(keys.partition_of(i, gateway.partitions)), {i: 1000})
        assert sorted(job.id for job in await all_waiting(gateway, 2)) == sorted(ids)

    async def test_more_that_run_than_one_call_looks_at(self, gateway: Store, raw: Any) -> None:
        wanted = await submitted(gateway)
        tag = keys.tag(keys.partition_of(wanted, gateway.partitions))
        for n in range(1200):
            raw.hset(f"{tag}:job:{n}", "status", "processing")
            raw.zadd(f"{tag}:unfinished:default", {str(n): n})
        assert [job.id for job in await all_waiting(gateway)] == [wanted]


class TestCancel:
    async def test_all_that_waits_ends_and_every_watcher_is_told(
        self, gateway: Store, a: Processor, raw: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("common.store.waiting.CANCELLED_IN_ONE_CALL", 4)
        running = await submitted(gateway)
        job = await a.claim_one()
        retried = await submitted(gateway)
        await a.store.claims.retry([(await a.claim_one(), 3600.0)])
        ids = [retried, *[await submitted(gateway, watch=True) for _ in range(9)]]
        async with gateway.subscription() as subscription:
            assert await WaitingJobs(gateway).cancel_all(SORRY) == 10
            told = await heard(subscription, 9)
        assert {i for i, _ in told} == set(ids[1:])
        assert {state.status for _, state in told} == {Status.CANCELLED}
        assert await gateway.jobs.read(ids[-1]) == CANCELLED
        assert await status(gateway, retried) == Status.CANCELLED
        assert await status(gateway, running) == Status.PROCESSING
        assert await a.store.claims.finish([(job, DONE)]) == [True]
        assert await a.claim() == []
        assert entries(raw, gateway.partitions) == 0

    async def test_nothing_waits(self, gateway: Store, raw: Any) -> None:
        async with gateway.subscription() as subscription:
            assert await WaitingJobs(gateway).cancel_all(SORRY) == 0
            await nothing_more(gateway, subscription, raw)
