"""The job store: the only module that talks to Redis. One method per transition, one Lua script behind each.

It must never change a job outside a transition, and never let redis-py's errors out: callers see StoreUnavailable
(try again, every transition may be repeated) or StoreMisconfigured. The key map is in `common/store/keys.py`, the fields
of a job in `common/store/transitions/shared.lua`.
"""

import asyncio
import hashlib
from collections import defaultdict
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import orjson
import structlog
from redis import exceptions

from common.errors import StoreMisconfigured, StoreUnavailable
from common.settings import CommonSettings
from common.store import keys
from common.store.connections import BLOCK_S, Command, Connections, Link, Subscription, translate
from common.store.group_commit import GroupCommit
from common.store.states import FINAL, Status

if TYPE_CHECKING:
    from opentelemetry.trace import Span

log = structlog.get_logger("foretell")

MIN_VERSION = (7, 0)
MIN_VERSION_FSYNC = (7, 2)  # WAITAOF
RETRY_S = 0.3
CALL_JOBS = 512
RING_JOBS = 500
DEAD_PAGE_BYTES = 1 << 20

#: How far a submission must get before it counts as accepted: into the server, into one replica, onto the disk.
Durability = Literal["server", "replicated", "fsync"]
DURABLE_MS = 2000
_WAITS: dict[Durability, Command | None] = {
    "server": None,
    "replicated": ("WAIT", 1, DURABLE_MS),
    "fsync": ("WAITAOF", 1, 0, DURABLE_MS),
}


class Submission(NamedTuple):
    """A job to be: `input` is JSON text; `watch` tells this process its end; past `deadline_us` from now it expires;
    `key` is the digest of an Idempotency-Key, `trace` the request's trace context (see `common.tracing`)."""

    id: str
    input: bytes
    watch: bool = False
    deadline_us: int | None = None
    key: str = ""
    trace: str = ""


class Submitted(NamedTuple):
    """`word` is "queued", "known" (same id or key, same input: nothing done), "conflict" or "full"; `id` is that of
    the first submission if the key is known. Not `durable`: it did not get as far as `durability` asks in time, so it
    may run, but a fault of the server now could lose it."""

    word: str
    id: str
    durable: bool = True


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
    kept among the dead with its `traceback`."""

    status: Status
    payload: bytes
    fault: str = ""
    predict_us: int = 0
    given_up: bool = False
    traceback: str = ""


class Dead(NamedTuple):
    """A job that was given up, `given_up_ms` after the epoch. `place` is where it lies among the dead; `input` and
    `error` are JSON texts, `processor` the last that had it."""

    place: str
    given_up_ms: int
    id: str
    input: bytes
    error: bytes
    attempts: int
    processor: str
    traceback: str


class Tide(NamedTuple):
    """What `ring` found: seconds until the next alarm (None: there is none), jobs waiting and running, and all that
    were ever finished."""

    next_s: float | None
    unfinished: int
    finished: int


class Measure(NamedTuple):
    """The queue now: jobs `unfinished` (waiting and `running`), `dead`, processors in the group, seconds that the next
    in line has waited (None: none waits). Since the server was empty: jobs by final state, and jobs given up."""

    unfinished: int
    running: int
    dead: int
    processors: int
    oldest_s: float | None
    finished: dict[Status, int]
    given_up: int


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
        files = resources.files("common.store") / "transitions"
        self.text = (
            f"#!lua {flags}\n{(files / 'shared.lua').read_text()}\n{(files / f'{name}.lua').read_text()}"
        )
        self.sha = hashlib.sha1(self.text.encode(), usedforsecurity=False).hexdigest()

    def command(self, partition: int, *args: Any) -> Command:
        """The call of it, if the server knows it already."""
        return "EVALSHA", self.sha, 1, keys.jobs(partition), keys.tag(partition), *args

    async def __call__(self, link: Link, partition: int, *args: Any, then: Sequence[Command] = ()) -> Any:
        """Its reply; with `then`, the list of its reply and those of the commands that leave behind it."""
        try:
            replies = await link.call(self.command(partition, *args), *then)
            if isinstance(replies[0], exceptions.NoScriptError):
                head = ("EVAL", self.text, *self.command(partition, *args)[2:])
                replies = await link.call(head, *then)
            for reply in replies:
                if isinstance(reply, Exception):
                    raise reply
        except Exception as error:
            raise translate(error) from error
        return replies if then else replies[0]


# Everything but submit may run while the server is out of memory: it frees more than it takes.
_SUBMIT = _Script("submit", flags="")
_START = _Script("start")
_EXTEND = _Script("extend")
_FINISH = _Script("finish")
_RELEASE = _Script("release")
_CANCEL = _Script("cancel")
_WATCH = _Script("watch")
_LEAVE = _Script("leave")
_RING = _Script("ring")
_REVIVE = _Script("revive")
_MEASURE = _Script("measure")

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
        durability: Durability = "server",
    ) -> None:
        self.name = name
        self.partitions = partitions
        self._ttl = result_ttl_s
        self._max_queue = max_queue
        self._max_attempts = max_attempts
        self._durability = durability
        self._warned: set[str] = set()
        self._connections = Connections(url)
        self._submits = [
            GroupCommit(self._submitter(p), size=lambda s: len(s.input)) for p in range(partitions)
        ]
        self._watches = [GroupCommit(self._watcher(p)) for p in range(partitions)]

    @classmethod
    def from_settings(
        cls, settings: CommonSettings, *, name: str, durability: Durability = "server"
    ) -> "JobStore":
        return cls(
            settings.redis_url,
            name=name,
            partitions=settings.partitions,
            result_ttl_s=settings.result_ttl_s,
            max_queue=settings.max_queue,
            max_attempts=settings.max_attempts,
            durability=durability,
        )

    # -- the gateway's side

    def submit(self, submission: Submission) -> asyncio.Future[Submitted]:
        """An id that comes with a key must be in the partition of that key: see `keys.partition_of_key`."""
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
        args = (prediction_id, orjson.dumps(sentence), self._ttl, only)
        reply: bytes = await _CANCEL(self._connections.link("control", p), p, *args)
        return reply.decode()

    async def dead(self, count: int, *, after: str = "") -> list[Dead]:
        """Jobs that were given up: at most `count` and about DEAD_PAGE_BYTES, newest first in each partition, from
        behind the `place` of the last one that is known."""
        found: list[Dead] = []
        first, _, last = after.partition("-")
        size = 0
        for p in range(int(first or 0), self.partitions):
            while True:
                command = ("XREVRANGE", keys.dead(p), f"({last}" if last else "+", "-", "COUNT", 1)
                try:
                    entries = await self._connections.link("control", p).command(*command)
                except Exception as error:
                    raise translate(error) from error
                if not entries:
                    break
                found.append(_dead(p, *entries[0]))
                last = found[-1].place.partition("-")[2]
                size += len(found[-1].input)
                if len(found) == count or size > DEAD_PAGE_BYTES:
                    return found
            last = ""
        return found

    async def revive(self, prediction_id: str) -> str:
        """Queue a job that was given up again; one word: "queued", "unknown", "known" (it is not failed: somebody
        submitted it again) or "full"."""
        p = keys.partition_of(prediction_id, self.partitions)
        reply: bytes = await _REVIVE(self._connections.link("control", p), p, prediction_id, self._limit(p))
        return reply.decode()

    async def forget(self, prediction_id: str) -> bool:
        """Take a job out of the dead; False if it is not there."""
        p = keys.partition_of(prediction_id, self.partitions)
        reply: bytes = await _REVIVE(self._connections.link("control", p), p, prediction_id, "")
        return reply == b"forgotten"

    # -- the processor's side

    async def claim(self, reader: "Reader", count: int) -> list[Job]:
        """Up to `count` started jobs of one partition; waits up to BLOCK_S for the first. One round trip.

        The blocking XREADGROUP and the start script leave together: the server runs the script the moment the
        read ends. The script finds what the read delivered, because it looks at what this consumer got after `after`.
        """
        p = reader.partition
        args = self._start_args(count, after=reader.after)
        read = ("XREADGROUP", "GROUP", keys.GROUP, self.name, "COUNT", 1, "BLOCK", int(BLOCK_S * 1000))
        try:
            delivered, started = await reader.link.call(
                (*read, "STREAMS", keys.jobs(p), ">"), _START.command(p, *args)
            )
            if isinstance(started, exceptions.NoScriptError):
                started = await _START(reader.link, p, *args)
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
        args = self._start_args(count, idle_ms=int(idle_s * 1000), cursor=reader.cursor)
        try:
            started = await _START(reader.link, p, *args)
        except Exception as error:
            raise await self._repaired(p, error) from error
        reader.cursor = started[0]
        return self._started_jobs(p, started)

    async def extend(self, jobs: Iterable[Job]) -> list[Job]:
        """Renew the leases; returns the jobs that are not ours any more."""

        async def extend(p: int, part: list[Job]) -> list[Job]:
            args = [field for job in part for field in (job.id, job.entry, job.attempt)]
            kept = await _EXTEND(self._connections.link("lease", p), p, self.name, *args)
            return [job for job, mine in zip(part, kept, strict=True) if not mine]

        return [job for lost in await _together(extend, _parts(jobs)) for job in lost]

    async def finish(self, outcomes: Sequence[tuple[Job, Outcome]]) -> list[bool]:
        """Record outcomes and tell whoever waits. False: refused, another attempt owns the job or it was cancelled."""
        by_id = {job.id: outcome for job, outcome in outcomes}

        async def finish(p: int, part: list[Job]) -> dict[str, bool]:
            args: list[Any] = []
            for job in part:
                o = by_id[job.id]
                args += (job.id, job.entry, job.attempt, o.status.value, o.fault, o.payload, o.predict_us)
                args += ("1" if o.given_up else "", o.traceback)
            head = (self.name, self._ttl, keys.DEAD_LIMIT)
            replies = await _FINISH(self._connections.link("finish", p), p, *head, *args)
            return {job.id: bool(mine) for job, mine in zip(part, replies, strict=True)}

        recorded: dict[str, bool] = {}
        for part in await _together(finish, _parts(job for job, _ in outcomes)):
            recorded |= part
        return [recorded[job.id] for job, _ in outcomes]

    async def release(self, jobs: Iterable[Job]) -> None:
        """Give jobs back to the queue as if they had not been claimed."""
        await self._release([(job, 0.0) for job in jobs], counted="")

    async def retry(self, jobs: Iterable[tuple[Job, float]]) -> None:
        """Give jobs back to the queue after an attempt that counts, to be started again after so many seconds. The
        delay is kept in Redis."""
        await self._release(jobs, counted="1")

    async def _release(self, jobs: Iterable[tuple[Job, float]], *, counted: str) -> None:
        delays = {job.id: (job, int(seconds * 1e6)) for job, seconds in jobs}

        async def release(p: int, part: list[Job]) -> None:
            args = [f for job in part for f in (job.id, job.entry, job.attempt, counted, delays[job.id][1])]
            await _RELEASE(self._connections.link("control", p), p, self.name, *args)

        await _together(release, _parts(job for job, _ in delays.values()))

    def readers(self) -> list["Reader"]:
        """One reader per partition, each with its own connection."""
        return [Reader(p, self._connections.blocking_link(p)) for p in range(self.partitions)]

    async def leave(self) -> None:
        """Leave the group: what this processor still holds goes back, no attempt counted."""
        await self._everywhere(lambda p: _LEAVE(self._connections.link("control", p), p, self.name, ""))

    async def remove_dead_consumers(self, *, idle_s: float) -> int:
        """Remove consumers of processors that are gone for `idle_s` and hold nothing; returns how many."""
        idle_ms = int(idle_s * 1000)
        return sum(
            await self._everywhere(lambda p: _LEAVE(self._connections.link("control", p), p, "", idle_ms))
        )

    # -- both sides

    def subscription(self) -> AbstractAsyncContextManager[Subscription]:
        """What is announced to this process; see `parse_announcement`."""
        return self._connections.subscription([keys.relay(p, self.name) for p in range(self.partitions)])

    async def prepare(self) -> None:
        """Check the server and make the consumer groups. Safe to repeat.

        Raises StoreMisconfigured for a server that is too old, would evict jobs or cannot do what `durability` asks.
        """
        for p in range(self.partitions):
            try:
                reply = await self._connections.link("control", p).command(
                    "INFO", "server", "memory", "persistence", "replication"
                )
            except Exception as error:
                raise translate(error) from error
            info = dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)
            self._check_server(info)
            await self._make_group(p)

    def _check_server(self, info: dict[str, str]) -> None:
        version = info["redis_version"]
        needed = MIN_VERSION_FSYNC if self._durability == "fsync" else MIN_VERSION
        if tuple(int(part) for part in version.split(".")[:2]) < needed:
            words = "Foretell needs {}.{} or later, or Valkey".format(*needed)
            why = " for DURABILITY=fsync" if needed is MIN_VERSION_FSYNC else ""
            raise StoreMisconfigured(f"Redis {version} is too old: {words}{why}.")
        policy = info.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            raise StoreMisconfigured(
                f"Redis would evict jobs (maxmemory-policy {policy}): set maxmemory-policy noeviction."
            )
        if info.get("role") == "slave":
            raise StoreUnavailable("Redis at REDIS_URL is a replica, which takes no writes.")
        if info.get("aof_enabled") == "0":
            if self._durability == "fsync":
                raise StoreMisconfigured("DURABILITY=fsync needs an append-only file: set appendonly yes.")
            self._warn(
                "Redis keeps no append-only file: jobs are lost if it stops. To keep them, set appendonly yes."
            )

    def _warn(self, sentence: str) -> None:
        if sentence not in self._warned:
            self._warned.add(sentence)
            log.warning(sentence)

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

    async def ring(self) -> Tide:
        """Do what is due: expire jobs past their deadline, queue retries whose time has come."""
        tides = await self._everywhere(
            lambda p: _RING(self._connections.link("control", p), p, self._ttl, RING_JOBS)
        )
        alarms = [int(next_us) / 1e6 for next_us, _, _ in tides if next_us]
        return Tide(min(alarms, default=None), sum(tide[1] for tide in tides), sum(tide[2] for tide in tides))

    async def measure(self) -> Measure:
        """The state of the queue, all partitions together; it changes nothing."""
        parts = await self._everywhere(lambda p: _MEASURE(self._connections.link("control", p), p))
        unfinished, running, dead, processors, oldest, *ended, given_up = zip(*parts, strict=True)
        waited = [int(us) / 1e6 for us in oldest if us]
        statuses = (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED)
        finished = {status: sum(numbers) for status, numbers in zip(statuses, ended, strict=True)}
        return Measure(
            sum(unfinished),
            sum(running),
            sum(dead),
            max(processors),
            max(waited, default=None),
            finished,
            sum(given_up),
        )

    async def aclose(self) -> None:
        await self._connections.aclose()

    # -- inside

    async def _everywhere(self, call: Callable[[int], Awaitable[Any]]) -> list[Any]:
        """The reply of every partition, asked at the same time: one that is silent costs its time once."""
        return await asyncio.gather(*[call(p) for p in range(self.partitions)])

    def _submitter(self, p: int) -> Any:
        wait = _WAITS[self._durability]

        async def send(submissions: list[Submission]) -> list[Submitted]:
            args: Sequence[Any] = [
                field
                for s in submissions
                for field in (
                    s.id,
                    s.input,
                    "1" if s.watch else "",
                    "" if s.deadline_us is None else s.deadline_us,
                    s.key,
                    s.trace,
                )
            ]
            args = (self._limit(p), self.name, *args)
            link = self._connections.link("submit", p)
            durable = True
            if wait is None:
                replies = await _SUBMIT(link, p, *args)
            else:
                replies, reached = await _SUBMIT(link, p, *args, then=[wait])
                durable = bool(reached[0] if isinstance(reached, list) else reached)
            words = iter(map(bytes.decode, replies))
            return [Submitted(word, id_, durable) for word, id_ in zip(words, words, strict=True)]

        return send

    def _watcher(self, p: int) -> Any:
        async def send(looks: list[tuple[str, str]]) -> list[JobState | None]:
            args = [field for look in looks for field in look]
            replies = await _WATCH(self._connections.link("watch", p), p, *args)
            return [_state(reply) if reply else None for reply in replies]

        return send

    def _look(self, prediction_id: str, watcher: str) -> asyncio.Future[JobState | None]:
        return self._watches[keys.partition_of(prediction_id, self.partitions)].call((prediction_id, watcher))

    def _limit(self, p: int) -> int:
        """Each partition keeps its share of max_queue: ids are random, so the shares fill evenly."""
        share, rest = divmod(self._max_queue, self.partitions)
        return share + (p < rest)

    def _start_args(
        self, count: int, *, after: bytes = b"", idle_ms: int | str = "", cursor: bytes = b""
    ) -> tuple[Any, ...]:
        limits = (count, self._max_attempts, self._ttl, keys.DEAD_LIMIT)
        return (self.name, *limits, after, idle_ms, cursor)

    @staticmethod
    def _started_jobs(p: int, reply: list[Any]) -> list[Job]:
        return [
            Job(id_.decode(), p, entry, int(attempt), input_, int(queue_us), trace.decode())
            for entry, id_, attempt, input_, queue_us, trace in zip(*[iter(reply[1:])] * 6, strict=True)
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


def _dead(partition: int, entry: bytes, fields: list[bytes]) -> Dead:
    _, id_, _, input_, _, error, _, attempts, _, processor, _, traceback = fields
    ms = int(entry.partition(b"-")[0])
    place = f"{partition}-{entry.decode()}"
    return Dead(place, ms, id_.decode(), input_, error, int(attempts), processor.decode(), traceback.decode())


async def _together(
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
