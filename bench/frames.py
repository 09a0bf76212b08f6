"""From the moment a result is recorded to the moment a WebSocket client has the frame, on one machine's clock.

The client is in this process and its work is in the figure: read "all at once" as a burst, not as one frame's way.
"""

import asyncio
import time
from statistics import median, quantiles

import orjson
import uvloop
from redis.asyncio import Redis
from websockets.asyncio.client import connect

from bench.jobs import JobsWrong, finish_times, queue_jobs
from bench.report import Row, Section
from bench.stage import Service, Stage
from common.store.session import Session

SOCKETS = 100
LIMIT_S = 60.0


def measure() -> Section:
    rows = [
        uvloop.run(_row("one every 20 ms", "slow.py:Slow", b"0.02")),
        uvloop.run(_row("all at once", "echo.py:echo", b"0.02")),
    ]
    return Section(f"From finish to WebSocket frame, {SOCKETS} subscribers", rows)


async def _row(name: str, model: str, input_: bytes) -> Row:
    with Stage() as stage:
        gateway = stage.gateway()
        session = Session(stage.redis_url, name="bench")
        ids = await queue_jobs(session, [input_] * SOCKETS)
        try:
            async with asyncio.timeout(LIMIT_S):
                heard = await _listen_all(stage, gateway, ids, model)
        except TimeoutError:
            raise JobsWrong(f"Not every WebSocket got its last frame within {LIMIT_S:g} s.") from None
        async with Redis.from_url(stage.redis_url) as client:
            finished = await finish_times(client, ids)
        await session.aclose()
    late_ms = [(h - f) / 1000 for h, f in zip(heard, finished, strict=True)]
    return {"finishes": name, "p50 ms": median(late_ms), "p99 ms": quantiles(late_ms, n=100)[98]}


async def _listen_all(stage: Stage, gateway: Service, ids: list[str], model: str) -> list[int]:
    """When each client had its last frame. The processor starts when all of them listen."""
    listening = asyncio.Barrier(SOCKETS + 1)
    async with asyncio.TaskGroup() as group:
        clients = [group.create_task(_listen(gateway, prediction_id, listening)) for prediction_id in ids]
        await listening.wait()
        with stage.processor(model, wait=False):
            await asyncio.wait(clients)
    return [client.result() for client in clients]


async def _listen(gateway: Service, prediction_id: str, listening: asyncio.Barrier) -> int:
    """When the frame of success came: µs since the epoch."""
    url = gateway.url(f"/ws/predict/{prediction_id}").replace("http", "ws", 1)
    async with connect(url, compression=None, proxy=None) as socket:
        await socket.recv()
        await listening.wait()
        async for frame in socket:
            heard = time.time_ns() // 1000
            if orjson.loads(frame)["status"] == "succeeded":
                return heard
    raise JobsWrong("A WebSocket was closed before its last frame.")
