"""The relay: one subscription for the whole process, many waiters.

What is announced is a hint, the job store is the truth: whenever the subscription was or may have been deaf, every
waiting id is looked up again. It must never forget to notify a waiter: a dead or silent connection is replaced, a slow
sweep stands behind it, and readiness shows when it does not hear.
"""

import asyncio
from collections.abc import Callable, Iterable
from contextlib import suppress
from enum import Enum

import structlog

from common.errors import StoreError
from common.store.announcements import parse_announcement
from common.store.jobs import Jobs
from common.store.session import Session
from common.store.states import JobState
from gateway import metrics

log = structlog.get_logger("foretell")

SWEEP_S = 5.0
RECONNECT_S = 0.2
LOOKUPS = 64  # at once: a state may be as large as an input and a result together


class Notice(Enum):
    """What a waiter may be notified of instead of a state."""

    LOST = "the store no longer knows the prediction"
    STOPPING = "this gateway is stopping"


#: Called in the event loop, must not block; the same notification may come twice.
Callback = Callable[[JobState | Notice], None]


class Waiters:
    """Everybody here who waits for one id. `known`: the store has it, so if it cannot be found it is lost."""

    __slots__ = ("callbacks", "changes", "known")

    def __init__(self) -> None:
        self.callbacks: list[Callback] = []
        self.changes = False
        self.known = False


class Relay:
    """`add` a waiter, then `watch` (or submit with watch), and it will be notified. `remove` it when done."""

    def __init__(self, session: Session, jobs: Jobs) -> None:
        self._session = session
        self._jobs = jobs
        self._waiting: dict[str, Waiters] = {}
        self._to_look_up: set[str] = set()
        self._look_up = asyncio.Event()
        self.connected = asyncio.Event()

    def add(self, prediction_id: str, callback: Callback, *, changes: bool = False) -> Waiters:
        waiting = self._waiting.get(prediction_id)
        if waiting is None:
            waiting = self._waiting[prediction_id] = Waiters()
        waiting.callbacks.append(callback)
        waiting.changes |= changes
        return waiting

    def remove(self, prediction_id: str, callback: Callback) -> None:
        waiting = self._waiting[prediction_id]
        waiting.callbacks.remove(callback)
        if not waiting.callbacks:
            del self._waiting[prediction_id]

    def waits_for(self, prediction_id: str) -> bool:
        """Whether anybody here waits for the id."""
        return prediction_id in self._waiting

    def stop(self) -> None:
        """Tell everybody that this process is about to stop."""
        for prediction_id in list(self._waiting):
            self._notify(prediction_id, Notice.STOPPING)

    async def run(self) -> None:
        """Hear and sweep, until cancelled."""
        metrics.WAITERS.set_function(lambda: len(self._waiting))
        metrics.RELAY_CONNECTED.set_function(lambda: float(self.connected.is_set()))
        async with asyncio.TaskGroup() as group:
            group.create_task(self._hear_forever(), name="relay hears")
            group.create_task(self._look_up_forever(), name="relay looks up")

    async def _hear_forever(self) -> None:
        while True:
            try:
                async with self._session.subscription() as subscription:
                    self.connected.set()
                    self._look_up_soon(self._waiting)
                    while True:
                        payload = await subscription.receive()
                        if payload is not None:
                            self._hear(payload)
            except StoreError as error:
                if self.connected.is_set():  # else it was logged before
                    metrics.RELAY_RECONNECTS.inc()
                    log.warning("the relay lost its subscription and makes it again", error=str(error))
            finally:
                self.connected.clear()
            await asyncio.sleep(RECONNECT_S)

    def _hear(self, payload: bytes) -> None:
        for prediction_id, state in parse_announcement(payload):
            if state.final and not state.payload:  # too large to travel
                self._look_up_soon([prediction_id])
            else:
                self._notify(prediction_id, state)

    def _notify(self, prediction_id: str, update: JobState | Notice) -> None:
        waiting = self._waiting.get(prediction_id)
        if waiting:
            for callback in tuple(waiting.callbacks):
                callback(update)

    def _look_up_soon(self, ids: Iterable[str]) -> None:
        self._to_look_up.update(ids)
        self._look_up.set()

    async def _look_up_forever(self) -> None:
        now = asyncio.get_running_loop().time
        sweep_at = now() + SWEEP_S
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout_at(sweep_at):
                    await self._look_up.wait()
            if now() >= sweep_at:
                self._to_look_up.update(self._waiting)
                sweep_at = now() + SWEEP_S
            self._look_up.clear()
            ids, self._to_look_up = self._to_look_up, set()
            missed = await self._look_up_all(
                [i for i in ids if i in self._waiting and self._waiting[i].known]
            )
            if missed:
                await asyncio.sleep(RECONNECT_S)
                self._look_up_soon(missed)

    async def _look_up_all(self, ids: list[str]) -> list[str]:
        """Returns those whose server is away: the waiters of other partitions need not wait for it."""
        missed: list[str] = []
        for at in range(0, len(ids), LOOKUPS):
            part = [i for i in ids[at : at + LOOKUPS] if i in self._waiting]
            looks = [self._jobs.watch(i, changes=self._waiting[i].changes) for i in part]
            states = await asyncio.gather(*looks, return_exceptions=True)
            for prediction_id, state in zip(part, states, strict=True):
                if isinstance(state, StoreError):  # the alarm clock says so in the log
                    missed.append(prediction_id)
                elif isinstance(state, BaseException):
                    raise state
                else:
                    self._notify(prediction_id, Notice.LOST if state is None else state)
        return missed
