"""How many predictions go into one call of the model, and how many are prefetched. Pure: no clock, no I/O.

Batches fill by backpressure: while one is computed the next collects, so that low load adds no wait. A model that
takes one input at a time is sent runs of them, as long as a run is short: it saves round trips, and nobody waits.
"""

from collections import deque

from common.store.claims import Job

RUN_S = 0.005  # a run of single predictions lasts about this long
RUN_MAX = 256
PREFETCH_LIMIT_S = 0.1  # above this, prefetching gains nothing and keeps predictions from an idle processor
_WEIGHT = 0.2  # of the newest measurement in the moving average


class BatchPolicy:
    """How many predictions to send at once and how many to prefetch, by the speed that the model has shown."""

    def __init__(self, *, batch: bool, max_batch_size: int) -> None:
        self._batch = batch
        self._max_batch_size = max_batch_size
        self._call_s: float | None = None  # moving average: seconds per batch, or per single prediction

    def record(self, seconds: float, count: int) -> None:
        """`count` predictions that were sent together took `seconds`."""
        sample = seconds if self._batch else seconds / count
        self._call_s = sample if self._call_s is None else self._call_s + _WEIGHT * (sample - self._call_s)

    @property
    def size(self) -> int:
        """At most this many at once."""
        if self._batch:
            return self._max_batch_size
        if self._call_s is None:
            return 1  # nothing is known: it may take minutes
        return max(1, min(RUN_MAX, int(RUN_S / max(self._call_s, 1e-6))))

    @property
    def prefetch(self) -> int:
        """How many may be claimed and wait here for a model process that is busy."""
        if self._call_s is None:
            return 0
        expected = self._call_s if self._batch else self._call_s * self.size
        return self.size if expected <= PREFETCH_LIMIT_S else 0


class Batcher:
    """Jobs that are claimed and wait for a model process, oldest first."""

    def __init__(self, policy: BatchPolicy, *, max_wait_s: float) -> None:
        self._policy = policy
        self._max_wait_s = max_wait_s
        self._waiting: deque[tuple[float, Job]] = deque()

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, jobs: list[Job], now: float) -> None:
        self._waiting.extend((now, job) for job in jobs)

    def wait_s(self, now: float) -> float | None:
        """Seconds until a batch is due: 0 now, None if nothing waits."""
        if not self._waiting:
            return None
        if len(self._waiting) >= self._policy.size:
            return 0.0
        return max(0.0, self._waiting[0][0] + self._max_wait_s - now)

    def take(self) -> list[Job]:
        """The next batch."""
        return [self._waiting.popleft()[1] for _ in range(min(self._policy.size, len(self._waiting)))]

    def discard(self, job: Job) -> bool:
        """Take a job out that nobody wants any more; False if it does not wait here."""
        for place in self._waiting:
            if place[1] is job:
                self._waiting.remove(place)
                return True
        return False

    def clear(self) -> list[Job]:
        """All that wait, taken out."""
        jobs = [job for _, job in self._waiting]
        self._waiting.clear()
        return jobs
