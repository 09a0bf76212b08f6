"""The job store: the only module that talks to Redis. One method per transition, one Lua script behind each.

It must never change a job outside a transition, and never let redis-py's errors out: callers see StoreUnavailable
(try again, every transition may be repeated) or StoreMisconfigured. The key map is in `common/keys.py`, the fields
of a job in `common/transitions/shared.lua`.
"""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib import resources
from typing import Any, NamedTuple

import orjson
import structlog
from redis import exceptions

from common import keys
from common.errors import StoreMisconfigured, StoreUnavailable
from common.group_commit import GroupCommit
from common.redis_connections import BLOCK_S, Connections, Link, Subscription, translate
from common.settings import CommonSettings
from common.states import FINAL, Status

log = structlog.get_logger("foretell")

MIN_VERSION = (7, 0)
RETRY_S = 0.3
CALL_JOBS = 512


class Submission(NamedTuple):
    """A job to be: `input` is JSON text; `watch` tells this process its end."""

    id: str
    input: bytes
    watch: bool = False


@dataclass(slots=True, eq=False)
class Job:
    """A job in a processor's hands. Owner, `attempt` and `entry` (its place in the jobs stream) are its fence."""

    id: str
    partition: int
    entry: bytes
    attempt: int
    input: bytes
    queue_us: int
    dropped: bool = False  # cancelled, or its lease was lost: nobody wants its result


class Outcome(NamedTuple):
    """What became of one attempt: a JSON result, or a JSON sentence and why."""

    status: Status
    payload: bytes
    fault: str = ""
    predict_us: int = 0


class JobState(NamedTuple):
    """A job as a waiter sees it. `payload` is the result's JSON or the error sentence's, b"" if it is not final
    (or, in an announcement, too large to travel). `input` is None in announcements."""

    status: Status
    input: bytes | None = None
    fault: str = ""
    payload: bytes = b""
    queue_us: int = 0
    predict_us: int = 0

    @property
    def final(self) -> bool:
        return self.status in FINAL


class _Script:
    def __init__(self, name: str, flags: str = "flags=allow-oom") -> None:
        files = resources.files("common") / "transitions"
        self.text = (
            f"#!lua {flags}\n{(files / 'shared.lua').read_text()}\n{(files / f'{name}.lua').read_text()}"
        )
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    async def __call__(self, link: Link, script_keys: Sequence[str], *args: Any) -> Any:
        try:
            try:
                return await link.command("EVALSHA", self.sha, len(script_keys), *script_keys, *args)
            except exceptions.NoScriptError:
                return await link.command("EVAL", self.text, len(script_keys), *script_keys, *args)
        except Exception as error:
            raise translate(error) from error


# Everything but submit may run while the server is out of memory: it frees more than it takes.
_SUBMIT = _Script("submit", flags="")
_START = _Script("start")
_EXTEND = _Script("extend")
_FINISH = _Script("finish")
_RELEASE = _Script("release")
_CANCEL = _Script("cancel")
_WATCH = _Script("watch")
_LEAVE = _Script("leave")

_STATUS = {status.value.encode(): status for status in Status}


class JobStore:
    """`name` is this process among the others: a gateway's channel, or a processor's consumer and channel."""

    def __init__(
        self,
        url: str,
        *,
        name: str,
        partitions: int = 1,
        result_ttl_s: int = 3600,
        max_queue: int = 100_000,
        max_attempts: int = 3,
    ) -> None:
        self.name = name
        self.partitions = partitions
        self._ttl = result_ttl_s
        # each partition keeps its share: ids are random, so the shares fill evenly
        self._limit = -(-max_queue // partitions)
        self._max_attempts = max_attempts
        self._gave_up = orjson.dumps(
            f"Prediction given up after {max_attempts} attempts: each time its processor died or fell silent."
        )
        self._connections = Connections(url)
        self._submits = [
            GroupCommit(self._submitter(p), size=lambda s: len(s.input)) for p in range(partitions)
        ]
        self._watches = [GroupCommit(self._watcher(p)) for p in range(partitions)]

    @classmethod
    def from_settings(cls, settings: CommonSettings, *, name: str) -> "JobStore":
        return cls(
            settings.redis_url,
            name=name,
            partitions=settings.partitions,
            result_ttl_s=settings.result_ttl_s,
            max_queue=settings.max_queue,
            max_attempts=settings.max_attempts,
        )

    # -- the gateway's side

    def submit(self, submission: Submission) -> asyncio.Future[str]:
        """One word: "queued", "known" (same id, same input: nothing done), "conflict" or "full"."""
        return self._submits[keys.partition_of(submission.id, self.partitions)].call(submission)

    def watch(self, prediction_id: str, *, changes: bool = False) -> asyncio.Future[JobState | None]:
        """The state now (None: unknown) and, if it is not final, word to this process's channel of the final one;
        with `changes`, of every one."""
        return self._look(prediction_id, ("+" if changes else "") + self.name)

    def read(self, prediction_id: str) -> asyncio.Future[JobState | None]:
        """The state now; None: unknown."""
        return self._look(prediction_id, "")

    async def cancel(self, prediction_id: str, sentence: str, *, only_mine: bool = False) -> str:
        """One word: "cancelled", "finished" (too late), "unknown", or "watched" (with `only_mine`: others wait for it)."""
        p = keys.partition_of(prediction_id, self.partitions)
        only = self.name if only_mine else ""
        args = (keys.tag(p), prediction_id, orjson.dumps(sentence), self._ttl, only)
        reply: bytes = await _CANCEL(self._connections.link("control", p), [keys.jobs(p)], *args)
        return reply.decode()

    # -- the processor's side

    async def claim(self, reader: "Reader", count: int) -> list[Job]:
        """Up to `count` started jobs of one partition; waits up to BLOCK_S for the first. One round trip.

        The blocking XREADGROUP and the start script leave together: the server runs the script the moment the
        read ends. The script finds what the read delivered, because it looks at what this consumer got after `after`.
        """
        p = reader.partition
        args = self._start_args(p, count, after=reader.after)
        read = ("XREADGROUP", "GROUP", keys.GROUP, self.name, "COUNT", 1, "BLOCK", int(BLOCK_S * 1000))
        start = ("EVALSHA", _START.sha, 2, keys.jobs(p), keys.dead(p), *args)
        try:
            delivered, started = await reader.link.call((*read, "STREAMS", keys.jobs(p), ">"), start)
            if isinstance(started, exceptions.NoScriptError):
                started = await _START(reader.link, [keys.jobs(p), keys.dead(p)], *args)
            for reply in (delivered, started):
                if isinstance(reply, Exception):
                    raise reply
        except Exception as error:
            raise await self._repaired(p, error) from error
        reader.after = started[0]
        return self._started_jobs(p, started)

    async def reclaim(self, reader: "Reader", count: int, *, idle_s: float) -> list[Job]:
        """Jobs that nobody has renewed for `idle_s`, started here; the cursor is kept so that the tail is not starved."""
        p = reader.partition
        args = self._start_args(p, count, idle_ms=int(idle_s * 1000), cursor=reader.cursor)
        try:
            started = await _START(reader.link, [keys.jobs(p), keys.dead(p)], *args)
        except Exception as error:
            raise await self._repaired(p, error) from error
        reader.cursor = started[0]
        return self._started_jobs(p, started)

    async def extend(self, jobs: Iterable[Job]) -> list[Job]:
        """Renew the leases; returns the jobs that are not ours any more."""
        lost: list[Job] = []
        for p, part in _parts(jobs):
            args = [field for job in part for field in (job.id, job.entry, job.attempt)]
            kept = await _EXTEND(
                self._connections.link("lease", p), [keys.jobs(p)], keys.tag(p), self.name, *args
            )
            lost += [job for job, mine in zip(part, kept, strict=True) if not mine]
        return lost

    async def finish(self, outcomes: Sequence[tuple[Job, Outcome]]) -> list[bool]:
        """Record outcomes and tell whoever waits. False: refused, another attempt owns the job or it was cancelled."""
        recorded: dict[str, bool] = {}
        by_id = {job.id: outcome for job, outcome in outcomes}
        for p, part in _parts(job for job, _ in outcomes):
            args: list[Any] = []
            for job in part:
                o = by_id[job.id]
                args += (job.id, job.entry, job.attempt, o.status.value, o.fault, o.payload)
                args += (job.queue_us, o.predict_us)
            head = (keys.tag(p), self.name, self._ttl, keys.DEAD_LIMIT)
            replies = await _FINISH(
                self._connections.link("finish", p), [keys.jobs(p), keys.dead(p)], *head, *args
            )
            recorded.update((job.id, bool(mine)) for job, mine in zip(part, replies, strict=True))
        return [recorded[job.id] for job, _ in outcomes]

    async def release(self, jobs: Iterable[Job], *, counted: bool) -> None:
        """Give jobs back to the queue. `counted`: the attempt happened and keeps its number."""
        for p, part in _parts(jobs):
            args = [f for job in part for f in (job.id, job.entry, job.attempt, "1" if counted else "")]
            await _RELEASE(
                self._connections.link("control", p), [keys.jobs(p)], keys.tag(p), self.name, *args
            )

    def readers(self) -> list["Reader"]:
        """One reader per partition, each with its own connection."""
        return [Reader(p, self._connections.blocking_link(p)) for p in range(self.partitions)]

    async def leave(self) -> None:
        """Leave the group: what this processor still holds goes back, no attempt counted."""
        for p in range(self.partitions):
            await _LEAVE(self._connections.link("control", p), [keys.jobs(p)], keys.tag(p), self.name, "")

    async def remove_dead_consumers(self, *, idle_s: float) -> int:
        """Remove consumers of processors that are gone for `idle_s` and hold nothing; returns how many."""
        removed = 0
        for p in range(self.partitions):
            args = (keys.tag(p), "", int(idle_s * 1000))
            removed += await _LEAVE(self._connections.link("control", p), [keys.jobs(p)], *args)
        return removed

    # -- both sides

    def subscription(self) -> AbstractAsyncContextManager[Subscription]:
        """What is announced to this process; see `parse_announcement`."""
        return self._connections.subscription([keys.relay(p, self.name) for p in range(self.partitions)])

    async def ping(self) -> None:
        """Returns if the server answers; raises StoreUnavailable or StoreMisconfigured."""
        try:
            await self._connections.link("control").command("PING")
        except Exception as error:
            raise translate(error) from error

    async def prepare(self) -> None:
        """Check the server and make the consumer groups. Safe to repeat.

        Raises StoreMisconfigured for a server that is too old or would evict jobs.
        """
        try:
            reply = await self._connections.link("control").command("INFO", "server", "memory")
        except Exception as error:
            raise translate(error) from error
        info = dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)
        version = info["redis_version"]
        if tuple(int(part) for part in version.split(".")[:2]) < MIN_VERSION:
            raise StoreMisconfigured(f"Redis {version} is too old: Foretell needs 7.0 or later, or Valkey.")
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise StoreMisconfigured(
                f"Redis would evict jobs (maxmemory-policy {policy}): set maxmemory-policy noeviction."
            )
        for p in range(self.partitions):
            await self._make_group(p)

    async def prepare_when_up(self, stop: asyncio.Event) -> bool:
        """`prepare`, again and again while the server is away; False if `stop` is set first."""
        told = False
        while not stop.is_set():
            try:
                await self.prepare()
                return True
            except StoreUnavailable as error:
                if not told:
                    log.warning("waiting for the server", error=str(error))
                    told = True
                await asyncio.sleep(RETRY_S)
        return False

    async def depth(self) -> int:
        """Waiting and running jobs."""
        try:
            lengths = [
                await self._connections.link("control", p).command("XLEN", keys.jobs(p))
                for p in range(self.partitions)
            ]
        except Exception as error:
            raise translate(error) from error
        return sum(lengths)

    async def aclose(self) -> None:
        await self._connections.aclose()

    # -- inside

    def _submitter(self, p: int) -> Any:
        async def send(submissions: list[Submission]) -> list[str]:
            args = [field for s in submissions for field in (s.id, s.input, "1" if s.watch else "")]
            head = (keys.tag(p), self._limit, self.name)
            replies = await _SUBMIT(self._connections.link("submit", p), [keys.jobs(p)], *head, *args)
            return [reply.decode() for reply in replies]

        return send

    def _watcher(self, p: int) -> Any:
        async def send(looks: list[tuple[str, str]]) -> list[JobState | None]:
            args = [field for look in looks for field in look]
            replies = await _WATCH(self._connections.link("watch", p), [keys.jobs(p)], keys.tag(p), *args)
            return [_state(reply) if reply else None for reply in replies]

        return send

    def _look(self, prediction_id: str, watcher: str) -> asyncio.Future[JobState | None]:
        return self._watches[keys.partition_of(prediction_id, self.partitions)].call((prediction_id, watcher))

    def _start_args(
        self, p: int, count: int, *, after: bytes = b"", idle_ms: int | str = "", cursor: bytes = b""
    ) -> tuple[Any, ...]:
        limits = (count, self._max_attempts, self._ttl, keys.DEAD_LIMIT, self._gave_up)
        return (keys.tag(p), self.name, *limits, after, idle_ms, cursor)

    @staticmethod
    def _started_jobs(p: int, reply: list[Any]) -> list[Job]:
        return [
            Job(reply[at + 1].decode(), p, reply[at], int(reply[at + 2]), reply[at + 3], int(reply[at + 4]))
            for at in range(1, len(reply), 5)
        ]

    async def _repaired(self, p: int, error: Exception) -> Exception:
        """The error to raise; a missing group (an empty server came back) is made again first."""
        if "NOGROUP" not in str(error):
            return translate(error)
        await self._make_group(p)
        return StoreUnavailable("The consumer group was missing and has been made again.")

    async def _make_group(self, p: int) -> None:
        """Looking first: a server that is out of memory refuses to make even a group that is there, and a processor
        must be able to start on it and free some."""
        link = self._connections.link("control", p)
        try:
            (groups,) = await link.call(("XINFO", "GROUPS", keys.jobs(p)))
            if isinstance(groups, Exception) or not groups:  # no such stream, or only the stream
                await link.command("XGROUP", "CREATE", keys.jobs(p), keys.GROUP, "0", "MKSTREAM")
        except Exception as error:
            if "BUSYGROUP" not in str(error):
                raise translate(error) from error


@dataclass(slots=True)
class Reader:
    """One partition's reading position in one processor: the last entry delivered, and the reclaim cursor."""

    partition: int
    link: Link
    after: bytes = b"0-0"
    cursor: bytes = b"0-0"


def parse_announcement(payload: bytes) -> Iterable[tuple[str, JobState]]:
    """(id, state) for each line of a relay message; the form of a line is in `shared.lua`.

    The payload is JSON made by orjson, which has no newline outside its escapes, so lines can be split blindly.
    """
    for line in payload.split(b"\n"):
        words = line.split(b" ", 5)
        status = _STATUS[words[1]]
        if len(words) == 6:
            state = JobState(status, None, words[2].decode(), words[5], int(words[3]), int(words[4]))
        else:
            state = JobState(status)
        yield words[0].decode(), state


def _state(reply: list[bytes]) -> JobState:
    status, input_, fault, payload, queue_us, predict_us = reply
    return JobState(_STATUS[status], input_, fault.decode(), payload, int(queue_us), int(predict_us))


def _parts(jobs: Iterable[Job]) -> Iterator[tuple[int, list[Job]]]:
    """(partition, jobs) with at most CALL_JOBS in each: a script that runs long holds everybody up."""
    parts: defaultdict[int, list[Job]] = defaultdict(list)
    for job in jobs:
        parts[job.partition].append(job)
    for p, part in parts.items():
        for at in range(0, len(part), CALL_JOBS):
            yield p, part[at : at + CALL_JOBS]
