"""Leases: what is in hand is renewed, and what others let run out may be taken over, but not too early.

Downtime of a server counts as silence of everybody. So after an outage that could have kept the living from renewing,
nothing of theirs is taken over until they have had a whole lease's time.
"""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterable, Mapping

import structlog

from common.errors import StoreError
from common.store.claims import Claims, Job
from processor import metrics

log = structlog.get_logger("foretell")


class Leases:
    """`in_hand` is what this processor holds, by id; `lost` is called with each job that is not ours any more."""

    def __init__(
        self,
        claims: Claims,
        in_hand: Mapping[str, Job],
        *,
        lost: Callable[[Job], None],
        lease_s: float,
        partitions: int,
    ) -> None:
        self.lease_s = lease_s
        self._claims = claims
        self._in_hand = in_hand
        self._lost = lost
        now = time.monotonic()
        self._heard = [now] * partitions  # when each partition's server last answered
        # no reclaiming before these times: after a start or a long outage, jobs of the living look abandoned too
        self._reclaim_from = [now + lease_s] * partitions

    def heard(self, partition: int) -> None:
        """Its server answered."""
        self._heard[partition] = time.monotonic()

    def not_heard(self, partitions: Iterable[int]) -> None:
        """Their servers did not answer. Leases are renewed every quarter, so after less than half of one without an
        answer the living still renew in time, and nothing need be put off: else a network that breaks again and
        again would keep the jobs of dead processors for ever."""
        now = time.monotonic()
        for p in partitions:
            if now - self._heard[p] > self.lease_s / 2:
                self.put_off(p)

    def put_off(self, partition: int) -> None:
        """Nothing of this partition is taken over until the living have had a whole lease's time."""
        self._reclaim_from[partition] = time.monotonic() + self.lease_s

    def reclaim_is_due(self, partition: int, now: float) -> bool:
        """Four times in a lease, unless it is put off."""
        if now < self._reclaim_from[partition]:
            return False
        self._reclaim_from[partition] = now + self.lease_s / 4
        return True

    async def extend_forever(self) -> None:
        due = 0.0  # when those in hand should have been renewed
        while True:
            due = due or time.monotonic() + self.lease_s / 4
            await asyncio.sleep(self.lease_s / 4)
            if not self._in_hand:
                due = 0.0
                continue
            jobs = list(self._in_hand.values())
            partitions = {job.partition for job in jobs}
            try:
                lost = await self._claims.extend(jobs)
            except StoreError:
                self.not_heard(partitions)
                continue
            metrics.LEASE_LATENESS_SECONDS.observe(max(0.0, time.monotonic() - due))
            due = 0.0
            for p in partitions:
                self.heard(p)
            for job in lost:
                if job.id in self._in_hand:  # else it was recorded while we asked
                    self._lost(job)

    async def sweep_forever(self) -> None:
        """Remove the consumers of processors that are gone, and queue again what has no place in the queue any more."""
        while True:
            await asyncio.sleep(self.lease_s)
            with contextlib.suppress(StoreError):  # the next sweep is soon enough
                await self._claims.remove_dead_consumers(idle_s=4 * self.lease_s)
                if queued := await self._claims.sweep(silent_s=self.lease_s):
                    metrics.PLACES_LOST.inc(queued)
                    log.warning(
                        "predictions had lost their place in the queue and are queued again", number=queued
                    )
