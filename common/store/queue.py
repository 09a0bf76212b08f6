"""The queue as a whole: is the server fit for it, what is due, how full it is. Used by both services."""

import asyncio
from typing import NamedTuple

import structlog

from common.errors import StoreMisconfigured, StoreUnavailable
from common.store import keys
from common.store.connections.errors import translate, understood
from common.store.fitness import Unfit, parse_info, unfit
from common.store.script import Script
from common.store.server_clock import ServerClock
from common.store.session import Session
from common.store.states import Status

log = structlog.get_logger("foretell")

MIN_VERSION = (7, 0)
MIN_VERSION_FSYNC = (7, 2)  # WAITAOF
RETRY_S = 0.3
RING_JOBS = 500
STEP_US = 500_000  # what clocks differ by less is no step

_RING = Script("ring")
_MEASURE = Script("measure")
_RIGHTS = Script("rights")


class QueueProgress(NamedTuple):
    """Seconds until the next alarm (None: there is none), jobs that wait or run, and jobs that ever finished."""

    next_s: float | None
    unfinished: int
    finished: int


class QueueStats(NamedTuple):
    """The queue now: jobs `unfinished` (waiting and `running`), dead letters, processors in the group, seconds that the
    next job in line has waited (None: none waits). Since the server was empty: jobs by final state, and jobs given up."""

    unfinished: int
    running: int
    dead: int
    processors: int
    oldest_s: float | None
    finished: dict[Status, int]
    given_up: int


class Queue:
    """`stepped_back`: whether a server's clock had, when the queue was last rung."""

    stepped_back = False

    def __init__(self, session: Session) -> None:
        self._session = session
        self._clocks = [ServerClock() for _ in range(session.partitions)]

    async def prepare(self) -> None:
        """Check the server and make the consumer groups. Safe to repeat.

        Raises StoreMisconfigured for a server that is too old, would evict jobs or cannot do what the session's `durability` asks.
        """
        for p in range(self._session.partitions):
            try:
                reply = await self._session.link("control", p).command(
                    "INFO", "server", "memory", "persistence", "replication"
                )
            except Exception as error:
                raise translate(error) from error
            with understood():
                self._check_server(parse_info(reply))
            await make_group(self._session, p)
            await self._check_rights(p)

    async def rights(self, p: int) -> list[str]:
        """The commands of our scripts that the server refuses us."""
        refused = await _RIGHTS(self._session.link("control", p), "nobody")
        with understood():
            return [command.decode() for command in refused]

    async def _check_rights(self, p: int) -> None:
        if refused := await self.rights(p):
            raise StoreMisconfigured(
                f"Redis refuses us {', '.join(refused)}: give the user in REDIS_URL the rights in docs/operations.md."
            )

    def _check_server(self, info: dict[str, str]) -> None:
        version = info["redis_version"]
        needed = MIN_VERSION_FSYNC if self._session.durability == "fsync" else MIN_VERSION
        if tuple(int(part) for part in version.split(".")[:2]) < needed:
            words = "Foretell needs {}.{} or later, or Valkey".format(*needed)
            why = " for DURABILITY=fsync" if needed is MIN_VERSION_FSYNC else ""
            raise StoreMisconfigured(f"Redis {version} is too old: {words}{why}.")
        faults = unfit(info)
        if Unfit.EVICTS in faults:
            raise StoreMisconfigured(faults[Unfit.EVICTS])
        if info.get("role") == "slave":
            raise StoreUnavailable("Redis at REDIS_URL is a replica, which takes no writes.")
        if Unfit.NO_FILE in faults and self._session.durability == "fsync":
            raise StoreMisconfigured("DURABILITY=fsync needs an append-only file: set appendonly yes.")

    async def prepare_when_up(self, stop: asyncio.Event) -> bool:
        """`prepare`, again and again while the server is away; False if `stop` is set first."""
        warned = False
        while not stop.is_set():
            try:
                await self.prepare()
                return True
            except StoreUnavailable as error:
                if not warned:
                    log.warning("waiting for the server", error=str(error))
                    warned = True
                await asyncio.sleep(RETRY_S)
        return False

    async def ring(self) -> QueueProgress:
        """Do what is due: expire jobs past their deadline, queue retries whose time has come."""
        link, ttl_s = self._session.link, self._session.result_ttl_s
        earliest = [clock.earliest() for clock in self._clocks]
        replies = await self._session.on_every_partition(
            lambda p: _RING(link("control", p), ttl_s, RING_JOBS)
        )
        with understood():
            next_us, unfinished, finished, now = zip(*replies, strict=True)
            alarms = [int(us) / 1e6 for us in next_us if us]
            times = list(map(int, now))
            self.stepped_back = any(us < least - STEP_US for us, least in zip(times, earliest, strict=True))
            for clock, now_us in zip(self._clocks, times, strict=True):
                clock.learn(now_us)
            return QueueProgress(min(alarms, default=None), sum(unfinished), sum(finished))

    async def measure(self) -> QueueStats:
        """The state of the queue, all partitions together; it changes nothing."""
        link = self._session.link
        parts = await self._session.on_every_partition(lambda p: _MEASURE(link("control", p)))
        with understood():
            unfinished, running, dead, processors, oldest, *ended, given_up = zip(*parts, strict=True)
            waited = [int(us) / 1e6 for us in oldest if us]
            statuses = (Status.SUCCEEDED, Status.FAILED, Status.CANCELLED, Status.EXPIRED)
            finished = {status: sum(numbers) for status, numbers in zip(statuses, ended, strict=True)}
            return QueueStats(
                sum(unfinished),
                sum(running),
                sum(dead),
                max(processors),
                max(waited, default=None),
                finished,
                sum(given_up),
            )


async def make_group(session: Session, p: int) -> None:
    """Make the consumer group of a partition, if it is missing.

    Looking first: a server that is out of memory refuses to make even a group that is there, and a processor must be
    able to start on it and free some.
    """
    link = session.link("control", p)
    jobs, group = keys.jobs(p, session.key_prefix), keys.group(session.key_prefix)
    try:
        (groups,) = await link.call(("XINFO", "GROUPS", jobs))
        if isinstance(groups, Exception) or not groups:  # no such stream, or only the stream
            await link.command("XGROUP", "CREATE", jobs, group, "0", "MKSTREAM")
    except Exception as error:
        if "BUSYGROUP" not in str(error):
            raise translate(error) from error
