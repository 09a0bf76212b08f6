"""Every transition of the job store, as a gateway and two processors see it."""

import asyncio
from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytest

from common.store import keys
from common.store.announcements import parse_announcement
from common.store.claims import Job, Outcome
from common.store.connections import Subscription
from common.store.jobs import Submission
from common.store.states import Fault, JobState, Status
from tests.conftest import eventually
from tests.store.conftest import MakeStore
from tests.store.store import Processor, Store

pytestmark = pytest.mark.leaves_jobs("transitions are looked at one by one, in the middle of a job's life")

DONE = Outcome(Status.SUCCEEDED, b'"done"', predict_us=42)
BROKEN = Outcome(Status.FAILED, b'"It broke."', Fault.MODEL)
SORRY = "Prediction cancelled."
CANCELLED = JobState(Status.CANCELLED, b"1", Fault.CANCELLED, b'"Prediction cancelled."')


def new_id(partitions: int = 1) -> str:
    """An id of partition 0, unless there shall be more."""
    return next(keys.new_ids(partitions))


async def submitted(gateway: Store, input_: bytes = b"1", *, watch: bool = False) -> str:
    prediction_id = new_id(gateway.partitions)
    assert (await gateway.jobs.submit(Submission(prediction_id, input_, watch))).word == "queued"
    return prediction_id


async def status(store: Store, prediction_id: str) -> Status | None:
    state = await store.jobs.read(prediction_id)
    return state.status if state else None


async def heard(subscription: Subscription, count: int) -> list[tuple[str, JobState]]:
    """The next `count` announcements."""
    found: list[tuple[str, JobState]] = []
    async with asyncio.timeout(10):
        while len(found) < count:
            payload = await subscription.receive()
            found += parse_announcement(payload) if payload else []
    assert len(found) == count
    return found


async def nothing_more(store: Store, subscription: Subscription, raw: Any) -> None:
    """Messages keep their order: once a mark comes through, nothing before it was announced."""
    raw.execute_command("SPUBLISH", keys.relay(0, store.name), "mark queued")
    assert await heard(subscription, 1) == [("mark", JobState(Status.QUEUED))]


def entries(raw: Any, partitions: int) -> int:
    return sum(raw.xlen(keys.jobs(p)) for p in range(partitions))


def group(raw: Any, partition: int = 0) -> dict[str, Any]:
    (info,) = raw.xinfo_groups(keys.jobs(partition))
    return info


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
        words = [reply.word for reply in [*replies, await gateway.jobs.submit(same)]]
        assert words == ["queued", "known", "known"]
        job = await a.claim_one()
        assert (await gateway.jobs.submit(same)).word == "known"
        await a.store.claims.finish([(job, DONE)])
        assert (await gateway.jobs.submit(same)).word == "known"
        assert (await gateway.queue.ring()).unfinished == 0

    async def test_another_input_under_the_same_id_conflicts(self, gateway: Store) -> None:
        prediction_id = await submitted(gateway, b"1")
        assert (await gateway.jobs.submit(Submission(prediction_id, b"2"))).word == "conflict"
        assert await gateway.jobs.read(prediction_id) == JobState(Status.QUEUED, b"1")

    async def test_a_full_queue_takes_exactly_its_limit(self, make_store: MakeStore, a: Processor) -> None:
        gateway = make_store("gate", max_queue=3 * a.store.partitions)
        ids = list(islice(keys.new_ids(1), 5))
        replies = await asyncio.gather(*[gateway.jobs.submit(Submission(i, b"1")) for i in ids])
        assert [reply.word for reply in replies] == ["queued", "queued", "queued", "full", "full"]
        assert await gateway.jobs.read(ids[3]) is None
        assert (await gateway.jobs.submit(Submission(ids[0], b"1"))).word == "known"
        (job,) = await a.claim(1)  # running jobs count too
        assert (await gateway.jobs.submit(Submission(ids[3], b"1"))).word == "full"
        await a.store.claims.finish([(job, DONE)])
        assert (await gateway.jobs.submit(Submission(ids[3], b"1"))).word == "queued"

    async def test_many_at_once_make_few_calls(self, gateway: Store, raw: Any) -> None:
        await submitted(gateway)  # the script is loaded
        raw.config_resetstat()
        ids = list(islice(keys.new_ids(gateway.partitions), 200))
        replies = await asyncio.gather(*[gateway.jobs.submit(Submission(i, b"1")) for i in ids])
        assert {reply.word for reply in replies} == {"queued"}
        stats = raw.info("commandstats")
        assert sum(stats.get(f"cmdstat_{name}", {"calls": 0})["calls"] for name in ("evalsha", "eval")) <= (
            2 * gateway.partitions
        )


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


class TestFinish:
    async def test_the_result_is_there_and_its_life_begins(
        self, gateway: Store, a: Processor, raw: Any
    ) -> None:
        prediction_id = await submitted(gateway)
        key = keys.job(prediction_id, gateway.partitions)
        assert raw.ttl(key) == -1
        job = await a.claim_one()
        assert raw.ttl(key) == -1
        assert await a.store.claims.finish([(job, DONE)]) == [True]
        state = await gateway.jobs.read(prediction_id)
        assert state == JobState(Status.SUCCEEDED, b"1", "", b'"done"', job.queue_us, 42)
        assert 3590 < raw.ttl(key) <= 3600
        assert entries(raw, gateway.partitions) == 0
        assert group(raw, job.partition)["pending"] == 0

    async def test_a_failure_has_its_sentence_and_its_fault(
        self, gateway: Store, a: Processor, raw: Any
    ) -> None:
        prediction_id = await submitted(gateway)
        await a.store.claims.finish([(await a.claim_one(), BROKEN)])
        state = await gateway.jobs.read(prediction_id)
        assert state is not None
        assert (state.status, state.fault, state.payload) == (Status.FAILED, Fault.MODEL, b'"It broke."')
        assert not raw.exists(keys.dead(0))  # a model that raises is nothing for people

    async def test_a_result_passes_away(self, make_store: MakeStore, gateway: Store, raw: Any) -> None:
        a = Processor(make_store("proc-a", result_ttl_s=1))
        prediction_id = await submitted(gateway)
        await a.store.claims.finish([(await a.claim_one(), DONE)])
        assert raw.ttl(keys.job(prediction_id, gateway.partitions)) == 1

    async def test_many_at_once_each_get_their_own(self, gateway: Store, a: Processor) -> None:
        ids = [await submitted(gateway, b"%d" % number) for number in range(20)]
        jobs = await a.claim()
        outcomes = [(job, Outcome(Status.SUCCEEDED, b"[%s]" % job.input)) for job in reversed(jobs)]
        assert await a.store.claims.finish(outcomes) == [True] * 20
        for number, i in enumerate(ids):
            state = await gateway.jobs.read(i)
            assert state is not None
            assert state.payload == b"[%d]" % number

    async def test_again_is_recorded_still(self, gateway: Store, a: Processor) -> None:
        await submitted(gateway)
        job = await a.claim_one()
        assert await a.store.claims.finish([(job, DONE)]) == [True]
        assert await a.store.claims.finish([(job, DONE)]) == [True]
        assert await a.store.claims.finish([(job, BROKEN)]) == [False]


class TestFence:
    """Once another processor has a job, nothing that its former owner does changes it."""

    @pytest.fixture
    async def jobs(self, gateway: Store, a: Processor, b: Processor) -> tuple[Job, Job]:
        """The same job in the hands of `a`, who was silent too long, and of `b`."""
        await submitted(gateway)
        old = await a.claim_one()
        (new,) = await b.reclaim()
        return old, new

    async def test_a_late_result_is_refused(
        self, jobs: tuple[Job, Job], gateway: Store, a: Processor, b: Processor
    ) -> None:
        old, new = jobs
        assert await a.store.claims.finish([(old, BROKEN)]) == [False]
        assert await status(gateway, new.id) == Status.PROCESSING
        assert await b.store.claims.finish([(new, DONE)]) == [True]
        assert await a.store.claims.finish([(old, BROKEN)]) == [False]
        assert await a.store.claims.finish([(old, DONE)]) == [False]
        state = await gateway.jobs.read(new.id)
        assert state is not None
        assert state.payload == DONE.payload

    async def test_a_late_extension_is_lost(self, jobs: tuple[Job, Job], a: Processor, b: Processor) -> None:
        old, new = jobs
        assert await a.store.claims.extend([old]) == [old]
        assert await b.store.claims.extend([new]) == []
        (taken,) = await a.reclaim()
        assert taken.attempt == 3

    async def test_a_late_release_gives_nothing_back(
        self, jobs: tuple[Job, Job], gateway: Store, a: Processor, b: Processor
    ) -> None:
        old, new = jobs
        await a.store.claims.release([old])
        assert await status(gateway, new.id) == Status.PROCESSING
        assert await a.claim() == []
        assert await b.store.claims.finish([(new, DONE)]) == [True]

    @pytest.mark.parametrize("late", ["finish", "extend", "release"])
    async def test_a_processor_is_fenced_from_what_it_released_itself(
        self, gateway: Store, a: Processor, raw: Any, late: str
    ) -> None:
        """An uncounted release makes the same attempt number come again: the entry tells them apart."""
        await submitted(gateway)
        old = await a.claim_one()
        await a.store.claims.release([old])
        new = await a.claim_one()
        assert (new.attempt, new.entry != old.entry) == (1, True)
        if late == "finish":
            assert await a.store.claims.finish([(old, BROKEN)]) == [False]
        elif late == "extend":
            assert await a.store.claims.extend([old]) == [old]
        else:
            await a.store.claims.release([old])
        assert await status(gateway, new.id) == Status.PROCESSING
        assert await a.store.claims.finish([(new, DONE)]) == [True]
        assert entries(raw, gateway.partitions) == 0

    async def test_one_processor_that_took_its_own_job_over(self, gateway: Store, a: Processor) -> None:
        await submitted(gateway)
        old = await a.claim_one()
        (new,) = await a.reclaim()
        assert await a.store.claims.extend([old, new]) == [old]
        assert await a.store.claims.finish([(old, BROKEN)]) == [False]
        assert await a.store.claims.finish([(new, DONE)]) == [True]


class TestExtend:
    async def test_a_cancelled_and_an_unknown_job_are_lost(self, gateway: Store, a: Processor) -> None:
        kept, gone = [await submitted(gateway), await submitted(gateway)]
        jobs = await a.claim()
        await gateway.jobs.cancel(gone, SORRY)
        unknown = Job(new_id(), 0, b"1-1", 1, b"1", 0)
        lost = await a.store.claims.extend([*jobs, unknown])
        assert {job.id for job in lost} == {gone, unknown.id}
        assert await status(gateway, kept) == Status.PROCESSING

    async def test_what_this_attempt_recorded_is_not_lost(self, gateway: Store, a: Processor) -> None:
        """The leases are renewed on their own connection, perhaps before the reply to finish is there."""
        await submitted(gateway)
        job = await a.claim_one()
        await a.store.claims.finish([(job, DONE)])
        assert await a.store.claims.extend([job]) == []

    async def test_any_number_of_jobs_can_be_held(self, gateway: Store, a: Processor) -> None:
        """One Lua call takes some 8,000 values: eight model processes with batches of 1,024 hold more."""
        ids = list(islice(keys.new_ids(1), 9000))
        await asyncio.gather(*[gateway.jobs.submit(Submission(i, b"1")) for i in ids])
        jobs = await a.claim(9000)
        assert len(jobs) == 9000
        assert await a.store.claims.extend(jobs) == []


class TestRelease:
    @pytest.mark.parametrize(("counted", "attempt"), [(True, 2), (False, 1)])
    async def test_another_processor_has_it_at_once(
        self, gateway: Store, a: Processor, b: Processor, counted: bool, attempt: int
    ) -> None:
        prediction_id = await submitted(gateway)
        job = await a.claim_one()
        await (a.store.claims.retry([(job, 0.0)]) if counted else a.store.claims.release([job]))
        assert await status(gateway, prediction_id) == Status.QUEUED
        assert (await gateway.queue.ring()).unfinished == 1
        job = await b.claim_one()
        assert (job.id, job.attempt) == (prediction_id, attempt)
        assert await b.store.claims.finish([(job, DONE)]) == [True]
        assert (await gateway.queue.ring()).unfinished == 0

    async def test_twice_is_once(self, gateway: Store, a: Processor, b: Processor) -> None:
        await submitted(gateway)
        job = await a.claim_one()
        await a.store.claims.release([job])
        await a.store.claims.release([job])
        assert (await b.claim_one()).attempt == 1

    async def test_the_queue_can_still_be_measured(self, gateway: Store, a: Processor, raw: Any) -> None:
        for i in islice(keys.new_ids(1), 3):
            await gateway.jobs.submit(Submission(i, b"1"))
        await a.store.claims.retry([(job, 0.0) for job in await a.claim(1)])
        assert group(raw)["lag"] == 3


class TestRetry:
    """A retry that waits for its time is in no stream: Redis keeps it among the alarms."""

    async def test_it_waits_for_its_time_and_counts(
        self, gateway: Store, a: Processor, b: Processor, raw: Any
    ) -> None:
        prediction_id = await submitted(gateway)
        job = await a.claim_one()
        await a.store.claims.retry([(job, 3600.0)])
        assert await status(gateway, prediction_id) == Status.QUEUED
        tide = await gateway.queue.ring()
        assert tide.unfinished == 1
        assert tide.next_s is not None
        assert 3590 < tide.next_s <= 3600
        assert await b.claim() == []
        ring_now(raw, prediction_id)
        assert (await gateway.queue.ring()).next_s is None
        again = await b.claim_one()
        assert (again.id, again.attempt) == (prediction_id, 2)
        assert await b.store.claims.finish([(again, DONE)]) == [True]
        assert (await gateway.queue.ring()) == (None, 0, 1)

    async def test_a_cancelled_one_never_comes(self, gateway: Store, a: Processor, raw: Any) -> None:
        prediction_id = await submitted(gateway)
        await a.store.claims.retry([(await a.claim_one(), 3600.0)])
        assert await gateway.jobs.cancel(prediction_id, SORRY) == "cancelled"
        assert (await gateway.queue.ring()) == (None, 0, 1)
        assert not raw.exists(f"{keys.tag(0)}:alarms:default")

    async def test_one_past_its_deadline_is_expired_and_not_tried(
        self, gateway: Store, a: Processor, raw: Any
    ) -> None:
        prediction_id = new_id()
        await gateway.jobs.submit(Submission(prediction_id, b"1", deadline_us=60_000_000))
        await a.store.claims.retry([(await a.claim_one(), 3600.0)])
        tide = await gateway.queue.ring()
        assert tide.next_s is not None
        assert tide.next_s <= 60
        pass_deadline(raw, prediction_id)
        await gateway.queue.ring()
        assert await status(gateway, prediction_id) == Status.EXPIRED
        assert await a.claim() == []


def ring_now(raw: Any, prediction_id: str) -> None:
    """As if the time had come."""
    assert raw.zadd(f"{keys.tag(0)}:alarms:default", {prediction_id: 0}, xx=True, ch=True)


def pass_deadline(raw: Any, prediction_id: str) -> None:
    raw.hset(keys.job(prediction_id, 1), "deadline", 1)
    ring_now(raw, prediction_id)


class TestDeadline:
    async def test_one_that_passed_in_the_queue_is_expired_and_never_started(
        self, gateway: Store, a: Processor
    ) -> None:
        prediction_id = new_id()
        await gateway.jobs.submit(Submission(prediction_id, b"1", deadline_us=1))
        assert await a.claim() == []
        state = await gateway.jobs.read(prediction_id)
        assert state is not None
        assert (state.status, state.fault) == (Status.EXPIRED, Fault.EXPIRED)
        assert (await gateway.queue.ring()) == (None, 0, 1)

    async def test_without_any_processor_too(self, gateway: Store, a: Processor) -> None:
        prediction_id = new_id()
        async with gateway.subscription() as subscription:
            await gateway.jobs.submit(Submission(prediction_id, b"1", watch=True, deadline_us=1))
            await gateway.queue.ring()
            ((told, state),) = await heard(subscription, 1)
        assert (told, state.status) == (prediction_id, Status.EXPIRED)
        assert await a.claim() == []  # and removes the entry
        assert (await gateway.queue.ring()) == (None, 0, 1)

    async def test_one_that_passes_while_it_runs_is_expired_and_its_owner_told(
        self, gateway: Store, a: Processor, raw: Any
    ) -> None:
        prediction_id = new_id()
        await gateway.jobs.submit(Submission(prediction_id, b"1", deadline_us=60_000_000))
        job = await a.claim_one()
        pass_deadline(raw, prediction_id)
        async with a.store.subscription() as subscription:
            await gateway.queue.ring()
            ((told, state),) = await heard(subscription, 1)
        assert (told, state.status) == (prediction_id, Status.EXPIRED)
        assert await a.store.claims.finish([(job, DONE)]) == [False]
        assert await a.store.claims.extend([job]) == [job]
        assert not raw.xlen(keys.jobs(0))

    async def test_one_that_is_met_leaves_no_alarm(self, gateway: Store, a: Processor, raw: Any) -> None:
        await gateway.jobs.submit(Submission(new_id(), b"1", deadline_us=60_000_000))
        await a.store.claims.finish([(await a.claim_one(), DONE)])
        assert not raw.exists(f"{keys.tag(0)}:alarms:default")


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
        assert [reply.word for reply in replies] == ["queued", "known", "known"]
        assert {reply.id for reply in replies} == {same[0].id}


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


class TestDead:
    """What was given up is kept for people."""

    GIVEN_UP = Outcome(Status.FAILED, b'"It died."', Fault.CRASH, given_up=True, traceback="line 1")

    async def buried(self, gateway: Store, a: Processor, input_: bytes = b"1") -> str:
        prediction_id = await submitted(gateway, input_)
        assert await a.store.claims.finish([(await a.claim_one(), self.GIVEN_UP)]) == [True]
        return prediction_id

    async def test_it_is_listed_with_all_that_is_known(self, gateway: Store, a: Processor) -> None:
        prediction_id = await self.buried(gateway, a, b'{"a": 1}')
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
        ids = [await self.buried(gateway, a) for _ in range(5)]
        first = await gateway.dead_letters.list(3)
        second = await gateway.dead_letters.list(3, after=first[-1].place)
        assert [dead.id for dead in [*first, *second]] == ids[::-1]

    async def test_it_lives_again_under_its_id(self, gateway: Store, a: Processor, raw: Any) -> None:
        prediction_id = await self.buried(gateway, a)
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
        prediction_id = await self.buried(gateway, a)
        raw.delete(keys.job(prediction_id, gateway.partitions))
        assert await gateway.dead_letters.revive(prediction_id) == "queued"
        assert (await a.claim_one()).input == b"1"

    async def test_it_does_not_replace_what_was_submitted_again(
        self, gateway: Store, a: Processor, raw: Any
    ) -> None:
        prediction_id = await self.buried(gateway, a)
        raw.delete(keys.job(prediction_id, gateway.partitions))
        await gateway.jobs.submit(Submission(prediction_id, b"2"))
        assert await gateway.dead_letters.revive(prediction_id) == "known"
        assert await gateway.jobs.read(prediction_id) == JobState(Status.QUEUED, b"2")

    async def test_a_full_queue_takes_none(self, gateway: Store, a: Processor, make_store: MakeStore) -> None:
        prediction_id = await self.buried(gateway, a)
        small = make_store("gate", max_queue=gateway.partitions)
        for p in range(gateway.partitions):
            await small.jobs.submit(Submission(keys.moved(new_id(), p), b"1"))
        assert await small.dead_letters.revive(prediction_id) == "full"
        assert len(await gateway.dead_letters.list(10)) == 1

    async def test_it_can_be_forgotten(self, gateway: Store, a: Processor) -> None:
        prediction_id = await self.buried(gateway, a)
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
        ids = [await self.buried(gateway, a, large) for _ in range(9)]
        found: list[str] = []
        place = ""
        while page := await gateway.dead_letters.list(10, after=place):
            assert len(page) == 1  # a page is bounded in bytes too
            place = page[-1].place
            found.append(page[-1].id)
        assert 5 <= len(found) < 9
        assert found == ids[: -len(found) - 1 : -1]
        assert raw.memory_usage(keys.dead(0), samples=0) <= 64 << 20


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


class TestLeave:
    async def test_it_gives_back_what_it_never_started_and_is_gone(
        self, gateway: Store, a: Processor, b: Processor, raw: Any
    ) -> None:
        ids = list(islice(keys.new_ids(1), 3))
        for i in ids:
            await gateway.jobs.submit(Submission(i, b"1"))
        (job,) = await a.claim(1)
        await a.store.claims.finish([(job, DONE)])
        raw.xreadgroup(keys.GROUP, a.store.name, {keys.jobs(0): ">"}, count=1)
        await a.store.claims.leave()
        assert raw.xinfo_consumers(keys.jobs(0), keys.GROUP) == []
        assert group(raw)["lag"] == 2
        assert sorted((job.id, job.attempt) for job in await b.claim()) == sorted((i, 1) for i in ids[1:])

    async def test_what_runs_goes_back_too_without_counting_the_attempt(
        self, gateway: Store, a: Processor, b: Processor, raw: Any
    ) -> None:
        prediction_id = await submitted(gateway)
        old = await a.claim_one()
        await a.store.claims.leave()
        assert raw.xinfo_consumers(keys.jobs(old.partition), keys.GROUP) == []
        assert await status(gateway, prediction_id) == Status.QUEUED
        assert await a.store.claims.finish([(old, BROKEN)]) == [False]
        job = await b.claim_one()
        assert (job.id, job.attempt) == (prediction_id, 1)
        assert await b.store.claims.finish([(job, DONE)]) == [True]

    async def test_it_leaves_the_others_alone(self, gateway: Store, a: Processor, b: Processor) -> None:
        await submitted(gateway)
        old = await a.claim_one()
        (new,) = await b.reclaim()
        await a.store.claims.leave()
        assert await b.store.claims.extend([old, new]) == [old]
        assert await b.store.claims.finish([(new, DONE)]) == [True]

    async def test_leaving_without_ever_having_claimed(self, gateway: Store, a: Processor) -> None:
        await a.store.claims.leave()

    async def test_the_dead_are_removed_but_not_those_who_hold_something(
        self, gateway: Store, a: Processor, b: Processor, raw: Any, partitions: int
    ) -> None:
        await gateway.jobs.submit(Submission(new_id(), b"1"))
        (job,) = await a.claim()
        assert await b.claim() == []

        def idle_ms() -> int:
            return min(
                c["idle"] for p in range(partitions) for c in raw.xinfo_consumers(keys.jobs(p), keys.GROUP)
            )

        await eventually(lambda: idle_ms() > 2)
        assert await gateway.claims.remove_dead_consumers(idle_s=60) == 0
        await gateway.claims.remove_dead_consumers(idle_s=0.001)
        assert [c["name"] for c in raw.xinfo_consumers(keys.jobs(0), keys.GROUP)] == [a.store.name]
        assert await a.store.claims.finish([(job, DONE)]) == [True]
