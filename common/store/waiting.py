"""The jobs that wait, for the people who run the service: list them, cancel them all."""

from typing import Any, NamedTuple

import orjson

from common.store.connections.errors import understood
from common.store.script import Script
from common.store.session import Session

CANCELLED_IN_ONE_CALL = 250  # a script that runs long holds everybody up

_WAITING = Script("waiting")


class WaitingJob(NamedTuple):
    """It was accepted `accepted_us` after the epoch, and has been started `attempts` times."""

    id: str
    accepted_us: int
    attempts: int
    input_bytes: int


class Page(NamedTuple):
    """`cursor` is where the next page begins, empty after the last one; a page may be short, even empty, before that."""

    jobs: list[WaitingJob]
    cursor: str


class WaitingJobs:
    def __init__(self, session: Session) -> None:
        self._session = session

    async def waiting(self, count: int, *, after: str = "") -> Page:
        """At most `count` of them, in each partition in the order in which they were accepted; retries that wait for
        their time among them."""
        p, score, id_ = after.split("/") if after else ("0", "", "")
        return await self._page(int(p), score, id_, count, b"")

    async def cancel_all(self, sentence: str) -> int:
        """Cancel all that wait and notify whoever waits for them; returns how many. May be repeated. What is submitted
        meanwhile is cancelled too, up to as many as the queue may hold."""
        cancelled, after = 0, "0//"
        most = sum(map(self._session.queue_limit, range(self._session.partitions)))
        while after and cancelled < most:
            p, score, id_ = after.split("/")
            page = await self._page(int(p), score, id_, CANCELLED_IN_ONE_CALL, orjson.dumps(sentence))
            cancelled += len(page.jobs)
            after = page.cursor
        return cancelled

    async def _page(self, p: int, score: str, id_: str, count: int, sentence: bytes) -> Page:
        args: tuple[Any, ...] = (count, score, id_, sentence, self._session.result_ttl_s)
        reply = await _WAITING(self._session.link("control", p), *args)
        with understood():
            score, id_ = (word.decode() for word in reply[:2])
            jobs = [
                WaitingJob(job.decode(), int(accepted), int(attempts), size)
                for job, accepted, attempts, size in reply[2:]
            ]
        if score:
            return Page(jobs, f"{p}/{score}/{id_}")
        following = p + 1
        return Page(jobs, f"{following}//" if following < self._session.partitions else "")
