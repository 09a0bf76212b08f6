"""`python -m tests.chaos.planted gateway|processor <fault>…`: the real service with a fault built in, to show that the
checker finds it. Each fault is one that somebody could have written."""

import asyncio
import hashlib
import sys
from contextlib import suppress
from typing import Any

from common.entry import run_service
from common.settings import GatewaySettings, ProcessorSettings
from common.store import claims
from common.store.claims import Claims, Job, Outcome
from common.store.script import Script
from common.store.states import Status
from gateway import relay
from gateway.service import serve as serve_gateway
from processor import worker
from processor.service import serve as serve_processor


def deaf_processor() -> None:
    """Cancelled and expired jobs run to their end. By itself this breaks no promise: the fence refuses the results."""
    worker.Worker._abandon = lambda self, job: None  # type: ignore[method-assign]


def unremoved_waiter() -> None:
    """The gateway keeps a note of everybody who ever waited."""
    relay.Relay.remove = lambda self, prediction_id, callback: None  # type: ignore[method-assign]


def no_fence() -> None:
    """`finish` believes whoever comes, as XACK does."""
    _change(claims._FINISH, "if mine and job.status == 'processing' then", "if job.status then")


def publish_before_write() -> None:
    """The waiters are notified, and then nothing is written."""
    _change(
        claims._FINISH,
        "finalize(job, status, ARGV[at + 4], payload, ttl, ARGV[at + 6])",
        "notify(job.watchers, true, table.concat({ job.id, status, ARGV[at + 4], '0', '0', payload }, ' '))",
    )


def lost_entry() -> None:
    """One entry in sixteen is acknowledged instead of started."""
    _change(
        claims._CLAIM,
        "job.entry ~= entry[1] then",
        "job.entry ~= entry[1] or string.sub(job.id, 1, 1) == '0' then",
    )


def silent_finish() -> None:
    """The result is recorded and nobody is notified; the sweep does not look either."""
    _change(
        claims._FINISH, "entries[#entries + 1] = job.entry", "entries[#entries + 1] = job.entry outbox = {}"
    )
    relay.SWEEP_S = 3600.0


def swapped_results() -> None:
    """Outcomes by place instead of by id, when more than one is recorded at once."""
    finish = Claims.finish

    async def swapped(self: Claims, outcomes: Any) -> list[bool]:
        jobs = [job for job, _ in outcomes]
        good = [o for _, o in outcomes if o.status is Status.SUCCEEDED]
        mixed: list[tuple[Job, Outcome]] = list(zip(jobs, [o for _, o in outcomes], strict=True))
        if len(good) == len(jobs) > 1:
            mixed = list(zip(jobs, [*good[1:], good[0]], strict=True))
        return await finish(self, mixed)

    Claims.finish = swapped  # type: ignore[method-assign]


def stop_at_work() -> None:
    """A stopping processor gives back what runs, too, and has something to give back. By itself this breaks no promise."""
    drain = worker.Worker.drain

    async def at_work(self: worker.Worker, seconds: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds / 2):
                while not self._in_hand:
                    await asyncio.sleep(0.001)
        await drain(self, 0.0)

    worker.Worker.drain = at_work  # type: ignore[method-assign]


def forgotten_release() -> None:
    """What a processor gives back when it stops goes nowhere; the sweep, which would find it, does not look either."""

    async def blind(self: Claims, *, silent_s: float) -> int:
        return 0

    Claims.sweep = blind  # type: ignore[method-assign]
    again = "requeue(job, ARGV[at + 3] == '1' and job.attempt or job.attempt - 1, tonumber(ARGV[at + 4]))"
    _change(claims._RELEASE, again, "")
    _change(claims._LEAVE, "requeue(job, job.attempt - 1, 0)", "")


def _change(script: Script, old: str, new: str) -> None:
    assert old in script.text, f"no transition contains {old!r}"
    script.text = script.text.replace(old, new)
    script.sha = hashlib.sha1(script.text.encode(), usedforsecurity=False).hexdigest()


FAULTS = {
    fault.__name__: fault
    for fault in (
        deaf_processor,
        forgotten_release,
        lost_entry,
        no_fence,
        publish_before_write,
        silent_finish,
        stop_at_work,
        swapped_results,
        unremoved_waiter,
    )
}

if __name__ == "__main__":
    service, *names = sys.argv[1:]
    for name in names:
        FAULTS[name]()
    if service == "gateway":
        sys.exit(run_service("gateway", GatewaySettings, serve_gateway))
    sys.exit(run_service("processor", ProcessorSettings, serve_processor))
