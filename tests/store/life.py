"""Steps in the life of a job, for tests that look at one transition each."""

import asyncio
from typing import Any

from common.store import keys
from common.store.announcements import parse_announcement
from common.store.claims import Outcome
from common.store.connections.subscription import Subscription
from common.store.jobs import Submission
from common.store.states import Fault, JobState, Status
from tests.store.store import Store

DONE = Outcome(Status.SUCCEEDED, b'"done"', predict_us=42)
BROKEN = Outcome(Status.FAILED, b'"It broke."', Fault.MODEL)
SORRY = "Prediction cancelled."
CANCELLED = JobState(Status.CANCELLED, b"1", Fault.CANCELLED, b'"Prediction cancelled."')


def new_id(partitions: int = 1) -> str:
    """An id of partition 0, unless there shall be more."""
    return next(keys.new_ids(partitions))


async def submitted(gateway: Store, input_: bytes = b"1", *, watch: bool = False) -> str:
    prediction_id = new_id(gateway.partitions)
    assert (await gateway.jobs.submit(Submission(prediction_id, input_, watch))).decision == "queued"
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


def ring_now(raw: Any, prediction_id: str) -> None:
    """As if the time had come."""
    assert raw.zadd(f"{keys.tag(0)}:alarms:default", {prediction_id: 0}, xx=True, ch=True)


def pass_deadline(raw: Any, prediction_id: str) -> None:
    raw.hset(keys.job(prediction_id, 1), "deadline", 1)
    ring_now(raw, prediction_id)
