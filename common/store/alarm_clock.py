"""The alarm clock: every process rings the queue's alarms (deadlines, delayed retries) when they are due. Whoever rings
first does the work, the others find none. On the way it learns how full the queue is, how fast it drains, and whether
the server is there.
"""

import asyncio
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable

import structlog

from common.errors import StoreError
from common.store.queue import Queue, QueueProgress

log = structlog.get_logger("foretell")

TICK_S = 0.5  # an alarm set by another process is heard at most this late
WINDOW_S = 10.0  # the drain rate is that of the last so many seconds
ROOM = 0.1  # the share of the queue that must drain before who was refused should come back
RETRY_AFTER_S = (1, 60)


async def _nothing() -> None:
    pass


class AlarmClock:
    """`run` it beside the work; the rest is what it has learned. `stepped_back` is called when a server's clock does."""

    def __init__(self, queue: Queue, *, stepped_back: Callable[[], Awaitable[None]] = _nothing) -> None:
        self._queue = queue
        self._stepped_back = stepped_back
        self._finished: deque[tuple[float, int]] = deque()  # (when, how many by then)
        self._away: type[StoreError] | None = None
        self.unfinished = 0

    async def run(self) -> None:
        while True:
            wait_s = TICK_S
            try:
                progress = await self._queue.ring()
            except StoreError as error:
                self._finished.clear()
                self._say(error)
            else:
                self._say(None)
                self._learn(progress, time.monotonic())
                if self._queue.stepped_back:
                    log.warning("the job store's clock has stepped back")
                    await self._stepped_back()
                if progress.next_s is not None:
                    wait_s = min(wait_s, progress.next_s)
            await asyncio.sleep(wait_s)

    def _say(self, error: StoreError | None) -> None:
        """One line when the server goes, when a person is needed, and when it comes back, whatever else fails."""
        kind = type(error) if error else None
        if kind is self._away:
            return
        self._away = kind
        if error:
            log.warning("the job store is away", error=str(error))
        else:
            log.info("the job store is back")

    def _learn(self, progress: QueueProgress, now: float) -> None:
        self.unfinished = progress.unfinished
        if self._finished and progress.finished < self._finished[-1][1]:
            self._finished.clear()  # the server came back empty
        self._finished.append((now, progress.finished))
        while now - self._finished[0][0] > WINDOW_S:
            self._finished.popleft()

    @property
    def drained_per_s(self) -> float:
        """Jobs finished per second by all processors; 0 while nothing is known."""
        if len(self._finished) < 2:
            return 0.0
        (first, before), (last, after) = self._finished[0], self._finished[-1]
        return (after - before) / (last - first)

    def retry_after_s(self) -> int:
        """When somebody who met a full queue should come back: when ROOM of it has drained at the present rate."""
        least, most = RETRY_AFTER_S
        rate = self.drained_per_s
        if rate == 0:
            return most
        return max(least, min(most, math.ceil(ROOM * self.unfinished / rate)))
