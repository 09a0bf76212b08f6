"""KEY_PREFIX: two deployments on one server have nothing in common."""

from typing import Any

import pytest

from common.store import keys
from common.store.claims import Outcome
from common.store.jobs import Submission
from common.store.states import Fault, Status
from tests.store.conftest import MakeStore
from tests.store.life import heard, new_id, nothing_more, status
from tests.store.store import Processor, Store

PREFIX = "staging:"
SOON = 60_000_000

pytestmark = pytest.mark.leaves_jobs("what has a prefix is looked at as a whole")


@pytest.fixture
async def ours(make_store: MakeStore) -> Store:
    """With the name of the gateway that has no prefix: only the prefix tells them apart."""
    store = make_store("gate", key_prefix=PREFIX)
    await store.queue.prepare()
    return store


async def test_the_same_id_is_two_predictions(
    gateway: Store, ours: Store, a: Processor, make_store: MakeStore, raw: Any
) -> None:
    b = Processor(make_store(a.store.name, key_prefix=PREFIX))
    prediction_id = new_id(gateway.partitions)
    async with gateway.subscription() as theirs_heard, ours.subscription() as ours_heard:
        for store, input_ in ((gateway, b'"theirs"'), (ours, b'"ours"')):
            submission = Submission(prediction_id, input_, watch=True, deadline_us=SOON, key="k" * 16)
            assert (await store.jobs.submit(submission)).decision == "queued"
        job = await b.claim_one()
        assert job.input == b'"ours"'
        assert await b.claim() == []
        await b.store.claims.finish([(job, Outcome(Status.SUCCEEDED, b'"ours, done"'))])
        assert [i for i, state in await heard(ours_heard, 1) if state.final] == [prediction_id]
        await nothing_more(gateway, theirs_heard, raw)
    assert await status(gateway, prediction_id) is Status.QUEUED
    assert (await a.claim_one()).input == b'"theirs"'
    assert (await gateway.queue.measure()).finished[Status.SUCCEEDED] == 0
    assert (await ours.queue.measure()).unfinished == 0


async def test_everything_it_writes_begins_with_it(ours: Store, make_store: MakeStore, raw: Any) -> None:
    b = Processor(make_store("b", key_prefix=PREFIX))
    async with ours.subscription():
        for n, outcome in enumerate((Outcome(Status.FAILED, b'"no"', Fault.MODEL, given_up=True), None)):
            submission = Submission(new_id(), b"1", watch=True, deadline_us=SOON, key=str(n))
            await ours.jobs.submit(submission)
            job = await b.claim_one()
            if outcome:
                await b.store.claims.finish([(job, outcome)])
            else:
                await b.store.claims.retry([(job, 3600.0)])
        channels = raw.execute_command("PUBSUB", "SHARDCHANNELS")
    await ours.queue.ring()
    await b.store.claims.sweep(silent_s=0.0)
    assert len(await ours.dead_letters.list(10)) == 1
    names = [name.decode() if isinstance(name, bytes) else name for name in (*raw.keys("*"), *channels)]
    assert len(names) > 8
    assert all(name.startswith(f"{PREFIX}{{f") for name in names), names
    (group,) = raw.xinfo_groups(keys.jobs(0, PREFIX))
    assert group["name"] in ("staging:processors", b"staging:processors")
