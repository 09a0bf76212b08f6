"""The processor's half of the store: claim, extend, finish, release, leave, sweep. One method for each transition, or for each
use of one, a Lua page behind each.

It must never change a job outside a transition, and never let redis-py's errors out: callers see StoreUnavailable
(try again, every transition may be repeated) or StoreMisconfigured. What a processor does to a job is fenced: it counts
only while owner, attempt and entry are still those that it was given.
"""

import asyncio
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from redis import exceptions

from common.errors import ClockJumped, StoreUnavailable
from common.store import keys
from common.store.connections.errors import translate, understood
from common.store.connections.link import BLOCK_S, Link
from common.store.queue import make_group
from common.store.script import Script
from common.store.server_clock import ServerClock
from common.store.session import Session
from common.store.states import Status

if TYPE_CHECKING:
    from opentelemetry.trace import Span

CALL_JOBS = 512
SWEEP_JOBS = 200

_CLAIM = Script("claim")
_EXTEND = Script("extend")
_FINISH = Script("finish")
_RELEASE = Script("release")
_LEAVE = Script("leave")
_SWEEP = Script("sweep")


@dataclass(slots=True, eq=False)
class Job:
    """A job in a processor's hands. Owner, `attempt` and `entry` (its place in the jobs stream) are its fence."""

    id: str
    partition: int
    entry: bytes
    attempt: int
    input: bytes
    queue_us: int
    trace: str = ""
    started: float = 0.0  # by the processor's monotonic clock
    span: "Span | None" = None
    dropped: bool = False  # cancelled, or its lease was lost: nobody wants its result


class Outcome(NamedTuple):
    """What became of one attempt: a JSON result, or a JSON sentence and why. `given_up`: the last attempt of several,
    kept as a dead letter with its `traceback`."""

    status: Status
    payload: bytes
    fault: str = ""
    predict_us: int = 0
    given_up: bool = False
    traceback: str = ""


@dataclass(slots=True)
class Reader:
    """One partition's reading position in one processor: the last entry delivered, and the reclaim cursor. `clock` is
    that of its server."""

    partition: int
    link: Link
    after: bytes = b"0-0"
    cursor: bytes = b"0-0"
    clock: ServerClock = field(default_factory=ServerClock)


class Claims:
    """Jobs as the processor sees them that runs them."""

    def __init__(self, session: Session) -> None:
        self._session = session

    def readers(self) -> list[Reader]:
        """One reader per partition, each with its own connection."""
        return [Reader(p, self._session.blocking_link(p)) for p in range(self._session.partitions)]

    async def claim(self, reader: Reader, count: int) -> list[Job]:
        """Up to `count` started jobs of one partition; waits up to BLOCK_S for the first. One round trip.

        The blocking XREADGROUP and the claim script leave together: the server runs the script the moment the
        read ends. The script finds what the read delivered, because it looks at what this consumer got after `after`.
        """
        p = reader.partition
        args = self._claim_args(count, after=reader.after)
        read = (
            "XREADGROUP",
            "GROUP",
            keys.group(self._session.key_prefix),
            self._session.name,
            "COUNT",
            1,
            "BLOCK",
            int(BLOCK_S * 1000),
        )
        try:
            delivered, started = await reader.link.call(
                (*read, "STREAMS", keys.jobs(p, self._session.key_prefix), ">"),
                _CLAIM.command(reader.link, *args),
            )
            if isinstance(started, exceptions.NoScriptError):
                started = await _CLAIM(reader.link, *args)
            for reply in (delivered, started):
                if isinstance(reply, Exception):
                    raise reply
        except Exception as error:
            raise await self._repaired(p, error) from error
        with understood():
            jobs = _started_jobs(p, started)
            now = int(started[1].decode())  # each time: what is no time, such as `+OK`, is no reply of ours
            reader.after = started[0]
            if not reader.clock.known:
                reader.clock.learn(now)
        return jobs

    async def interrupt(self, readers: Iterable[Reader]) -> None:
        """End the reads that are under way, as a lost connection would: a server ends them by its clock, and if that has
        stepped back, only when it has caught up."""
        for reader in readers:
            await reader.link.aclose()

    async def reclaim(self, reader: Reader, count: int, *, idle_s: float) -> list[Job]:
        """Jobs that nobody has renewed for `idle_s`, started here; the cursor is kept so that the tail is not starved.

        Raises ClockJumped if the server's clock has stepped forward by more than half of `idle_s` since the last reply:
        by less, the living have renewed in time, because they do it every quarter.
        """
        p = reader.partition
        latest = reader.clock.latest(within_s=idle_s / 2) if idle_s else None
        args = self._claim_args(
            count, idle_ms=int(idle_s * 1000), cursor=reader.cursor, latest="" if latest is None else latest
        )
        try:
            started = await _CLAIM(reader.link, *args)
        except Exception as error:
            raise await self._repaired(p, error) from error
        with understood():
            jobs = _started_jobs(p, started)
            now = int(started[1].decode())
            reader.cursor = started[0]
            reader.clock.learn(now)
        if latest is not None and now > latest:
            raise ClockJumped(
                "Redis' clock has stepped forward, or it answers late: for a lease nothing is taken over."
            )
        return jobs

    async def extend(self, jobs: Iterable[Job]) -> list[Job]:
        """Renew the leases; returns the jobs that are not ours any more."""

        async def extend(p: int, part: list[Job]) -> list[Job]:
            args = [field for job in part for field in (job.id, job.entry, job.attempt)]
            kept = await _EXTEND(self._session.link("lease", p), self._session.name, *args)
            with understood():
                return [job for job, mine in zip(part, kept, strict=True) if not mine]

        return [job for lost in await _gather(extend, _parts(jobs)) for job in lost]

    async def finish(self, outcomes: Sequence[tuple[Job, Outcome]]) -> list[bool]:
        """Record outcomes and notify their waiters. False: refused, another attempt owns the job or it was cancelled."""
        by_id = {job.id: outcome for job, outcome in outcomes}

        async def finish(p: int, part: list[Job]) -> dict[str, bool]:
            args: list[Any] = [self._session.name, self._session.result_ttl_s, keys.DEAD_LIMIT]
            for job in part:
                o = by_id[job.id]
                args += (job.id, job.entry, job.attempt, o.status.value, o.fault, o.payload, o.predict_us)
                args += ("1" if o.given_up else "", o.traceback)
            replies = await _FINISH(self._session.link("finish", p), *args)
            with understood():
                return {job.id: bool(mine) for job, mine in zip(part, replies, strict=True)}

        recorded: dict[str, bool] = {}
        for part in await _gather(finish, _parts(job for job, _ in outcomes)):
            recorded |= part
        return [recorded[job.id] for job, _ in outcomes]

    async def release(self, jobs: Iterable[Job]) -> None:
        """Give jobs back to the queue as if they had not been claimed."""
        await self._release([(job, 0.0) for job in jobs], counted="")

    async def retry(self, jobs: Iterable[tuple[Job, float]]) -> None:
        """Give jobs back to the queue after an attempt that counts, to be started again after so many seconds. The
        delay is kept in Redis."""
        await self._release(jobs, counted="1")

    async def leave(self) -> None:
        """Leave the group: what this processor still holds goes back, no attempt counted."""
        await self._session.on_every_partition(
            lambda p: _LEAVE(self._session.link("control", p), self._session.name, "")
        )

    async def remove_dead_consumers(self, *, idle_s: float) -> int:
        """Remove consumers of processors that are gone for `idle_s` and hold nothing; returns how many."""
        idle_ms = int(idle_s * 1000)
        removed = await self._session.on_every_partition(
            lambda p: _LEAVE(self._session.link("control", p), "", idle_ms)
        )
        with understood():
            return sum(removed)

    async def sweep(self, *, silent_s: float) -> int:
        """Queue those jobs again whose place in the queue is gone, if they wait or nobody has renewed them for `silent_s`;
        returns how many. Of all processors' sweeps in that time only the first looks at anything."""
        silent_us = int(silent_s * 1e6)

        async def sweep(p: int) -> int:
            link, cursor, queued = self._session.link("control", p), b"", 0
            while True:
                args = (self._session.result_ttl_s, silent_us, cursor, SWEEP_JOBS)
                cursor, again = await _SWEEP(link, *args)
                with understood():
                    queued += int(again)
                if not cursor:
                    return queued

        return sum(await self._session.on_every_partition(sweep))

    # -- inside

    def _claim_args(
        self,
        count: int,
        *,
        after: bytes = b"",
        idle_ms: int | str = "",
        cursor: bytes = b"",
        latest: int | str = "",
    ) -> tuple[Any, ...]:
        limits = (count, self._session.max_attempts, self._session.result_ttl_s, keys.DEAD_LIMIT)
        return (self._session.name, *limits, after, idle_ms, cursor, latest)

    async def _release(self, jobs: Iterable[tuple[Job, float]], *, counted: str) -> None:
        delays = {job.id: (job, int(seconds * 1e6)) for job, seconds in jobs}

        async def release(p: int, part: list[Job]) -> None:
            args = [f for job in part for f in (job.id, job.entry, job.attempt, counted, delays[job.id][1])]
            await _RELEASE(self._session.link("control", p), self._session.name, *args)

        await _gather(release, _parts(job for job, _ in delays.values()))

    async def _repaired(self, p: int, error: Exception) -> Exception:
        """The error to raise; a missing group (an empty server came back) is made again first."""
        if "NOGROUP" not in str(error):
            return translate(error)
        await make_group(self._session, p)
        return StoreUnavailable("The consumer group was missing and has been made again.")


def _started_jobs(p: int, reply: list[Any]) -> list[Job]:
    return [
        Job(id_.decode(), p, entry, int(attempt), input_, int(queue_us), trace.decode())
        for entry, id_, attempt, input_, queue_us, trace in zip(*[iter(reply[2:])] * 6, strict=True)
    ]


async def _gather(
    call: Callable[[int, list[Job]], Awaitable[Any]], parts: Iterator[tuple[int, list[Job]]]
) -> list[Any]:
    """The results of all calls, made at the same time. Usually there is one, which needs no task."""
    calls = [call(p, part) for p, part in parts]
    return [await calls[0]] if len(calls) == 1 else await asyncio.gather(*calls)


def _parts(jobs: Iterable[Job]) -> Iterator[tuple[int, list[Job]]]:
    """(partition, jobs) with at most CALL_JOBS in each: a script that runs long holds everybody up."""
    parts: defaultdict[int, list[Job]] = defaultdict(list)
    for job in jobs:
        parts[job.partition].append(job)
    for p, part in parts.items():
        for at in range(0, len(part), CALL_JOBS):
            yield p, part[at : at + CALL_JOBS]
