"""One gateway and two processors do whatever they can, in any order, with the same few jobs; a dict knows what must
come of it. Processors keep every job they ever held and use it again later, as one that was suspended would."""

import asyncio
from collections import Counter
from collections.abc import Awaitable
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from redis import Redis

from common.store import keys
from common.store.announcements import parse_announcement
from common.store.claims import Job, Outcome
from common.store.jobs import Submission
from common.store.states import FINAL, MOVES, Fault, JobState, Status
from tests.store.store import Processor, Store

MAX_ATTEMPTS = 3
SORRY = "Prediction cancelled."
OUTCOMES = [
    Outcome(Status.SUCCEEDED, b"1", predict_us=7),
    Outcome(Status.SUCCEEDED, b'"two"'),
    Outcome(Status.FAILED, b'"It broke."', Fault.MODEL),
    Outcome(Status.FAILED, b'"It died."', Fault.CRASH, given_up=True),
]

FINISHED = {Status.SUCCEEDED, Status.FAILED}

some = st.integers(0, 1000)  # an index into whatever there is, modulo its length
processors = st.integers(0, 1)


@dataclass
class Model:
    """What must be true of one job."""

    input: bytes
    status: Status = Status.QUEUED
    fence: tuple[str, int, bytes] | None = (
        None  # owner, attempt and entry, of the present or the last delivery
    )
    attempt: int = 0
    payload: bytes = b""
    watcher: str = ""  # "", "end" or "changes"
    entry_stays: int = 0  # entries left in the stream: it was cancelled or expired while it was queued
    late: bool = False  # its deadline has passed
    delayed: bool = False  # a retry that waits for its time
    dead: bool = False  # kept among those given up
    told: list[Status] = field(default_factory=list)

    def move(self, transition: str, to: Status) -> None:
        sources, targets = MOVES[transition]
        assert self.status in sources, f"{transition} of a job that is {self.status}"
        assert to in targets, f"{transition} ended in {to}"
        changed, self.status = self.status != to, to
        if self.watcher == "changes" or (self.watcher and to in FINAL):
            self.told += [to] if changed else []
        if to in FINAL:
            self.watcher = ""


class Interleavings(RuleBasedStateMachine):
    """`url` and `partitions` come from the test's fixtures."""

    url: str
    partitions: int

    def __init__(self) -> None:
        super().__init__()
        self.raw: Any = Redis.from_url(self.url, decode_responses=True)
        self.raw.flushall()
        self.runner = asyncio.Runner()
        self.models: dict[str, Model] = {}
        self.held: list[tuple[int, Job]] = []  # every job that a processor was ever given
        self.heard: Counter[tuple[str, Status]] = Counter()
        # not random ones: a run that is repeated must meet the same partitions, or hypothesis takes it for flaky
        self.ids = (f"00000000-0000-4000-8000-{n:010x}{n % self.partitions:02x}" for n in count())
        self.run(self._open())

    def run(self, work: Awaitable[Any]) -> Any:
        async def main() -> Any:
            return await work

        return self.runner.run(main())

    async def _open(self) -> None:
        def store(name: str) -> Store:
            return Store(self.url, name=name, partitions=self.partitions, max_attempts=MAX_ATTEMPTS)

        self.gateway = store("gate")
        await self.gateway.queue.prepare()
        self.processors = [Processor(store("proc-a")), Processor(store("proc-b"))]
        self._listening = self.gateway.subscription()
        self.subscription = await self._listening.__aenter__()

    def teardown(self) -> None:
        try:
            self._everything_ends()
            self.run(self._leave())
        finally:
            self.run(self._close())
            self.runner.close()
            self.raw.close()

    async def _leave(self) -> None:
        for processor in self.processors:
            await processor.store.claims.leave()

    async def _close(self) -> None:
        await self._listening.__aexit__(None, None, None)
        for store in (self.gateway, *(processor.store for processor in self.processors)):
            await store.aclose()

    # -- the gateway

    def any_id(self, index: int) -> str:
        return list(self.models)[index % len(self.models)]

    async def _submit(self, prediction_id: str, input_: bytes, watch: bool, late: bool = False) -> str:
        deadline_us = 1 if late else 3600_000_000
        return (
            await self.gateway.jobs.submit(Submission(prediction_id, input_, watch, deadline_us))
        ).decision

    @rule(watch=st.booleans(), late=st.sampled_from([False, False, True]))
    def submit(self, watch: bool, late: bool) -> None:
        """With a deadline far away, or one that has passed by the time anybody looks."""
        prediction_id, input_ = next(self.ids), b"%d" % len(self.models)
        assert self.run(self._submit(prediction_id, input_, watch, late)) == "queued"
        self.models[prediction_id] = Model(input_, watcher="end" if watch else "", late=late)

    @precondition(lambda self: self.models)
    @rule(index=some, same=st.booleans())
    def submit_again(self, index: int, same: bool) -> None:
        prediction_id = self.any_id(index)
        input_ = self.models[prediction_id].input if same else b'"other"'
        assert self.run(self._submit(prediction_id, input_, True)) == ("known" if same else "conflict")

    @precondition(lambda self: self.models)
    @rule(index=some, changes=st.booleans())
    def watch(self, index: int, changes: bool) -> None:
        prediction_id = self.any_id(index)
        model = self.models[prediction_id]

        async def watch() -> JobState | None:
            return await self.gateway.jobs.watch(prediction_id, changes=changes)

        state = self.run(watch())
        assert state is not None
        assert state.status == model.status
        if not state.final and model.watcher != "changes":
            model.watcher = "changes" if changes else "end"

    @precondition(lambda self: self.models)
    @rule(index=some, only_mine=st.booleans())
    def cancel(self, index: int, only_mine: bool) -> None:
        prediction_id = self.any_id(index)
        model = self.models[prediction_id]
        word = self.run(self.gateway.jobs.cancel(prediction_id, SORRY, only_mine=only_mine))
        if model.status in FINAL:
            assert word == "finished"
        elif only_mine and model.watcher != "end":
            assert word == "watched"
        else:
            assert word == "cancelled"
            model.entry_stays += model.status == Status.QUEUED and not model.delayed
            model.move("cancel", Status.CANCELLED)
            model.payload = b'"%s"' % SORRY.encode()

    @rule(time_comes=st.booleans())
    def ring(self, time_comes: bool) -> None:
        """Perhaps after the time of all delayed retries has come."""
        for prediction_id, model in self.models.items():
            if time_comes and model.delayed and model.status not in FINAL:
                p = keys.partition_of(prediction_id, self.partitions)
                self.raw.zadd(f"{keys.tag(p)}:alarms:default", {prediction_id: 0})
                model.delayed = model.late
        tide = self.run(self.gateway.queue.ring())
        for model in self.models.values():
            if model.late and model.status not in FINAL:
                model.entry_stays += model.status == Status.QUEUED and not model.delayed
                self._expired(model, "ring")
        assert tide.unfinished == sum(model.status not in FINAL for model in self.models.values())

    @staticmethod
    def _expired(model: Model, transition: str) -> None:
        model.move(transition, Status.EXPIRED)
        model.payload = b'"Prediction expired: its deadline passed before it was done."'

    @precondition(lambda self: self.models)
    @rule(index=some)
    def revive(self, index: int) -> None:
        prediction_id = self.any_id(index)
        model = self.models[prediction_id]
        word = self.run(self.gateway.dead_letters.revive(prediction_id))
        assert word == ("queued" if model.dead else "unknown")
        if model.dead:
            model.move("revive", Status.QUEUED)
            model.told.clear()  # nobody watches it, and what was told before is told
            self.heard = Counter({key: n for key, n in self.heard.items() if key[0] != prediction_id})
            model.dead, model.late, model.fence, model.attempt, model.payload = False, False, None, 0, b""

    # -- a processor

    @rule(who=processors, count=st.integers(1, 4))
    def claim(self, who: int, count: int) -> None:
        name = self.processors[who].store.name
        for job in self.run(self.processors[who].claim(count)):
            model = self.models[job.id]
            if model.status == Status.PROCESSING and model.fence == (name, job.attempt, job.entry):
                continue  # handed out again: this processor reclaimed it, from behind its place in the stream
            assert model.status == Status.QUEUED
            self._started(who, job)
        self._given_up({Status.QUEUED})
        self._too_late({Status.QUEUED})

    @rule(who=processors, count=st.integers(1, 4))
    def reclaim(self, who: int, count: int) -> None:
        for job in self.run(self.processors[who].reclaim(count)):
            self._started(who, job)
        self._given_up({Status.QUEUED, Status.PROCESSING})
        self._too_late({Status.QUEUED, Status.PROCESSING})

    def _started(self, who: int, job: Job) -> None:
        model = self.models[job.id]
        model.attempt += 1
        assert (job.attempt, job.input) == (model.attempt, model.input)
        assert job.attempt <= MAX_ATTEMPTS
        assert not model.late
        assert not model.delayed
        model.move("claim", Status.PROCESSING)
        model.fence = (self.processors[who].store.name, job.attempt, job.entry)
        self.held.append((who, job))

    def _given_up(self, sources: set[Status]) -> None:
        """A start may end in failure instead, but only after the last attempt."""
        for prediction_id, model in self.models.items():
            if model.status in sources and model.attempt == MAX_ATTEMPTS:
                key = keys.job(prediction_id, self.partitions)
                status, fault, error = self.raw.hmget(key, "status", "fault", "error")
                if status == Status.FAILED:
                    assert fault == Fault.GIVEN_UP
                    model.move("claim", Status.FAILED)
                    model.payload = error.encode()
                    model.dead = True

    def _too_late(self, sources: set[Status]) -> None:
        """A start may end in expiry instead, if the deadline has passed."""
        for prediction_id, model in self.models.items():
            status = self.raw.hget(keys.job(prediction_id, self.partitions), "status")
            if model.status in sources and status == Status.EXPIRED:
                assert model.late
                self._expired(model, "claim")

    def any_held(self, index: int) -> tuple[Store, Job, bool]:
        """A job that some processor was given at some time, and whether it is still its own."""
        who, job = self.held[index % len(self.held)]
        store = self.processors[who].store
        model = self.models[job.id]
        return (
            store,
            job,
            model.status == Status.PROCESSING and model.fence == (store.name, job.attempt, job.entry),
        )

    @precondition(lambda self: self.held)
    @rule(index=some)
    def extend(self, index: int) -> None:
        store, job, own = self.any_held(index)
        model = self.models[job.id]
        recorded = model.status in FINISHED and model.fence == (store.name, job.attempt, job.entry)
        assert self.run(store.claims.extend([job])) == ([] if own or recorded else [job])

    @precondition(lambda self: self.held)
    @rule(index=some, outcome=st.sampled_from(OUTCOMES))
    def finish(self, index: int, outcome: Outcome) -> None:
        store, job, own = self.any_held(index)
        model = self.models[job.id]
        repeated = model.fence == (store.name, job.attempt, job.entry) and model.status == outcome.status
        assert self.run(store.claims.finish([(job, outcome)])) == [own or repeated]
        if own:
            model.move("finish", outcome.status)
            model.payload = outcome.payload
            model.dead = outcome.given_up

    @precondition(lambda self: self.held)
    @rule(index=some)
    def release(self, index: int) -> None:
        store, job, own = self.any_held(index)
        self.run(store.claims.release([job]))
        if own:
            self._released(self.models[job.id], counted=False)

    @precondition(lambda self: self.held)
    @rule(index=some, delay_s=st.sampled_from([0.0, 1800.0]))
    def retry(self, index: int, delay_s: float) -> None:
        store, job, own = self.any_held(index)
        self.run(store.claims.retry([(job, delay_s)]))
        if own:
            self._released(self.models[job.id], counted=True)
            self.models[job.id].delayed = bool(delay_s)

    @staticmethod
    def _released(model: Model, *, counted: bool) -> None:
        model.move("release", Status.QUEUED)
        model.fence = None
        model.attempt -= not counted

    @rule(who=processors)
    def leave(self, who: int) -> None:
        store = self.processors[who].store
        self.run(store.claims.leave())
        for model in self.models.values():
            if model.status == Status.PROCESSING and model.fence and model.fence[0] == store.name:
                self._released(model, counted=False)

    @rule(who=processors)
    def sweep(self, who: int) -> None:
        """Every job has its place, so it finds nothing to do."""
        assert self.run(self.processors[who].store.claims.sweep(silent_s=0.0)) == 0

    # -- what is always true

    @invariant()
    def the_store_says_what_the_model_says(self) -> None:
        async def read() -> list[JobState | None]:
            return await asyncio.gather(*[self.gateway.jobs.read(i) for i in self.models])

        for state, model in zip(self.run(read()), self.models.values(), strict=True):
            assert state is not None
            assert (state.status, state.input, state.payload) == (model.status, model.input, model.payload)

    @invariant()
    def an_unfinished_job_has_one_entry_and_no_ttl(self) -> None:
        entries: Counter[str] = Counter()
        for p in range(self.partitions):
            entries.update(fields["id"] for _, fields in self.raw.xrange(keys.jobs(p)))
        for prediction_id, model in self.models.items():
            final, count = model.status in FINAL, entries.pop(prediction_id, 0)
            if final or model.delayed:
                assert count <= model.entry_stays
            else:
                assert 1 <= count <= 1 + model.entry_stays
            assert (self.raw.ttl(keys.job(prediction_id, self.partitions)) > 0) == final
        assert not entries

    @invariant()
    def the_lag_is_the_backlog_or_unknown(self) -> None:
        """Unknown while the last delivered entry is gone, an older one runs and a newer one waits."""
        for p in range(self.partitions):
            (group,) = self.raw.xinfo_groups(keys.jobs(p))
            assert group["lag"] in (None, self.raw.xlen(keys.jobs(p)) - group["pending"])

    @invariant()
    def every_watcher_is_told_what_it_wanted_once(self) -> None:
        self.heard.update(self.run(self._announced()))
        told = Counter((i, status) for i, model in self.models.items() for status in model.told)
        assert self.heard == told

    async def _announced(self) -> list[tuple[str, Status]]:
        """All that was announced so far: messages keep their order, so after a mark there is nothing left."""
        self.raw.execute_command("SPUBLISH", keys.relay(0, self.gateway.name), "mark queued")
        found = []
        while True:
            payload = await self.subscription.receive()
            for prediction_id, state in parse_announcement(payload) if payload else ():
                if prediction_id == "mark":
                    return found
                if state.final:
                    assert state.payload == self.models[prediction_id].payload
                found.append((prediction_id, state.status))

    def _everything_ends(self) -> None:
        """Whatever happened: one processor that goes on working brings every job to its end."""
        for _ in range(len(self.models) + 2):
            self.ring(time_comes=True)
            self.reclaim(0, 4)
            self.claim(0, 4)
            for index in range(len(self.held)):
                self.finish(index, OUTCOMES[0])
        self.every_watcher_is_told_what_it_wanted_once()
        assert {model.status for model in self.models.values()} <= FINAL
        for p in range(self.partitions):
            assert self.raw.xlen(keys.jobs(p)) == 0
            assert not self.raw.exists(f"{keys.tag(p)}:alarms:default")


@pytest.mark.slow
@pytest.mark.parametrize("server", ["valkey"], indirect=True)
def test_any_interleaving(redis_url: str, partitions: int) -> None:
    machine = type("Machine", (Interleavings,), {"url": redis_url, "partitions": partitions})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=40,
            stateful_step_count=40,
            deadline=None,
            database=None,
            print_blob=True,
            phases=[
                Phase.generate
            ],  # when it fails: add Phase.shrink and wait minutes for a shorter way to the fault
            suppress_health_check=list(HealthCheck),
        ),
    )
