"""From submit to result without HTTP, one at a time: what queue, processor and announcement add to a round trip."""

import time
from itertools import islice
from statistics import median, quantiles

import uvloop
from redis.asyncio import Redis

from bench.report import Row, Section, Target
from bench.stage import Stage
from common.store import keys
from common.store.announcements import parse_announcement
from common.store.connections.subscription import Subscription
from common.store.jobs import Jobs, Submission
from common.store.session import Session

INPUT = b'{"text":"a short text","n":1}'
ROUNDS = 5
TRIPS = 200  # of each kind, in one round


def measure() -> Section:
    return uvloop.run(_measure())


async def _measure() -> Section:
    pings: list[list[float]] = []
    trips: list[list[float]] = []
    with Stage() as stage, stage.processor("echo.py:echo"):
        session = Session(stage.redis_url, name="bench")
        jobs = Jobs(session)
        async with Redis.from_url(stage.redis_url) as client, session.subscription() as subscription:
            await _pings(client)
            await _trips(jobs, subscription)
            for _ in range(ROUNDS):
                pings.append(await _pings(client))
                trips.append(await _trips(jobs, subscription))
        await session.aclose()
    target = Target(
        "submit to result, idle, p50 ÷ PING p50",
        median(median(trip) / median(ping) for ping, trip in zip(pings, trips, strict=True)),
        12.0,
    )
    rows = [_row("PING", pings), _row("submit to result", trips)]
    return Section("One prediction at a time, without HTTP", rows, [target])


async def _pings(client: Redis) -> list[float]:
    """Seconds of each."""
    spent = []
    for _ in range(TRIPS):
        began = time.perf_counter()
        await client.ping()
        spent.append(time.perf_counter() - began)
    return spent


async def _trips(jobs: Jobs, subscription: Subscription) -> list[float]:
    """Seconds of each."""
    spent = []
    for prediction_id in islice(keys.new_ids(1), TRIPS):
        began = time.perf_counter()
        await jobs.submit(Submission(prediction_id, INPUT, watch=True))
        await _told(subscription, prediction_id)
        spent.append(time.perf_counter() - began)
    return spent


async def _told(subscription: Subscription, prediction_id: str) -> None:
    while True:
        payload = await subscription.receive()
        if payload and any(told == prediction_id for told, _ in parse_announcement(payload)):
            return


def _row(name: str, rounds: list[list[float]]) -> Row:
    spent = [seconds * 1e6 for one_round in rounds for seconds in one_round]
    return {"round trip": name, "p50 µs": median(spent), "p99 µs": quantiles(spent, n=100)[98]}
