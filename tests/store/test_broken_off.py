"""A right that is withdrawn in the middle of a transition leaves it half done: whatever it was and wherever it stood, the
next sweep and the ordinary course of things bring every job to its end and leave nothing behind."""

from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

from common.errors import StoreError
from common.store import keys
from common.store.claims import Outcome
from common.store.jobs import Submission
from common.store.states import FINAL, Fault, Status
from tests.conftest import leftovers
from tests.store.life import DONE, SORRY, new_id, pass_deadline, ring_now, status
from tests.store.store import Processor, Store
from tests.store.test_rights import ALWAYS, CALL, PAGES

pytestmark = [pytest.mark.slow, pytest.mark.leaves_jobs("what is left is looked at here")]

STREAM, UNFINISHED, ALARMS = keys.jobs(0), keys.unfinished(0), f"{keys.tag(0)}:alarms:default"
GIVEN_UP = Outcome(Status.FAILED, b'"It died."', Fault.CRASH, given_up=True)


@pytest.fixture
def partitions() -> int:
    return 1


class Scene:
    """One job with all that a job can have, and who is around it."""

    def __init__(self, gateway: Store, a: Processor, raw: Any) -> None:
        self.gateway, self.a, self.raw = gateway, a, raw
        self.id = new_id()

    async def submit(self) -> None:
        submission = Submission(self.id, b"[1]", watch=True, deadline_us=3600_000_000, key="k")
        await self.gateway.jobs.submit(submission)

    async def claim(self) -> None:
        self.job = await self.a.claim_one()

    async def finish(self, outcome: Outcome = DONE) -> None:
        await self.a.store.claims.finish([(self.job, outcome)])

    async def sweep(self) -> None:
        await self.a.store.claims.sweep(silent_s=0.0)

    def set(self, field: str, value: int) -> None:
        self.raw.hset(keys.job(self.id, 1), field, value)


Step = Callable[[Scene], Any]
#: (what leads to it, what is broken off, the pages it runs)
TRANSITIONS: dict[str, tuple[list[Step], Step, str]] = {
    "submit": ([], Scene.submit, "submit"),
    "claim": ([Scene.submit], Scene.claim, "claim"),
    "claim, too late": ([Scene.submit, lambda s: s.set("deadline", 1)], lambda s: s.a.claim(), "claim"),
    "claim, once too often": ([Scene.submit, lambda s: s.set("attempt", 3)], lambda s: s.a.claim(), "claim"),
    "reclaim": ([Scene.submit, Scene.claim], lambda s: s.a.reclaim(), "claim"),
    "extend": ([Scene.submit, Scene.claim], lambda s: s.a.store.claims.extend([s.job]), "extend"),
    "finish": ([Scene.submit, Scene.claim], Scene.finish, "finish"),
    "give up": ([Scene.submit, Scene.claim], lambda s: s.finish(GIVEN_UP), "finish"),
    "release": ([Scene.submit, Scene.claim], lambda s: s.a.store.claims.release([s.job]), "release"),
    "retry": ([Scene.submit, Scene.claim], lambda s: s.a.store.claims.retry([(s.job, 0.0)]), "release"),
    "retry later": ([Scene.submit, Scene.claim], lambda s: s.a.store.claims.retry([(s.job, 3.0)]), "release"),
    "leave": ([Scene.submit, Scene.claim], lambda s: s.a.store.claims.leave(), "leave"),
    "cancel": ([Scene.submit], lambda s: s.gateway.jobs.cancel(s.id, SORRY), "cancel"),
    "cancel, running": ([Scene.submit, Scene.claim], lambda s: s.gateway.jobs.cancel(s.id, SORRY), "cancel"),
    "expire": (
        [Scene.submit, lambda s: pass_deadline(s.raw, s.id)],
        lambda s: s.gateway.queue.ring(),
        "ring",
    ),
    "expire, running": (
        [Scene.submit, Scene.claim, lambda s: pass_deadline(s.raw, s.id)],
        lambda s: s.gateway.queue.ring(),
        "ring",
    ),
    "a retry's time comes": (
        [
            Scene.submit,
            Scene.claim,
            lambda s: s.a.store.claims.retry([(s.job, 3.0)]),
            lambda s: ring_now(s.raw, s.id),
        ],
        lambda s: s.gateway.queue.ring(),
        "ring",
    ),
    "queue again": ([Scene.submit, lambda s: s.raw.delete(STREAM)], Scene.sweep, "sweep"),
    "queue again, running": (
        [Scene.submit, Scene.claim, lambda s: s.raw.delete(STREAM)],
        Scene.sweep,
        "sweep",
    ),
    "list again": ([Scene.submit, lambda s: s.raw.delete(UNFINISHED)], Scene.sweep, "sweep"),
    "revive": (
        [Scene.submit, Scene.claim, lambda s: s.finish(GIVEN_UP)],
        lambda s: s.gateway.dead_letters.revive(s.id),
        "revive",
    ),
    "forget": (
        [Scene.submit, Scene.claim, lambda s: s.finish(GIVEN_UP)],
        lambda s: s.gateway.dead_letters.forget(s.id),
        "revive",
    ),
}


#: what is left even so: command → what
KNOWN: dict[str, dict[str, list[str]]] = {
    # of no job yet: the next request with this key makes one
    "submit": {"HSET": [f"{keys.tag(0)}:key:k without a TTL"]},
    # the job is done again, and the letter goes with the oldest
    "give up": {"HSET": ["a dead letter without an index"]},
}


@pytest.fixture
def rights(raw: Any) -> Iterator[Callable[[str], object]]:
    """Changes everybody's."""
    yield lambda rule: raw.execute_command("ACL", "SETUSER", "default", rule)
    raw.execute_command("ACL", "SETUSER", "default", "+@all")


async def _do(step: Step, scene: Scene) -> None:
    result = step(scene)
    if isinstance(result, Awaitable):
        await result


async def _go_on(gateway: Store, b: Processor, raw: Any, prediction_id: str) -> None:
    """All that happens by itself in the time to come."""
    for _ in range(2):
        await b.store.claims.sweep(silent_s=0.0)
        if raw.zscore(ALARMS, prediction_id):
            ring_now(raw, prediction_id)
        await gateway.queue.ring()
        for job in [*await b.reclaim(), *await b.claim()]:
            assert await b.store.claims.finish([(job, DONE)]) == [True]


async def _wrong(scene: Scene, now: Status | None) -> list[str]:
    """What should be otherwise in the end, if the job's status was `now` when the transition had broken off."""
    found = leftovers(scene.raw)
    then = await status(scene.gateway, scene.id)
    if (then in FINAL) != (now is not None):
        found.append(f"it is {then}")
    if now in FINAL and then != now:
        found.append(f"it was {now} and is {then}")
    if scene.raw.xlen(keys.dead(0)) and await scene.gateway.dead_letters.revive(scene.id) == "unknown":
        found.append("a dead letter without an index")
    return found


@pytest.mark.parametrize("name", TRANSITIONS)
async def test_whatever_it_was(
    gateway: Store, a: Processor, b: Processor, raw: Any, rights: Callable[[str], object], name: str
) -> None:
    lead_up, step, page = TRANSITIONS[name]
    wrong, broken_off = {}, 0
    for command in sorted(set(CALL.findall(PAGES[page] + PAGES["shared"])) - ALWAYS):
        raw.flushall()
        await gateway.queue.prepare()
        scene = Scene(gateway, a, raw)
        for before in lead_up:
            await _do(before, scene)
        rights(f"-{command}")
        try:
            await _do(step, scene)
        except StoreError:
            broken_off += 1
        finally:
            rights("+@all")
        now = await status(gateway, scene.id)
        await gateway.queue.prepare()
        await _go_on(gateway, b, raw, scene.id)
        for processor in (a, b):
            await processor.store.claims.leave()
        if found := await _wrong(scene, now):
            wrong[command] = found
    assert broken_off
    assert wrong == KNOWN.get(name, {})
