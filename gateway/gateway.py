"""What one gateway process has: its settings, its part of the job store, its relay, and whether it is still taking work."""

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from common.errors import StoreError, StoreUnavailable
from common.settings import GatewaySettings, entries
from common.store import keys
from common.store.alarm_clock import AlarmClock
from common.store.dead import DeadLetters
from common.store.fitness import FULL, Fitness, Unfit
from common.store.jobs import Jobs
from common.store.queue import Queue
from common.store.session import Session
from common.store.waiting import WaitingJobs
from common.tracing import Tracing
from gateway import metrics
from gateway.api_keys import ApiKeys
from gateway.errors import HttpError
from gateway.json_process import JsonProcess
from gateway.operators import Operators
from gateway.relay import Callback, Notice, Relay


class InFlight:
    """Requests for predictions under way here; used as `with`, it lets no more than `limit` in."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.count = 0

    def __enter__(self) -> None:
        if self.count >= self._limit:
            sentence = (
                "This gateway has too many requests under way and nothing was accepted: try again later."
            )
            raise HttpError(503, sentence, headers={"Retry-After": "1"})
        self.count += 1

    def __exit__(self, *exc_info: object) -> None:
        self.count -= 1


class Gateway:
    """What the endpoints share. `session.name` is new in every process, so nobody hears what a dead one waited for."""

    def __init__(self, settings: GatewaySettings, tracing: Tracing) -> None:
        self.settings = settings
        self.tracing = tracing
        self.session = Session.from_settings(
            settings, name=secrets.token_hex(4), durability=settings.durability
        )
        self.jobs = Jobs(self.session)
        self.dead_letters = DeadLetters(self.session)
        self.waiting_jobs = WaitingJobs(self.session)
        self.queue = Queue(self.session)
        self.relay = Relay(self.session, self.jobs)
        self.clock = AlarmClock(self.queue)
        self.json = JsonProcess()
        self.fitness = Fitness(self.session)
        clients, admins = entries(settings.api_keys), entries(settings.admin_api_keys)
        self.client_keys = ApiKeys(clients + admins if clients else [])
        self.operators = Operators(ApiKeys(admins), ApiKeys(clients))
        self._in_flight = InFlight(settings.max_in_flight)
        self.ids = keys.new_ids(settings.partitions)
        self.started = False  # the server was checked and the relay hears: predictions may be taken
        self.draining = False
        self._drain_callbacks: set[Callback] = set()
        metrics.ACTIVE_REQUESTS.set_function(lambda: self._in_flight.count)
        metrics.QUEUE.limit = settings.max_queue
        for reason in Unfit:
            metrics.REDIS_UNFIT.labels(reason).set_function(partial(self._is_unfit, reason))

    def check_started(self) -> None:
        """Raises StoreUnavailable before that; the probes answer all the while."""
        if not self.started:
            raise StoreUnavailable("This gateway waits for Redis.")

    def admit(self) -> InFlight:
        """Around every request for a prediction. Raises StoreUnavailable and HttpError 503."""
        self.check_started()
        return self._in_flight

    async def readiness(self) -> str | None:
        """None, or one sentence why this gateway should get no requests now. Raises ForetellError for Redis."""
        if self.draining:
            return "This gateway is stopping."
        if not self.started:
            return "This gateway waits for Redis."
        if not self.relay.connected.is_set():
            return "The relay does not hear announcements: its connection is being made again."
        await self.queue.ring()  # it writes: a server that only answers will not do
        return None

    def notice(self) -> str | None:
        """What a gateway that is ready has to say. With a full memory it still reads, tells and cancels."""
        return FULL if Unfit.FULL in self.fitness.reasons else None

    def _is_unfit(self, reason: Unfit) -> bool:
        return reason in self.fitness.reasons

    async def measure(self) -> None:
        """Read the queue for the metrics."""
        try:
            metrics.QUEUE.measure = await self.queue.measure() if self.started else None
        except StoreError:  # the alarm clock says so in the log
            metrics.QUEUE.measure = None

    def drain(self) -> None:
        """Readiness is red from now on, and clients that lose nothing by asking another gateway are told to."""
        self.draining = True
        for callback in tuple(self._drain_callbacks):
            callback(Notice.STOPPING)

    @contextmanager
    def on_drain(self, callback: Callback) -> Iterator[None]:
        """While inside, `callback` is notified when the drain begins; waiters without one hear of it when the time is up."""
        self._drain_callbacks.add(callback)
        try:
            if self.draining:
                callback(Notice.STOPPING)
            yield
        finally:
            self._drain_callbacks.discard(callback)
