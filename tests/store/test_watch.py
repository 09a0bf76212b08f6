"""`watch`: Who waits is told."""

import asyncio
from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytest

from common.store import keys
from common.store.announcements import parse_announcement
from common.store.claims import Outcome
from common.store.jobs import Submission
from common.store.states import JobState, Status
from tests.store.conftest import MakeStore
from tests.store.life import DONE, heard, nothing_more, submitted
from tests.store.store import Processor, Store

pytestmark = pytest.mark.leaves_jobs("transitions are looked at one by one, in the middle of a job's life")


class TestWatch:
    async def test_a_watcher_is_told_the_end_once(
        self, gateway: Store, make_store: MakeStore, a: Processor, raw: Any
    ) -> None:
        other = make_store("other")
        prediction_id = await submitted(gateway)
        async with gateway.subscription() as here, other.subscription() as there:
            for store in (gateway, gateway, other, gateway):
                state = await store.jobs.watch(prediction_id)
                assert state == JobState(Status.QUEUED, b"1")
            job = await a.claim_one()
            await a.store.claims.finish([(job, DONE)])
            await a.store.claims.finish([(job, DONE)])
            end = (prediction_id, JobState(Status.SUCCEEDED, None, "", b'"done"', job.queue_us, 42))
            for store, subscription in ((gateway, here), (other, there)):
                assert await heard(subscription, 1) == [end]
                await nothing_more(store, subscription, raw)

    @pytest.mark.parametrize("order", [(True, False), (False, True)], ids=["first", "last"])
    async def test_who_wants_every_change_is_told_each_once(
        self, gateway: Store, a: Processor, raw: Any, order: Sequence[bool]
    ) -> None:
        prediction_id = await submitted(gateway)
        async with gateway.subscription() as subscription:
            for changes in (*order, *order):
                await gateway.jobs.watch(prediction_id, changes=changes)
            await a.store.claims.retry([(await a.claim_one(), 0.0)])
            await a.store.claims.finish([(await a.claim_one(), DONE)])
            told = await heard(subscription, 4)
            assert [state.status for _, state in told] == ["processing", "queued", "processing", "succeeded"]
            await nothing_more(gateway, subscription, raw)

    async def test_who_only_looks_is_told_nothing(self, gateway: Store, a: Processor, raw: Any) -> None:
        prediction_id = await submitted(gateway)
        async with gateway.subscription() as subscription:
            await gateway.jobs.read(prediction_id)
            await a.store.claims.finish([(await a.claim_one(), DONE)])
            await nothing_more(gateway, subscription, raw)

    async def test_who_comes_late_sees_the_end_at_once_and_is_told_nothing(
        self, gateway: Store, a: Processor, raw: Any
    ) -> None:
        prediction_id = await submitted(gateway)
        await a.store.claims.finish([(await a.claim_one(), DONE)])
        async with gateway.subscription() as subscription:
            state = await gateway.jobs.watch(prediction_id, changes=True)
            assert state is not None
            assert (state.final, state.payload) == (True, b'"done"')
            await nothing_more(gateway, subscription, raw)

    @pytest.mark.parametrize(("size", "travels"), [(8192, True), (8193, False)])
    async def test_a_large_end_is_announced_without_its_payload(
        self, gateway: Store, a: Processor, size: int, travels: bool
    ) -> None:
        payload = b'"' + b"x" * (size - 2) + b'"'
        async with gateway.subscription() as subscription:
            prediction_id = await submitted(gateway, watch=True)
            await a.store.claims.finish([(await a.claim_one(), Outcome(Status.SUCCEEDED, payload))])
            ((_, announced),) = await heard(subscription, 1)
        assert announced.status == Status.SUCCEEDED
        assert announced.payload == (payload if travels else b"")
        state = await gateway.jobs.read(prediction_id)
        assert state is not None
        assert state.payload == payload

    async def test_a_batch_is_one_message(self, gateway: Store, a: Processor) -> None:
        async with gateway.subscription() as subscription:
            ids = list(islice(keys.new_ids(1), 20))
            await asyncio.gather(*[gateway.jobs.submit(Submission(i, b"1", watch=True)) for i in ids])
            outcome = Outcome(Status.SUCCEEDED, rb'"spaces  and \n escapes"')
            await a.store.claims.finish([(job, outcome) for job in await a.claim()])
            payload = await subscription.receive()
            assert payload is not None
            told = dict(parse_announcement(payload))
        assert list(told) == ids
        assert {state.payload for state in told.values()} == {outcome.payload}
