"""What a queued job takes of the server's memory: its share of the growth of `used_memory`."""

import uvloop
from redis.asyncio import Redis

from bench.jobs import queue_jobs
from bench.report import Row, Section, Target
from bench.stage import Stage
from common.store.queue import Queue
from common.store.session import Session

JOBS = 20_000
INPUT = b'"%s"' % (b"x" * 98)  # 100 bytes of JSON


def measure() -> Section:
    each = uvloop.run(_bytes_per_job())
    row: Row = {"jobs": JOBS, "bytes of input": len(INPUT), "bytes of memory per job": each}
    target = Target("server memory per queued 100-byte job, bytes", each, 450.0)
    return Section("Memory of the server", [row], [target])


async def _bytes_per_job() -> float:
    with Stage() as stage:
        async with Redis.from_url(stage.redis_url) as client:
            session = Session(stage.redis_url, name="bench")
            await Queue(session).prepare()  # the group is no part of a job
            before = await _used(client)
            await queue_jobs(session, [INPUT] * JOBS)
            await session.aclose()  # the server's buffers for this client are no part of a job
            return (await _used(client) - before) / JOBS


async def _used(client: Redis) -> int:
    info = await client.info("memory")
    return int(info["used_memory"])
