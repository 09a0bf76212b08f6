"""`revive`: What was given up is kept for people, and can be queued again."""

import asyncio
from itertools import islice
from typing import Any

import pytest

from common.store import keys
from common.store.claims import Outcome
from common.store.jobs import Submission
from common.store.states import Fault, JobState, Status
from tests.store.conftest import MakeStore
from tests.store.life import DONE, new_id, status, submitted
from tests.store.store import Processor, Store

pytestmark = pytest.mark.leaves_jobs("transitions are looked at one by one, in the middle of a job's life")


class TestDead:
    """What was given up is kept for people."""

    GIVEN_UP = Outcome(Status.FAILED, b'"It died."', Fault.CRASH, given_up=True, traceback="line 1")

    async def dead_letter(self, gateway: Store, a: Processor, input_: bytes = b"1") -> str:
        prediction_id = await submitted(gateway, input_)
        assert await a.store.claims.finish([(await a.claim_one(), self.GIVEN_UP)]) == [True]
        return prediction_id

    async def test_it_is_listed_with_all_that_is_known(self, gateway: Store, a: Processor) -> None:
        prediction_id = await self.dead_letter(gateway, a, b'{"a": 1}')
        (dead,) = await gateway.dead_letters.list(10)
        assert dead[2:] == (prediction_id, b'{"a": 1}', b'"It died."', 1, "proc-a", "line 1")

    async def test_one_whose_processors_all_fell_silent_is_there_too(
        self, gateway: Store, a: Processor, b: Processor, raw: Any
    ) -> None:
        prediction_id = await submitted(gateway)
        raw.hset(keys.job(prediction_id, gateway.partitions), "attempt", 2)
        await a.claim_one()
        assert await b.reclaim() == []
        (dead,) = await gateway.dead_letters.list(10)
        assert (dead.id, dead.attempts, dead.processor) == (prediction_id, 3, "proc-a")
        assert b"given up after 3 attempts" in dead.error

    async def test_pages_go_from_the_newest_back(self, gateway: Store, a: Processor) -> None:
        ids = [await self.dead_letter(gateway, a) for _ in range(5)]
        first = await gateway.dead_letters.list(3)
        second = await gateway.dead_letters.list(3, after=first[-1].cursor)
        assert [dead.id for dead in [*first, *second]] == ids[::-1]

    async def test_it_lives_again_under_its_id(self, gateway: Store, a: Processor, raw: Any) -> None:
        prediction_id = await self.dead_letter(gateway, a)
        assert await gateway.dead_letters.revive(prediction_id) == "queued"
        assert await gateway.jobs.read(prediction_id) == JobState(Status.QUEUED, b"1")
        assert raw.ttl(keys.job(prediction_id, gateway.partitions)) == -1
        assert await gateway.dead_letters.list(10) == []
        assert (await gateway.queue.ring()).unfinished == 1
        job = await a.claim_one()
        assert (job.id, job.attempt) == (prediction_id, 1)
        assert await a.store.claims.finish([(job, DONE)]) == [True]
        assert await gateway.dead_letters.revive(prediction_id) == "unknown"

    async def test_it_outlives_its_result(self, gateway: Store, a: Processor, raw: Any) -> None:
        prediction_id = await self.dead_letter(gateway, a)
        raw.delete(keys.job(prediction_id, gateway.partitions))
        assert await gateway.dead_letters.revive(prediction_id) == "queued"
        assert (await a.claim_one()).input == b"1"

    async def test_it_does_not_replace_what_was_submitted_again(
        self, gateway: Store, a: Processor, raw: Any
    ) -> None:
        prediction_id = await self.dead_letter(gateway, a)
        raw.delete(keys.job(prediction_id, gateway.partitions))
        await gateway.jobs.submit(Submission(prediction_id, b"2"))
        assert await gateway.dead_letters.revive(prediction_id) == "known"
        assert await gateway.jobs.read(prediction_id) == JobState(Status.QUEUED, b"2")

    async def test_a_full_queue_takes_none(self, gateway: Store, a: Processor, make_store: MakeStore) -> None:
        prediction_id = await self.dead_letter(gateway, a)
        small = make_store("gate", max_queue=gateway.partitions)
        for p in range(gateway.partitions):
            await small.jobs.submit(Submission(keys.moved(new_id(), p), b"1"))
        assert await small.dead_letters.revive(prediction_id) == "full"
        assert len(await gateway.dead_letters.list(10)) == 1

    async def test_it_can_be_forgotten(self, gateway: Store, a: Processor) -> None:
        prediction_id = await self.dead_letter(gateway, a)
        assert await gateway.dead_letters.forget(prediction_id)
        assert not await gateway.dead_letters.forget(prediction_id)
        assert await gateway.dead_letters.list(10) == []
        assert await status(gateway, prediction_id) == Status.FAILED

    async def test_they_are_bounded_in_number(
        self, gateway: Store, a: Processor, raw: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(keys, "DEAD_LIMIT", 10)
        await asyncio.gather(
            *[gateway.jobs.submit(Submission(i, b"1")) for i in islice(keys.new_ids(1), 300)]
        )
        assert all(await a.store.claims.finish([(job, self.GIVEN_UP) for job in await a.claim(300)]))
        assert raw.xlen(keys.dead(0)) == 10

    async def test_they_are_bounded_in_bytes(self, gateway: Store, a: Processor, raw: Any) -> None:
        large = b'"%b"' % (b"x" * (8 << 20))
        ids = [await self.dead_letter(gateway, a, large) for _ in range(9)]
        found: list[str] = []
        place = ""
        while page := await gateway.dead_letters.list(10, after=place):
            assert len(page) == 1  # a page is bounded in bytes too
            place = page[-1].cursor
            found.append(page[-1].id)
        assert 5 <= len(found) < 9
        assert found == ids[: -len(found) - 1 : -1]
        assert raw.memory_usage(keys.dead(0), samples=0) <= 64 << 20
