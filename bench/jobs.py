"""Jobs put into the queue without HTTP, and what their hashes say afterwards."""

import asyncio
from collections.abc import Sequence
from itertools import islice

from redis.asyncio import Redis

from common.errors import ForetellError
from common.store import keys
from common.store.jobs import Jobs, Submission
from common.store.queue import Queue
from common.store.session import Session

GROUP = 1000


class JobsWrong(ForetellError):
    """A job was not accepted, or did not succeed: there is nothing to measure."""


async def queue_jobs(session: Session, inputs: Sequence[bytes]) -> list[str]:
    """Submit all; the ids, in order. Raises JobsWrong."""
    await Queue(session).prepare()
    jobs = Jobs(session)
    ids = list(islice(keys.new_ids(1), len(inputs)))
    for at in range(0, len(ids), GROUP):
        submissions = [
            Submission(*job) for job in zip(ids[at : at + GROUP], inputs[at : at + GROUP], strict=True)
        ]
        replies = await asyncio.gather(*map(jobs.submit, submissions))
        words = {reply.decision for reply in replies}
        if words != {"queued"}:
            raise JobsWrong(f"Jobs were not accepted: {words}.")
    return ids


async def finish_times(client: Redis, ids: Sequence[str]) -> list[int]:
    """When each of `ids` succeeded: µs since the epoch, the server's clock. Raises JobsWrong."""
    times = []
    for at in range(0, len(ids), GROUP):
        pipeline = client.pipeline(transaction=False)
        for prediction_id in ids[at : at + GROUP]:
            pipeline.hmget(keys.job(prediction_id, 1), ["status", "finished"])
        for status, finished in await pipeline.execute():
            if status != b"succeeded":
                raise JobsWrong(f"A job did not succeed, it is {status!r}.")
            times.append(int(finished))
    return times
