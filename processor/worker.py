"""The processor's loop: claim → start → predict → finish, with leases kept beside it.

What it must never do: answer a job twice, lose one it has claimed, or hold more than it can run soon. Claim and start
are one step in the store; every claimed job is in `_in_hand` until its end is recorded, and ends in exactly one of
`_finish` (recorded, fenced), `_give_back` (released) or `_drop` (somebody else has it, or nobody wants it).
"""

import asyncio
import contextlib
import time
from collections.abc import Iterable
from dataclasses import dataclass

import orjson
import structlog

from common.errors import ModelFault, StoreUnavailable
from common.settings import ProcessorSettings
from common.store.alarm_clock import AlarmClock
from common.store.announcements import parse_announcement
from common.store.claims import Claims, Job, Outcome, Reader
from common.store.queue import Queue
from common.store.session import Session
from common.store.states import Fault, Status
from common.tracing import Tracing
from processor import metrics
from processor.batcher import Batcher, Pace
from processor.model.frames import Item, Kind
from processor.model.process import ModelDied, ModelProcess
from processor.observer import Observer

log = structlog.get_logger("foretell")

COLLECT_S = 0.001  # between claims while every model process is busy
RETRY_S = 0.3  # between tries while the server is away
CANCEL_GRACE_S = (
    1.0  # for a running prediction that nobody wants to end by itself, before its process is ended
)
START_TRIES = 5  # a model that worked and now cannot be loaded any more ends the service
FINISH_MAX = 512


@dataclass(slots=True)
class HandOver:
    """What a model process works on, in the order in which it answers."""

    jobs: list[Job]
    answered: int = 0

    def place(self, job: Job) -> int | None:
        """Where the job stands, if it is not answered yet."""
        return self.jobs.index(job) if job in self.jobs[self.answered :] else None


class Worker:
    """One processor: `models` model processes, all started, share one batcher."""

    def __init__(
        self, session: Session, models: list[ModelProcess], settings: ProcessorSettings, tracing: Tracing
    ) -> None:
        self._session = session
        self.claims = Claims(session)
        self._queue = Queue(session)
        self._models = models
        self._observer = Observer(settings, tracing)
        self._max_attempts = settings.max_attempts
        self._lease_s = settings.lease_s
        batch = models[0].batch
        self._pace = Pace(batch=batch, max_batch_size=settings.max_batch_size)
        self._batcher = Batcher(self._pace, max_wait_s=settings.max_batch_wait_ms / 1000 if batch else 0.0)
        self._idle = len(models)
        self._in_hand: dict[str, Job] = {}
        self._ended: list[tuple[Job, Outcome | float]] = []  # a number: try again after so many seconds
        self._work = asyncio.Event()  # something waits for a model process
        self._room = asyncio.Event()  # something may be claimed
        self._end = asyncio.Event()  # something ended and must be recorded
        now = time.monotonic()
        self._heard = [now] * session.partitions  # when each partition's server last answered
        # no reclaiming before these times: after a start or a long outage, jobs of the living look abandoned too
        self._reclaim_from = [now + self._lease_s] * session.partitions
        self._running: dict[ModelProcess, HandOver] = {}
        self.stopping = False
        metrics.MODEL_PROCESSES.set(len(models))
        metrics.IN_HAND.set_function(lambda: len(self._in_hand))

    # -- its life

    async def run(self) -> None:
        """Work until cancelled. A loop that ends for another reason ends the service."""
        async with asyncio.TaskGroup() as group:
            self._claiming = [
                group.create_task(self._claim_forever(reader), name=f"claim {reader.partition}")
                for reader in self.claims.readers()
            ]
            for model in self._models:
                group.create_task(self._predict_forever(model), name="predict")
            group.create_task(self._finish_forever(), name="finish")
            group.create_task(self._extend_forever(), name="leases")
            group.create_task(self._hear_forever(), name="cancellations")
            group.create_task(self._sweep_forever(), name="dead consumers")
            group.create_task(AlarmClock(self._queue).run(), name="alarms")

    async def drain(self, seconds: float) -> None:
        """Claim no more, finish what runs, give back what waits, leave. Ends within about `seconds`."""
        self.stopping = True
        self._room.set()
        try:
            async with asyncio.timeout(seconds):
                for claim in self._claiming:
                    claim.cancel()  # what it was being given, `leave` gives back
                await asyncio.wait(self._claiming)
                # an answer means that the server saw our readers go: what we give back is not delivered to them
                await self._queue.ring()
                await self._give_back_uncounted(self._batcher.clear())
                while self._in_hand:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            log.warning("drain took too long, giving back what runs", jobs=len(self._in_hand))
            await self._give_back_uncounted(self._in_hand.values())
        await self.claims.leave()

    async def _give_back_uncounted(self, jobs: Iterable[Job]) -> None:
        jobs = list(jobs)
        await self.claims.release(jobs)
        for job in jobs:
            self._drop(job)

    # -- claim and start

    async def _claim_forever(self, reader: Reader) -> None:
        next_reclaim, p = 0.0, reader.partition
        while True:
            room = self._free()
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            now = time.monotonic()
            try:
                if reclaim := now >= max(next_reclaim, self._reclaim_from[p]):
                    next_reclaim = now + self._lease_s / 4
                    jobs = await self.claims.reclaim(reader, room, idle_s=self._lease_s)
                else:
                    jobs = await self.claims.claim(reader, room)
            except StoreUnavailable:
                self._not_heard({p})
                await asyncio.sleep(RETRY_S)
                continue
            self._heard[p] = time.monotonic()
            if self._take_in(await self._without_surplus(jobs), reclaimed=reclaim):
                await self._let_collect()

    async def _without_surplus(self, jobs: list[Job]) -> list[Job]:
        """What there is room for, the rest given back. Several readers may each have asked for the same room; for a
        slow model, what waits here would keep it from an idle processor."""
        surplus = len(jobs) - max(self._free(), 0)
        if surplus <= 0 or self._pace.ahead:
            return jobs
        try:
            await self.claims.release(jobs[-surplus:])
        except StoreUnavailable:
            return jobs
        return jobs[:-surplus]

    async def _let_collect(self) -> None:
        """While every model process is busy, nobody waits for the next claim: let it find more. The jobs just
        claimed go first, too: their way to the model is what a waiting client feels."""
        await asyncio.sleep(0)
        if self._idle == 0:
            self._room.clear()
            try:
                async with asyncio.timeout(COLLECT_S):
                    await self._room.wait()
            except TimeoutError:
                pass

    def _free(self) -> int:
        """How many may be claimed now: what idle model processes can start, plus what may wait ahead."""
        if len(self._ended) > 4 * FINISH_MAX:
            return 0  # results cannot be recorded at the moment: take no more on
        size = self._pace.size
        return self._idle * size + len(self._models) * self._pace.ahead - len(self._batcher)

    def _take_in(self, jobs: list[Job], *, reclaimed: bool) -> bool:
        """Whether there was anything new in it."""
        new = []
        for job in jobs:
            old = self._in_hand.get(job.id)
            if old and (old.entry, old.attempt) == (job.entry, job.attempt):
                continue  # the same delivery, seen twice because its first reply was lost
            if old:
                self._unwanted(old)  # we were silent for a lease and took our own job over
            self._in_hand[job.id] = job
            new.append(job)
        if new:
            self._observer.taken(new, reclaimed=reclaimed)
            self._batcher.add(new, time.monotonic())
            self._work.set()
        return bool(new)

    def _not_heard(self, partitions: Iterable[int]) -> None:
        """Their servers did not answer. Leases are renewed every quarter, so after less than half of one without an
        answer the living still renew in time, and nothing need be put off: else a network that breaks again and
        again would keep the jobs of the dead for ever."""
        now = time.monotonic()
        for p in partitions:
            if now - self._heard[p] > self._lease_s / 2:
                self._reclaim_from[p] = now + self._lease_s

    # -- predict

    async def _predict_forever(self, model: ModelProcess) -> None:
        while True:
            jobs = await self._next_batch()
            self._idle -= 1
            try:
                await self._predict(model, jobs)
            finally:
                self._idle += 1
                self._room.set()

    async def _next_batch(self) -> list[Job]:
        while True:
            wait_s = self._batcher.wait_s(time.monotonic())
            if wait_s == 0:
                jobs = self._batcher.take()
                self._room.set()
                return jobs
            self._work.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._work.wait()
            except TimeoutError:
                pass

    async def _predict(self, model: ModelProcess, jobs: list[Job]) -> None:
        """Run one batch. If the model process dies, its jobs run again one by one, so that the bad one fails alone."""
        self._running[model] = hand_over = HandOver(jobs)
        spans = self._observer.handed_over(jobs)
        started = time.perf_counter()
        died = None
        try:
            async for items in model.predict([job.input for job in jobs]):
                for item in items:
                    if span := spans[hand_over.answered]:
                        span.end()
                    self._answered(jobs[hand_over.answered], item)
                    hand_over.answered += 1
        except ModelDied as error:
            died = error
        spent = time.perf_counter() - started
        metrics.PREDICT_SECONDS.observe(spent)
        if died is None:
            self._pace.measured(spent, len(jobs))
        else:
            del self._running[model]  # a late cancellation must not end the next process
            unanswered = jobs[hand_over.answered :]
            self._observer.died(unanswered, spans[hand_over.answered :], str(died))
            await self._after_death(model, unanswered, died)

    def _answered(self, job: Job, item: Item) -> None:
        if job.dropped:
            return
        if item.kind == Kind.RESULT:
            self._observer.succeeded(job, item.predict_us)
            self._finish(job, Outcome(Status.SUCCEEDED, item.data, predict_us=item.predict_us))
            return
        if item.kind == Kind.REFUSED:
            sentence = item.data.decode()
            self._observer.failed(job, "the input does not fit the model's type hint", sentence)
            self._finish(job, _failure(Fault.INPUT, sentence, item.predict_us))
            return
        words = orjson.loads(item.data)
        if item.kind == Kind.ERROR:
            self._observer.failed(job, words["cause"], words["error"])
            self._finish(job, _failure(Fault.MODEL, words["error"], item.predict_us))
        elif job.attempt < self._max_attempts:
            self._observer.failed(job, words["cause"], words["error"], again_after_s=words["after"])
            self._finish(job, words["after"])
        else:
            self._observer.failed(job, words["cause"], words["error"], given_up=True)
            sentence = f"{words['error']} (at each of {job.attempt} attempts)"
            failure = _failure(Fault.MODEL, sentence, item.predict_us)
            self._finish(job, failure._replace(given_up=True, traceback=words["traceback"]))

    async def _after_death(self, model: ModelProcess, jobs: list[Job], died: ModelDied) -> None:
        wanted = [job for job in jobs if not job.dropped]
        if len(jobs) == 1 and wanted:
            self._blame(wanted.pop(), died)
        await self._restart(model)
        for job in wanted:
            if not job.dropped:  # it may have been, while its mates ran
                await self._predict(model, [job])

    def _blame(self, job: Job, died: ModelDied) -> None:
        """This job alone ran when its process died: that was one attempt."""
        if job.attempt < self._max_attempts:
            self._finish(job, 0.0)
            return
        self._observer.about(job).warning("prediction given up", why=str(died))
        fault = Fault.TIMEOUT if died.timeout else Fault.CRASH
        times = f", at each of {job.attempt} attempts" if job.attempt > 1 else ""
        failure = _failure(fault, f"Prediction failed: {died}{times}.")
        self._finish(job, failure._replace(given_up=True))

    async def _restart(self, model: ModelProcess) -> None:
        for attempt in range(START_TRIES):
            metrics.MODEL_RESTARTS.inc()
            try:
                return await model.start()
            except ModelFault as fault:
                if attempt == START_TRIES - 1:
                    raise
                log.error("the model cannot be loaded again", error=str(fault))
                await asyncio.sleep(2.0**attempt)

    # -- finish

    def _finish(self, job: Job, outcome: Outcome | float) -> None:
        if not job.dropped:
            self._ended.append((job, outcome))
            self._end.set()

    async def _finish_forever(self) -> None:
        """Group commit: what ended while one call was under way goes with the next."""
        while True:
            await self._end.wait()
            self._end.clear()
            while self._ended:
                ended, self._ended = self._ended[:FINISH_MAX], self._ended[FINISH_MAX:]
                try:
                    await self._record(ended)
                except StoreUnavailable:
                    self._ended = ended + self._ended
                    self._not_heard({job.partition for job, _ in ended})
                    await asyncio.sleep(RETRY_S)

    async def _record(self, ended: list[tuple[Job, Outcome | float]]) -> None:
        outcomes = [(job, outcome) for job, outcome in ended if isinstance(outcome, Outcome)]
        retries = [(job, outcome) for job, outcome in ended if isinstance(outcome, float)]
        if retries:
            await self.claims.retry(retries)
        recorded = await self.claims.finish(outcomes) if outcomes else []
        self._observer.recorded(outcomes, recorded)
        for job, _ in ended:
            self._drop(job)
        self._room.set()

    def _drop(self, job: Job) -> None:
        """It is not ours any more."""
        job.dropped = True
        self._observer.dropped(job)
        if self._in_hand.get(job.id) is job:
            del self._in_hand[job.id]

    # -- leases and cancellations

    async def _extend_forever(self) -> None:
        due = 0.0  # when those in hand should have been renewed
        while True:
            due = due or time.monotonic() + self._lease_s / 4
            await asyncio.sleep(self._lease_s / 4)
            if not self._in_hand:
                due = 0.0
                continue
            jobs = list(self._in_hand.values())
            partitions = {job.partition for job in jobs}
            try:
                lost = await self.claims.extend(jobs)
            except StoreUnavailable:
                self._not_heard(partitions)
                continue
            now = time.monotonic()
            metrics.LEASE_LATENESS_SECONDS.observe(max(0.0, now - due))
            due = 0.0
            for p in partitions:
                self._heard[p] = now
            for job in lost:
                if job.id in self._in_hand:  # else it was recorded while we asked
                    metrics.LEASES_LOST.inc()
                    self._observer.about(job).warning("lost a lease: another processor has the prediction")
                    self._unwanted(job)

    async def _hear_forever(self) -> None:
        while True:
            try:
                async with self._session.subscription() as subscription:
                    while True:
                        payload = await subscription.receive()
                        for prediction_id, _ in parse_announcement(payload) if payload else ():
                            job = self._in_hand.get(prediction_id)
                            if job:
                                self._unwanted(job)
            except StoreUnavailable:
                await asyncio.sleep(RETRY_S)  # a cancellation unheard is found by the next lease extension

    def _unwanted(self, job: Job) -> None:
        """Nobody wants this job's result from us: if it waits it never runs, if it runs it is stopped."""
        if self._batcher.discard(job):
            self._room.set()
        else:
            for model, hand_over in self._running.items():
                place = hand_over.place(job)
                if place is not None:
                    model.cancel(place)
                    asyncio.get_running_loop().call_later(CANCEL_GRACE_S, self._stop_running, model, job)
        self._drop(job)

    def _stop_running(self, model: ModelProcess, job: Job) -> None:
        """End the process that still works on a job nobody wants; its mates run again on the next."""
        hand_over = self._running.get(model)
        place = hand_over.place(job) if hand_over else None
        if place is not None and not model.has_given_up(place):
            model.interrupt()

    async def _sweep_forever(self) -> None:
        while True:
            await asyncio.sleep(self._lease_s)
            with contextlib.suppress(StoreUnavailable):  # the next sweep is soon enough
                await self.claims.remove_dead_consumers(idle_s=4 * self._lease_s)


def _failure(fault: Fault, sentence: str, predict_us: int = 0) -> Outcome:
    return Outcome(Status.FAILED, orjson.dumps(sentence), fault, predict_us)
