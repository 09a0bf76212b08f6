"""Whether the servers are fit for the queue, for as long as we run: would they evict jobs, do they keep an append-only file,
is there memory for more. Somebody may change that, and a replica that takes over may be set up otherwise.

It asks INFO, which managed servers permit where they do not permit CONFIG. It must never stop anything: what it finds is
said once when it begins, and shown until it ends.
"""

import asyncio
import time
from enum import StrEnum

import structlog

from common.errors import StoreMisconfigured
from common.store.connections.errors import translate, understood
from common.store.session import Session

log = structlog.get_logger("foretell")

LOOK_S = 60.0
TICK_S = 1.0
CALM_S = 5.0  # without a refusal: there is memory again


class Unfit(StrEnum):
    """What a server may be unfit by."""

    EVICTS = "evicts"
    NO_FILE = "no_append_only_file"
    FULL = "memory_full"


FULL = "The job store's memory is full: nothing new is accepted. Give Redis more memory (maxmemory), or lower MAX_QUEUE or RESULT_TTL_S."


def parse_info(reply: bytes) -> dict[str, str]:
    """INFO's fields by name."""
    return dict(line.split(":", 1) for line in reply.decode().splitlines() if ":" in line)


def unfit(info: dict[str, str]) -> dict[Unfit, str]:
    """What is wrong with a server, a sentence each, as far as it tells."""
    found = {}
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        found[Unfit.EVICTS] = (
            f"Redis would evict jobs (maxmemory-policy {policy}): set maxmemory-policy noeviction."
        )
    if info.get("aof_enabled") == "0":
        found[Unfit.NO_FILE] = (
            "Redis keeps no append-only file: jobs are lost if it stops. To keep them, set appendonly yes."
        )
    limit = int(info.get("maxmemory", 0))
    counted = int(info.get("used_memory", 0)) - int(info.get("mem_not_counted_for_evict", 0))
    if 0 < limit < counted:
        found[Unfit.FULL] = FULL
    return found


class Fitness:
    """`run` it beside the work. `reasons` are what some server is unfit by now."""

    def __init__(self, session: Session) -> None:
        self._session = session
        # partition → its server, and what is wrong with that
        self._found: dict[int, tuple[str, dict[Unfit, str]]] = {}
        self._opened: dict[int, int] = {}  # partition → the connection that was looked through
        self._said: set[tuple[str, Unfit]] = set()
        self._refused_until = 0.0
        self._blind = False

    @property
    def reasons(self) -> set[Unfit]:
        return {reason for _, reason in self._said}

    def refused(self) -> None:
        """A server has refused a job for want of memory. Its own figures may not show it: what a large input needs is
        free again a moment later."""
        self._refused_until = time.monotonic() + CALM_S
        self._say()

    async def run(self) -> None:
        """Look every LOOK_S, and at once through a new connection: it may lead to another server."""
        due = 0.0
        while True:
            everything = time.monotonic() >= due or Unfit.FULL in self.reasons
            if time.monotonic() >= due:
                due = time.monotonic() + LOOK_S
            await self._look(everything=everything)
            self._say()
            await asyncio.sleep(TICK_S)

    async def _look(self, *, everything: bool) -> None:
        seen: dict[str, dict[Unfit, str]] = {}  # by server: one may have many partitions
        for p in range(self._session.partitions):
            link = self._session.link("control", p)
            if not everything and link.opened == self._opened.get(p):
                continue
            if link.opened != self._opened.get(p) or link.server not in seen:
                try:
                    reply = await link.command("INFO", "memory", "persistence")
                    with understood():
                        seen[link.server] = unfit(parse_info(reply))
                    self._blind = False
                except Exception as error:
                    self._cannot_look(translate(error))
                    continue
            self._opened[p] = link.opened
            self._found[p] = link.server, seen[link.server]

    def _cannot_look(self, error: Exception) -> None:
        """That the server is away is for others to say; a missing right is said once."""
        if isinstance(error, StoreMisconfigured) and not self._blind:
            self._blind = True
            log.warning("nobody watches how Redis is set up", why=str(error))

    def _say(self) -> None:
        now: dict[tuple[str, Unfit], str] = {}
        for server, faults in self._found.values():
            for reason, sentence in faults.items():
                # one server's memory is enough for all to be told: the refusals do not say which one it was
                now["" if reason is Unfit.FULL else server, reason] = sentence
        if time.monotonic() < self._refused_until:
            now["", Unfit.FULL] = FULL
        for server, reason in now.keys() - self._said:
            log.warning(now[server, reason], **({"server": server} if server else {}))
        for server, reason in self._said - now.keys():
            log.info("Redis is fit again", was=reason.value, **({"server": server} if server else {}))
        self._said = set(now)
