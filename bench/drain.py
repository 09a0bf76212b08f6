"""How fast one processor empties a long queue, beside the rate of the simplest thing a client can do: SET.

The time is from the first recorded finish to the last, on the server's clock, so the processor's start is not in it.
"""

import asyncio
import time
from statistics import median

import uvloop
from redis.asyncio import Redis

from bench.jobs import JobsWrong, finish_times, queue_jobs
from bench.report import Row, Section, Target
from bench.stage import Stage
from common.store import keys
from common.store.session import Session

JOBS = 20_000
INPUT = b'{"text":"a short text","n":1}'
ROUNDS = 3
SET_S = 1.0
LIMIT_S = 60.0
POLL_S = 0.05


def measure() -> Section:
    rounds = [uvloop.run(_round()) for _ in range(ROUNDS)]
    row: Row = {
        "jobs": JOBS,
        "queued/s": median(queued for queued, _, _ in rounds),
        "drained/s": median(drained for _, drained, _ in rounds),
        "SET/s": median(sets for _, _, sets in rounds),
    }
    target = Target(
        f"drain of {JOBS:,} queued echo jobs/s ÷ SET round trips/s of redis-py",
        median(drained / sets for _, drained, sets in rounds),
        3.0,
        least=True,
    )
    return Section("A long queue and one processor", [row], [target])


async def _round() -> tuple[float, float, float]:
    """Per second: jobs queued, jobs drained, SETs."""
    with Stage() as stage:
        session = Session(stage.redis_url, name="bench")
        async with Redis.from_url(stage.redis_url) as client:
            sets_per_s = await _sets_per_s(client)
            began = time.perf_counter()
            ids = await queue_jobs(session, [INPUT] * JOBS)
            queued_per_s = JOBS / (time.perf_counter() - began)
            with stage.processor("echo.py:echo"):
                await _until_empty(client)
            times = await finish_times(client, ids)
        await session.aclose()
    first, last = min(times), max(times)
    return queued_per_s, sum(at > first for at in times) / (last - first) * 1e6, sets_per_s


async def _sets_per_s(client: Redis) -> float:
    """One after the other."""
    value = b"x" * 100
    began, count = time.perf_counter(), 0
    while (spent := time.perf_counter() - began) < SET_S:
        await client.set("foretell-bench", value)
        count += 1
    return count / spent


async def _until_empty(client: Redis) -> None:
    for _ in range(int(LIMIT_S / POLL_S)):
        if not await client.xlen(keys.jobs(0)):
            return
        await asyncio.sleep(POLL_S)
    raise JobsWrong(f"The queue was not empty after {LIMIT_S:g} s.")
