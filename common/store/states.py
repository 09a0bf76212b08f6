"""The states of a prediction, and every move between them that exists.

A move that is not listed here is a fault of ours: the transitions refuse it.
"""

from enum import StrEnum
from typing import NamedTuple


class Status(StrEnum):
    """What `Prediction-Status` and the job hash say."""

    QUEUED = "queued"
    PROCESSING = "processing"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"
    EXPIRED = "expired"


STATUS_OF = {status.value.encode(): status for status in Status}
FINAL = frozenset({Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED})

#: transition → the states it may start from and the states it may end in.
MOVES: dict[str, tuple[frozenset[Status], frozenset[Status]]] = {
    "submit": (frozenset(), frozenset({Status.QUEUED})),
    "claim": (
        frozenset({Status.QUEUED, Status.PROCESSING}),
        frozenset({Status.PROCESSING, Status.FAILED, Status.EXPIRED}),
    ),
    "release": (frozenset({Status.PROCESSING}), frozenset({Status.QUEUED})),
    "finish": (frozenset({Status.PROCESSING}), frozenset({Status.SUCCEEDED, Status.FAILED})),
    "ring": (frozenset({Status.QUEUED, Status.PROCESSING}), frozenset({Status.QUEUED, Status.EXPIRED})),
    "revive": (frozenset({Status.FAILED}), frozenset({Status.QUEUED})),
    "cancel": (frozenset({Status.QUEUED, Status.PROCESSING}), frozenset({Status.CANCELLED})),
}


class Fault(StrEnum):
    """Why a prediction did not succeed; the gateway turns it into an HTTP code, nobody else does."""

    MODEL = "model"  # the model raised, or returned what is not JSON
    INPUT = "input"  # the model's type hints refuse the input
    CRASH = "crash"  # the model process died on it, every time
    TIMEOUT = "timeout"  # one call of the model ran past PREDICT_TIMEOUT_S, every time
    GIVEN_UP = "given_up"  # delivered MAX_ATTEMPTS times, and no processor lived to tell
    CANCELLED = "cancelled"
    EXPIRED = "expired"  # Prediction-Deadline passed


class JobState(NamedTuple):
    """A job as a waiter sees it. `payload` is the result's JSON or the error sentence's, b"" if it is not final
    (or, in an announcement, too large to travel). `input` is None in announcements, and where it was dropped at the end;
    then `digest` is that of its value."""

    status: Status
    input: bytes | None = None
    fault: str = ""
    payload: bytes = b""
    queue_us: int = 0
    predict_us: int = 0
    digest: str = ""

    @property
    def final(self) -> bool:
        return self.status in FINAL
