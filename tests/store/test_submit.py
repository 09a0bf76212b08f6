"""`submit`: Jobs come in once, whatever is repeated."""

import asyncio
from itertools import islice
from typing import Any

import pytest

from common.store import keys
from common.store.jobs import Submission
from common.store.states import JobState, Status
from tests.store.conftest import MakeStore
from tests.store.life import DONE, SORRY, new_id, submitted
from tests.store.store import Processor, Store

pytestmark = pytest.mark.leaves_jobs("transitions are looked at one by one, in the middle of a job's life")


class TestSubmit:
    async def test_a_job_is_found_at_once_and_waits(self, gateway: Store) -> None:
        prediction_id = await submitted(gateway, b'{"text": "hi"}')
        assert await gateway.jobs.read(prediction_id) == JobState(Status.QUEUED, b'{"text": "hi"}')
        assert (await gateway.queue.ring()).unfinished == 1

    async def test_an_unknown_id_is_unknown(self, gateway: Store) -> None:
        assert await gateway.jobs.read(new_id()) is None
        assert await gateway.jobs.watch(new_id()) is None
        assert await gateway.jobs.cancel(new_id(), SORRY) == "unknown"

    async def test_the_same_again_changes_nothing(self, gateway: Store, a: Processor) -> None:
        same = Submission(new_id(), b"1")
        replies = await asyncio.gather(gateway.jobs.submit(same), gateway.jobs.submit(same))
        words = [reply.decision for reply in [*replies, await gateway.jobs.submit(same)]]
        assert words == ["queued", "known", "known"]
        job = await a.claim_one()
        assert (await gateway.jobs.submit(same)).decision == "known"
        await a.store.claims.finish([(job, DONE)])
        assert (await gateway.jobs.submit(same)).decision == "known"
        assert (await gateway.queue.ring()).unfinished == 0

    async def test_another_input_under_the_same_id_conflicts(self, gateway: Store) -> None:
        prediction_id = await submitted(gateway, b"1")
        assert (await gateway.jobs.submit(Submission(prediction_id, b"2"))).decision == "conflict"
        assert await gateway.jobs.read(prediction_id) == JobState(Status.QUEUED, b"1")

    async def test_a_full_queue_takes_exactly_its_limit(self, make_store: MakeStore, a: Processor) -> None:
        gateway = make_store("gate", max_queue=3 * a.store.partitions)
        ids = list(islice(keys.new_ids(1), 5))
        replies = await asyncio.gather(*[gateway.jobs.submit(Submission(i, b"1")) for i in ids])
        assert [reply.decision for reply in replies] == ["queued", "queued", "queued", "full", "full"]
        assert await gateway.jobs.read(ids[3]) is None
        assert (await gateway.jobs.submit(Submission(ids[0], b"1"))).decision == "known"
        (job,) = await a.claim(1)  # running jobs count too
        assert (await gateway.jobs.submit(Submission(ids[3], b"1"))).decision == "full"
        await a.store.claims.finish([(job, DONE)])
        assert (await gateway.jobs.submit(Submission(ids[3], b"1"))).decision == "queued"

    async def test_many_at_once_make_few_calls(self, gateway: Store, raw: Any) -> None:
        await submitted(gateway)  # the script is loaded
        raw.config_resetstat()
        ids = list(islice(keys.new_ids(gateway.partitions), 200))
        replies = await asyncio.gather(*[gateway.jobs.submit(Submission(i, b"1")) for i in ids])
        assert {reply.decision for reply in replies} == {"queued"}
        stats = raw.info("commandstats")
        assert sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval")) <= (
            2 * gateway.partitions
        )


class TestIdempotencyKey:
    async def test_a_repeat_finds_the_first_for_its_whole_life(
        self, gateway: Store, a: Processor, raw: Any
    ) -> None:
        first = Submission(new_id(), b"1", key="a" * 32)
        assert (await gateway.jobs.submit(first))[:2] == ("queued", first.id)
        again = Submission(new_id(), b"1", key=first.key)
        assert (await gateway.jobs.submit(again))[:2] == ("known", first.id)
        assert (await gateway.jobs.submit(again._replace(input=b"2")))[:2] == ("conflict", first.id)
        assert (await gateway.jobs.submit(again._replace(key="b" * 32)))[:2] == ("queued", again.id)
        key = f"{keys.tag(0)}:key:{first.key}"
        assert raw.ttl(key) == -1
        for job in await a.claim():
            await a.store.claims.finish([(job, DONE)])
        assert 0 < raw.ttl(key) <= raw.ttl(keys.job(first.id, 1))
        assert (await gateway.jobs.submit(first._replace(id=new_id())))[:2] == ("known", first.id)

    async def test_a_key_without_its_job_is_free_again(self, gateway: Store, raw: Any) -> None:
        first = Submission(new_id(), b"1", key="a" * 32)
        await gateway.jobs.submit(first)
        raw.delete(keys.job(first.id, 1))
        second = first._replace(id=new_id(), input=b"2")
        assert (await gateway.jobs.submit(second))[:2] == ("queued", second.id)
        assert (await gateway.jobs.submit(second._replace(id=new_id())))[:2] == ("known", second.id)

    async def test_the_same_key_twice_at_once_is_one_job(self, gateway: Store) -> None:
        same = [Submission(new_id(), b"1", key="c" * 32) for _ in range(3)]
        replies = await asyncio.gather(*[gateway.jobs.submit(one) for one in same])
        assert [reply.decision for reply in replies] == ["queued", "known", "known"]
        assert {reply.id for reply in replies} == {same[0].id}
