"""The processor's loop: claim → predict → finish.

What it must never do: answer a job twice, lose one it has claimed, or hold more than it can run soon. Claim and start
are one step in the store; every claimed job is in `_in_hand` until its end is recorded, and ends in exactly one of
`_finish` (recorded, fenced), `_give_back` (released) or `_drop` (somebody else has it, or nobody wants it).
"""

import asyncio
import time
from collections.abc import Iterable
from functools import partial

import structlog

from common.errors import ClockJumped, StoreError
from common.settings import ProcessorSettings
from common.store.alarm_clock import AlarmClock
from common.store.announcements import parse_announcement
from common.store.claims import Claims, Job, Outcome, Reader
from common.store.queue import Queue
from common.store.session import Session
from common.tracing import Tracing
from processor import metrics
from processor.flights import Flights
from processor.leases import Leases
from processor.model.process import ModelProcess
from processor.observer import Observer

log = structlog.get_logger("foretell")

COLLECT_S = 0.001  # between claims while every model process is busy
RETRY_S = 0.3  # between tries while the server is away
FINISH_MAX = 512


class Worker:
    """One processor: `models` are its model processes, all started."""

    def __init__(
        self, session: Session, models: list[ModelProcess], settings: ProcessorSettings, tracing: Tracing
    ) -> None:
        self.claims = Claims(session)
        self.stopping = False
        self._session = session
        self._queue = Queue(session)
        self._observer = Observer(settings, tracing)
        self._in_hand: dict[str, Job] = {}
        self._ended: list[tuple[Job, Outcome | float]] = []  # a number: try again after so many seconds
        self._end = asyncio.Event()  # something ended and must be recorded
        self._room = asyncio.Event()  # something may be claimed
        self._flights = Flights(models, settings, self._observer, room=self._room, finish=self._finish)
        self._leases = Leases(
            self.claims,
            self._in_hand,
            lost=self._lost,
            lease_s=settings.lease_s,
            partitions=session.partitions,
        )
        metrics.MODEL_PROCESSES.set(len(models))
        metrics.IN_HAND.set_function(lambda: len(self._in_hand))

    # -- its life

    async def run(self) -> None:
        """Work until cancelled. A loop that ends for another reason ends the service."""
        async with asyncio.TaskGroup() as group:
            readers = self.claims.readers()
            self._claiming = [
                group.create_task(self._claim_forever(reader), name=f"claim {reader.partition}")
                for reader in readers
            ]
            for model in self._flights.models:
                group.create_task(self._flights.fly_forever(model), name="predict")
            group.create_task(self._finish_forever(), name="finish")
            group.create_task(self._leases.extend_forever(), name="leases")
            group.create_task(self._leases.sweep_forever(), name="dead consumers")
            group.create_task(self._hear_forever(), name="cancellations")
            clock = AlarmClock(self._queue, stepped_back=partial(self.claims.interrupt, readers))
            group.create_task(clock.run(), name="alarms")

    async def drain(self, seconds: float) -> None:
        """Claim no more, finish what runs, give back what waits, leave. Ends within about `seconds`."""
        self.stopping = True
        self._room.set()
        try:
            async with asyncio.timeout(seconds):
                for claiming in self._claiming:
                    claiming.cancel()  # what it was being given, `leave` gives back
                await asyncio.wait(self._claiming)
                # an answer means that the server saw our readers go: what we give back is not delivered to them
                await self._queue.ring()
                await self._give_back(self._flights.take_back())
                while self._in_hand:
                    self._room.clear()
                    await self._room.wait()
        except TimeoutError:
            log.warning("drain took too long, giving back what runs", jobs=len(self._in_hand))
            await self._give_back(self._in_hand.values())
        await self.claims.leave()

    async def _give_back(self, jobs: Iterable[Job]) -> None:
        """As if they had not been claimed."""
        jobs = list(jobs)
        await self.claims.release(jobs)
        for job in jobs:
            self._drop(job)

    # -- claim

    async def _claim_forever(self, reader: Reader) -> None:
        p = reader.partition
        while True:
            room = self._free()
            if room <= 0:
                self._room.clear()
                await self._room.wait()
                continue
            try:
                if reclaim := self._leases.reclaim_is_due(p, time.monotonic()):
                    jobs = await self.claims.reclaim(reader, room, idle_s=self._leases.lease_s)
                else:
                    jobs = await self.claims.claim(reader, room)
            except ClockJumped as error:
                log.warning("nothing is taken over for a while", why=str(error))
                self._leases.put_off(p)
                continue
            except StoreError:
                self._leases.not_heard({p})
                await asyncio.sleep(RETRY_S)
                continue
            self._leases.heard(p)
            if self._accept(await self._release_surplus(jobs), reclaimed=reclaim):
                await self._accumulate()

    async def _release_surplus(self, jobs: list[Job]) -> list[Job]:
        """What there is room for, the rest given back. Several readers may each have asked for the same room; for a
        slow model, what waits here would keep it from an idle processor."""
        surplus = len(jobs) - max(self._free(), 0)
        if surplus <= 0 or self._flights.prefetch:
            return jobs
        try:
            await self.claims.release(jobs[-surplus:])
        except StoreError:
            return jobs
        return jobs[:-surplus]

    async def _accumulate(self) -> None:
        """While every model process is busy, nobody waits for the next claim: let it find more. The jobs just
        claimed go first, too: their way to the model is what a waiting client feels."""
        await asyncio.sleep(0)
        if self._flights.idle == 0:
            self._room.clear()
            try:
                async with asyncio.timeout(COLLECT_S):
                    await self._room.wait()
            except TimeoutError:
                pass

    def _free(self) -> int:
        """How many may be claimed now."""
        if len(self._ended) > 4 * FINISH_MAX:
            return 0  # results cannot be recorded at the moment: take no more on
        return self._flights.free

    def _accept(self, jobs: list[Job], *, reclaimed: bool) -> bool:
        """Whether there was anything new in it."""
        new = []
        for job in jobs:
            old = self._in_hand.get(job.id)
            if old and (old.entry, old.attempt) == (job.entry, job.attempt):
                continue  # the same delivery, seen twice because its first reply was lost
            if old:
                self._abandon(old)  # we were silent for a lease and took our own job over
            self._in_hand[job.id] = job
            new.append(job)
        if new:
            self._observer.taken(new, reclaimed=reclaimed)
            self._flights.add(new)
        return bool(new)

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
                except StoreError:
                    self._ended = ended + self._ended
                    self._leases.not_heard({job.partition for job, _ in ended})
                    await asyncio.sleep(RETRY_S)
                except Exception:
                    await self._record_each(ended)

    async def _record_each(self, ended: list[tuple[Job, Outcome | float]]) -> None:
        """A script of ours fails on one of them: the others are recorded, and that one is left to its lease."""
        for one in ended:
            try:
                await self._record([one])
            except StoreError:
                self._ended.append(one)
                self._end.set()
            except Exception:
                self._observer.about(one[0]).exception("an outcome cannot be recorded")
                self._drop(one[0])

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

    # -- what others do to our jobs

    async def _hear_forever(self) -> None:
        while True:
            try:
                async with self._session.subscription() as subscription:
                    while True:
                        payload = await subscription.receive()
                        for prediction_id, _ in parse_announcement(payload) if payload else ():
                            job = self._in_hand.get(prediction_id)
                            if job:
                                self._abandon(job)
            except StoreError:
                await asyncio.sleep(RETRY_S)  # a cancellation unheard is found by the next lease extension

    def _lost(self, job: Job) -> None:
        metrics.LEASES_LOST.inc()
        self._observer.about(job).warning("lost a lease: another processor has the prediction")
        self._abandon(job)

    def _abandon(self, job: Job) -> None:
        """Nobody wants this job's result from us."""
        self._flights.cancel(job)
        self._drop(job)
