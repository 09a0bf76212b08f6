"""What is too much is refused before anything is stored, and the answer says when to come back."""

import asyncio
import uuid
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import httpx2
import pytest
from redis import Redis

from common.store.alarm_clock import RETRY_AFTER_S, AlarmClock
from common.store.queue import Queue, QueueProgress
from common.store.session import Session
from tests.conftest import eventually
from tests.contract.conftest import PATIENT
from tests.services import Service

Start = Callable[..., Service]

ASYNC = {"Async-Mode": "true"}


def post(client: httpx2.AsyncClient, value: object, **headers: str) -> "asyncio.Task[httpx2.Response]":
    return asyncio.create_task(client.post("/predict", json={"input": value}, headers=headers))


@pytest.mark.leaves_jobs("there is no processor")
async def test_a_queue_takes_exactly_its_limit_from_two_gateways_at_once(
    start_gateway: Start, partitions: int
) -> None:
    limit = 20 * partitions
    urls = [start_gateway(MAX_QUEUE=limit).url for _ in range(2)]
    clients = [httpx2.AsyncClient(base_url=url, timeout=30) for url in urls]
    sent = [post(clients[n % 2], n, **ASYNC) for n in range(200)]
    answers = await asyncio.gather(*sent)
    codes = Counter(answer.status_code for answer in answers)
    if partitions == 1:
        assert codes == {202: limit, 429: 200 - limit}
    assert codes[202] <= limit
    first, last = RETRY_AFTER_S
    refused = [answer for answer in answers if answer.status_code == 429]
    assert all(first <= int(answer.headers["Retry-After"]) <= last for answer in refused)
    assert all(set(answer.json()) == {"error"} for answer in refused)
    # one that is cancelled makes room at once
    prediction_id = next(a.json()["prediction_id"] for a in answers if a.status_code == 202)
    await clients[0].delete(f"/predict/{prediction_id}")
    put = await clients[1].put(
        f"/predict/{prediction_id[:-4]}ff{prediction_id[-2:]}", json={"input": 1}, headers=ASYNC
    )
    assert put.status_code == 202
    for client in clients:
        await client.aclose()


async def test_a_retry_that_waits_has_its_place_in_the_queue(
    start_gateway: Start, start_processor: Start, partitions: int, tmp_path: Path
) -> None:
    gateway = start_gateway(MAX_QUEUE=partitions)  # one each
    start_processor(PATIENT)
    first, second = (f"/predict/{str(uuid.uuid4())[:-2]}00" for _ in range(2))  # in the same partition
    busy = {"input": {"busy": 60, "calls": str(tmp_path / "calls")}}
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=30) as client:

        async def waits_for_its_retry() -> bool:
            status = (await client.get(first)).headers["Prediction-Status"]
            return (tmp_path / "calls").exists() and status == "queued"

        assert (await client.put(first, json=busy, headers=ASYNC)).status_code == 202
        await eventually(waits_for_its_retry)
        assert (await client.put(second, json={"input": {}})).status_code == 429
        assert (await client.get(second)).status_code == 404
        assert (await client.delete(first)).status_code == 200
        assert (await client.put(second, json={"input": {}})).status_code == 200


async def test_a_gateway_takes_no_more_at_a_time_than_it_should(
    start_gateway: Start, start_processor: Start, redis_url: str, tmp_path: Path
) -> None:
    gateway = start_gateway(MAX_IN_FLIGHT=3)
    start_processor(PATIENT)
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=30) as client:
        held = [post(client, {"value": n, "after": str(tmp_path / "go")}) for n in range(3)]
        await eventually(lambda: b"foretell_waiters 3.0" in gateway.get("/metrics")[1])
        for answer in await asyncio.gather(*[post(client, "too much") for _ in range(5)]):
            assert answer.status_code == 503
            assert answer.headers["Retry-After"] == "1"
            assert set(answer.json()) == {"error"}
        (tmp_path / "go").touch()
        assert [(await answer).json()["result"] for answer in held] == [{"value": n} for n in range(3)]
        with Redis.from_url(redis_url) as server:
            assert len(list(server.scan_iter("*:job:*"))) == 3
        assert (await post(client, {"value": 4})).json()["result"] == {"value": 4}


def learned(*tides: tuple[float, int, int]) -> AlarmClock:
    """A clock that has seen (time, unfinished, finished so far)."""
    clock = AlarmClock(Queue(Session("redis://127.0.0.1:1/0", name="nobody")))
    for time, unfinished, finished in tides:
        clock._learn(QueueProgress(None, unfinished, finished), time)
    return clock


@pytest.mark.parametrize(
    ("tides", "rate", "seconds"),
    [
        ([], 0.0, 60),
        ([(0, 1000, 5)], 0.0, 60),  # nothing to compare with
        ([(0, 1000, 0), (5, 1000, 0)], 0.0, 60),  # nothing drains
        ([(0, 1000, 0), (5, 1000, 100)], 20.0, 5),  # a tenth of 1000 at 20/s
        ([(0, 1000, 0), (5, 1000, 50_000)], 10_000.0, 1),
        ([(0, 100_000, 0), (5, 100_000, 50)], 10.0, 60),  # no longer than that
        ([(0, 1000, 0), (20, 1000, 1000), (25, 1000, 1050)], 10.0, 10),  # the last seconds count
        ([(0, 1000, 500), (5, 10, 3)], 0.0, 60),  # the server came back empty
    ],
)
def test_come_back_when_a_tenth_has_drained(
    tides: list[tuple[float, int, int]], rate: float, seconds: int
) -> None:
    clock = learned(*tides)
    assert clock.drained_per_s == pytest.approx(rate)
    assert clock.retry_after_s() == seconds
