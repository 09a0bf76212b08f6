"""What is under way in which model process, and who is charged when a process dies.

A flight is one batch in one model process. It must never leave a prediction without an end: each of its jobs is
answered, or flies again, alone if its process died. Only a job that was alone in its process when it died is charged
an attempt.
"""

import asyncio
import time
from collections.abc import Callable
from dataclasses import dataclass

import orjson
import structlog

from common.errors import ModelFault
from common.settings import ProcessorSettings
from common.store.claims import Job, Outcome
from common.store.states import Fault, Status
from processor import metrics
from processor.batcher import Batcher, BatchPolicy
from processor.model.frames import Item, Kind
from processor.model.process import ModelDied, ModelProcess
from processor.observer import Observer

log = structlog.get_logger("foretell")

CANCEL_GRACE_S = 1.0  # for a running prediction to give up by itself, before its process is ended
START_TRIES = 5  # a model that worked and now cannot be loaded any more ends the service

#: Called with a job's outcome, or with the seconds after which it shall be tried again.
Finish = Callable[[Job, Outcome | float], None]


@dataclass(slots=True)
class Flight:
    """What a model process works on, in the order in which it answers."""

    jobs: list[Job]
    answered: int = 0

    def place(self, job: Job) -> int | None:
        """Where the job stands, if it is not answered yet."""
        return self.jobs.index(job) if job in self.jobs[self.answered :] else None


class Flights:
    """The model processes of a processor, all started, and their flights. `room` is set when one can take more."""

    def __init__(
        self,
        models: list[ModelProcess],
        settings: ProcessorSettings,
        observer: Observer,
        *,
        room: asyncio.Event,
        finish: Finish,
    ) -> None:
        self.models = models
        self.idle = len(models)
        batch = models[0].batch
        self._policy = BatchPolicy(batch=batch, max_batch_size=settings.max_batch_size)
        self._batcher = Batcher(self._policy, max_wait_s=settings.max_batch_wait_ms / 1000 if batch else 0.0)
        self._observer = observer
        self._room = room
        self._finish = finish
        self._max_attempts = settings.max_attempts
        self._work = asyncio.Event()  # something waits for a model process
        self._flights: dict[ModelProcess, Flight] = {}

    @property
    def free(self) -> int:
        """How many predictions may be added now: what idle model processes can start, plus what is prefetched."""
        prefetch = len(self.models) * self._policy.prefetch
        return self.idle * self._policy.size + prefetch - len(self._batcher)

    @property
    def prefetch(self) -> int:
        """How many may wait for each model process that is busy; 0 for a slow model."""
        return self._policy.prefetch

    def add(self, jobs: list[Job]) -> None:
        """They wait for a model process."""
        self._batcher.add(jobs, time.monotonic())
        self._work.set()

    def take_back(self) -> list[Job]:
        """All that still wait."""
        return self._batcher.clear()

    async def fly_forever(self, model: ModelProcess) -> None:
        while True:
            jobs = await self._next_batch()
            self.idle -= 1
            try:
                await self._fly(model, jobs)
            finally:
                self.idle += 1
                self._room.set()

    def cancel(self, job: Job) -> None:
        """Nobody wants its result: if it waits it never runs, if it runs it is stopped."""
        if self._batcher.discard(job):
            self._room.set()
            return
        for model, flight in self._flights.items():
            place = flight.place(job)
            if place is not None:
                model.cancel(place)
                asyncio.get_running_loop().call_later(CANCEL_GRACE_S, self._end_process, model, job)

    def _end_process(self, model: ModelProcess, job: Job) -> None:
        """If it still works on the job; its other jobs fly again on the next process."""
        flight = self._flights.get(model)
        place = flight.place(job) if flight else None
        if place is not None and not model.has_cancelled(place):
            model.interrupt()

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

    async def _fly(self, model: ModelProcess, jobs: list[Job]) -> None:
        """One batch. If the model process dies, its jobs fly again one by one, so that the bad one fails alone."""
        self._flights[model] = flight = Flight(jobs)
        spans = self._observer.dispatched(jobs)
        started = time.perf_counter()
        died = None
        try:
            async for items in model.predict([job.input for job in jobs]):
                for item in items:
                    if span := spans[flight.answered]:
                        span.end()
                    self._answered(jobs[flight.answered], item)
                    flight.answered += 1
        except ModelDied as error:
            died = error
        spent = time.perf_counter() - started
        metrics.PREDICT_SECONDS.observe(spent)
        if died is None:
            self._policy.record(spent, len(jobs))
        else:
            del self._flights[model]  # a late cancellation must not end the next process
            unanswered = jobs[flight.answered :]
            self._observer.died(unanswered, spans[flight.answered :], str(died))
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
            self._charge(wanted.pop(), died)
        await self._restart(model)
        for job in wanted:
            if not job.dropped:  # it may have been, while the others flew
                await self._fly(model, [job])

    def _charge(self, job: Job, died: ModelDied) -> None:
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


def _failure(fault: Fault, sentence: str, predict_us: int = 0) -> Outcome:
    return Outcome(Status.FAILED, orjson.dumps(sentence), fault, predict_us)
