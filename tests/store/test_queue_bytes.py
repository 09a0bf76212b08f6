"""MAX_QUEUE_BYTES: the bytes of all inputs that wait or run are counted exactly, wherever a job comes and goes."""

import asyncio
from itertools import islice
from typing import Any

import pytest

from common.store import keys
from common.store.claims import Outcome
from common.store.jobs import Submission
from common.store.states import Fault, Status
from tests.store.conftest import MakeStore
from tests.store.life import BROKEN, DONE, SORRY, new_id, pass_deadline, submitted
from tests.store.store import Processor, Store

pytestmark = pytest.mark.leaves_jobs("transitions are looked at one by one, in the middle of a job's life")

INPUT = b'"0123456789"'  # 12 bytes
GIVEN_UP = Outcome(Status.FAILED, b'"It died."', Fault.CRASH, given_up=True)


@pytest.fixture
def partitions() -> int:
    return 1


def counted(raw: Any) -> int:
    return int(raw.hget(f"{keys.tag(0)}:counts:default", "bytes") or 0)


async def decisions(store: Store, *inputs: bytes) -> list[str]:
    """Of jobs that come in one call."""
    submissions = [Submission(new_id(), input_) for input_ in inputs]
    return [r.decision for r in await asyncio.gather(*map(store.jobs.submit, submissions))]


async def test_it_is_full_at_the_last_byte(gateway: Store, make_store: MakeStore, raw: Any) -> None:
    small = make_store("small", max_queue_bytes=30)
    assert await decisions(small, INPUT, INPUT, INPUT, b'"67"', b'"689"', b'"x"') == [
        "queued", "queued", "full", "queued", "full", "full",
    ]  # fmt: skip
    assert counted(raw) == 28
    assert await decisions(small, b"12", b"1") == ["queued", "full"]
    assert await decisions(gateway, INPUT) == ["queued"]  # who has no limit counts too
    assert counted(raw) == 42


async def test_what_is_known_takes_no_room(gateway: Store, make_store: MakeStore, raw: Any) -> None:
    small = make_store("small", max_queue_bytes=12)
    same = Submission(new_id(), INPUT, key="a" * 32)
    assert (await small.jobs.submit(same)).decision == "queued"
    assert (await small.jobs.submit(same)).decision == "known"
    assert (await small.jobs.submit(same._replace(id=new_id()))).decision == "known"
    assert (await small.jobs.submit(same._replace(input=b"1"))).decision == "conflict"
    assert counted(raw) == 12


@pytest.mark.parametrize("digest", ["", "d" * 32], ids=["kept", "dropped"])
@pytest.mark.parametrize("end", ["succeeded", "failed", "given up", "fell silent", "cancelled", "expired"])
async def test_every_end_makes_room(
    gateway: Store, a: Processor, b: Processor, make_store: MakeStore, raw: Any, end: str, digest: str
) -> None:
    small = make_store("small", max_queue_bytes=20)
    prediction_id = new_id()
    await small.jobs.submit(Submission(prediction_id, INPUT, deadline_us=3600_000_000, digest=digest))
    assert await decisions(small, INPUT) == ["full"]
    if end == "cancelled":
        await gateway.jobs.cancel(prediction_id, SORRY)
    elif end == "expired":
        pass_deadline(raw, prediction_id)
        await gateway.queue.ring()
    elif end == "fell silent":
        raw.hset(keys.job(prediction_id, 1), "attempt", 2)
        await a.claim()
        assert await b.reclaim() == []
    else:
        outcome = {"succeeded": DONE, "failed": BROKEN, "given up": GIVEN_UP}[end]
        job = await a.claim_one()
        assert await decisions(small, INPUT) == ["full"]  # running ones count
        assert await a.store.claims.finish([(job, outcome)]) == [True]
        assert await a.store.claims.finish([(job, outcome)]) == [True]  # repeated: it frees nothing again
    assert counted(raw) == 0
    assert await decisions(small, INPUT) == ["queued"]


async def test_what_goes_back_into_the_queue_still_counts(
    gateway: Store, a: Processor, b: Processor, raw: Any
) -> None:
    await submitted(gateway, INPUT)
    await a.store.claims.retry([(await a.claim_one(), 0.0)])
    await a.store.claims.release([await a.claim_one()])
    await a.claim_one()
    assert len(await b.reclaim()) == 1
    assert counted(raw) == 12


async def test_a_dead_letter_comes_back_only_if_there_is_room(
    gateway: Store, a: Processor, make_store: MakeStore, raw: Any
) -> None:
    small = make_store("small", max_queue_bytes=20)
    prediction_id = await submitted(small, INPUT)
    await a.store.claims.finish([(await a.claim_one(), GIVEN_UP)])
    other = await submitted(small, INPUT)
    assert await small.dead_letters.revive(prediction_id) == "full"
    await small.jobs.cancel(other, SORRY)
    assert await small.dead_letters.revive(prediction_id) == "queued"
    assert counted(raw) == 12
    job = next(job for job in await a.claim() if job.id == prediction_id)
    await a.store.claims.finish([(job, DONE)])
    assert counted(raw) == 0


async def test_keys_deleted_by_hand_hold_no_room_for_ever(
    gateway: Store, make_store: MakeStore, raw: Any
) -> None:
    small = make_store("small", max_queue_bytes=20)
    prediction_id = await submitted(small, INPUT)
    raw.delete(keys.job(prediction_id, 1))
    await gateway.claims.sweep(silent_s=0)
    assert counted(raw) == 0
    assert await decisions(small, INPUT) == ["queued"]


async def test_each_partition_has_its_share(redis_url: str, open_store: MakeStore) -> None:
    four = open_store(redis_url, name="four", partitions=4, max_queue_bytes=50)
    await four.queue.prepare()
    assert [four.byte_limit(p) for p in range(4)] == [13, 13, 12, 12]
    ids = [keys.moved(i, p) for i in islice(keys.new_ids(1), 2) for p in range(4)]
    replies = await asyncio.gather(*[four.jobs.submit(Submission(i, INPUT)) for i in ids])
    assert sorted(reply.decision for reply in replies) == ["full"] * 4 + ["queued"] * 4
