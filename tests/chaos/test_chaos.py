"""A short chaos run, and proof that the checker would notice: with a fault built into the services it must complain."""

import random
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from tests.chaos import faults
from tests.chaos.faults import Fault
from tests.chaos.run import Report, run
from tests.chaos.stage import SETTINGS

SECONDS = 12.0
pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]


async def test_a_short_run_breaks_no_promise(tmp_path: Path) -> None:
    """`make chaos` is the long one."""
    report = await run(tmp_path, seed=random.randrange(1_000_000), seconds=SECONDS)
    print(report.text(), report.summary(), sep="\n")
    assert report.good, report.summary()
    assert len(report.journal.records) > 50


@pytest.fixture
def short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Awaitable[Report]]:
    """A few seconds, without poison, and with little patience."""
    monkeypatch.setattr("tests.chaos.invariants.SETTLE_S", 3.0)
    monkeypatch.setattr("tests.chaos.run.WARM_UP_S", 1.0)
    monkeypatch.setattr("tests.chaos.clients.LONG_POLL_S", 1)
    monkeypatch.setitem(SETTINGS, "SYNC_WAIT_S", "1")

    async def start(planted: list[str], kind: Fault) -> Report:
        return await run(
            tmp_path, seed=1, seconds=4.0, planted=planted, kinds=[kind], poison=0.0, wait_s=6.0, clients=18
        )

    return start


@pytest.mark.parametrize(
    ("planted", "kind", "noticed_as"),
    [
        (["no_fence", "deaf_processor"], faults.forget_scripts, "doubled"),
        (["publish_before_write"], faults.cut_subscriptions, "lost"),
        (["lost_entry"], faults.cut_subscriptions, "lost"),
        (["silent_finish"], faults.forget_scripts, "untold"),
        (["swapped_results"], faults.forget_scripts, "doubled"),
        (["forgotten_release", "stop_at_work"], faults.restart_processor, "lost"),
        (["unremoved_waiter"], faults.forget_scripts, "leaked"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
async def test_a_planted_fault_is_found(
    short: Callable[..., Awaitable[Report]], planted: list[str], kind: Fault, noticed_as: str
) -> None:
    report = await short(planted, kind)
    assert report.broken[noticed_as], report.text()
    assert "seed=1 " in report.summary()
    assert report.broken[noticed_as][0] in report.text()


@pytest.mark.parametrize(
    ("planted", "kind"),
    [("deaf_processor", faults.forget_scripts), ("stop_at_work", faults.restart_processor)],
)
async def test_without_the_fault_the_same_breaks_nothing(
    short: Callable[..., Awaitable[Report]], planted: str, kind: Fault
) -> None:
    """The counterparts of `no_fence` and `forgotten_release`."""
    report = await short([planted], kind)
    assert report.good, report.text()
