"""`rights`: a right that is missing is named at the start, and what the documents list is enough."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from common.errors import StoreMisconfigured
from common.store import keys
from common.store.claims import Outcome
from common.store.jobs import Submission
from common.store.states import Fault, Status
from tests.store.conftest import MakeStore
from tests.store.store import Processor, Store

pytestmark = pytest.mark.leaves_jobs("jobs are given up here, and looked at")

ROOT = Path(__file__).resolve().parents[2]
PAGES = {page.stem: page.read_text() for page in (ROOT / "common/store/transitions").glob("*.lua")}
CALL = re.compile(r"(?:redis\.p?call\(|\{ )'([A-Z]+)'")
TRIED = set(CALL.findall(PAGES["rights"]))
#: in front of every page, so a user without them can call none
ALWAYS = {"EXISTS", "TIME"}


@pytest.fixture
def url_with(raw: Any, redis_url: str) -> Iterator[Callable[..., str]]:
    """The server's address with a user who has these rights."""

    def url(*rules: str) -> str:
        raw.execute_command("ACL", "SETUSER", "limited", "reset", "on", ">secret", *rules)
        return redis_url.replace("unix://", "unix://limited:secret@")

    yield url
    raw.acl_deluser("limited")


def test_every_command_of_every_page_is_tried() -> None:
    called = {command for name, page in PAGES.items() if name != "rights" for command in CALL.findall(page)}
    assert called
    assert called - TRIED == ALWAYS


@pytest.mark.parametrize("command", sorted(TRIED | ALWAYS))
async def test_one_that_is_missing_is_named(
    url_with: Callable[..., str], open_store: MakeStore, command: str
) -> None:
    url = url_with("~*", "&*", "+@all", f"-{command.lower()}")
    named = "a right" if command in ALWAYS else command.lower()  # Redis itself does not say which
    with pytest.raises(StoreMisconfigured, match=rf"{named}\b.*docs/operations\.md"):
        await open_store(url, name="gate").queue.prepare()


async def test_a_channel_that_is_missing_is_named(
    url_with: Callable[..., str], open_store: MakeStore
) -> None:
    store = open_store(url_with("~*", "resetchannels", "&elsewhere", "+@all"), name="gate")
    with pytest.raises(StoreMisconfigured, match=r"spublish.*docs/operations\.md"):
        await store.queue.prepare()


async def test_it_changes_nothing(gateway: Store, raw: Any) -> None:
    before = sorted(raw.keys("*"))
    for p in range(gateway.partitions):
        assert await gateway.queue.rights(p) == []
    assert sorted(raw.keys("*")) == before
    assert raw.xinfo_consumers(keys.jobs(0), keys.GROUP) == []


@pytest.mark.parametrize("prefix", ["", "staging:"])
async def test_the_documented_rights_are_enough(
    url_with: Callable[..., str], open_store: MakeStore, prefix: str
) -> None:
    page = (ROOT / "docs/operations.md").read_text()
    (line,) = re.findall(r"^ACL SETUSER foretell on >PASSWORD (.*)$", page, re.MULTILINE)
    url = url_with(*line.replace("{f*}", f"{prefix}{{f*}}").split())
    gateway = open_store(url, name="gate", key_prefix=prefix)
    processor = Processor(open_store(url, name="proc", key_prefix=prefix))
    await gateway.queue.prepare()
    async with gateway.subscription() as subscription:
        for outcome in (Outcome(Status.FAILED, b'"no"', Fault.MODEL, given_up=True), None):
            for prediction_id in [next(keys.new_ids(1)) for _ in range(2)]:
                submission = Submission(prediction_id, b"1", watch=True, deadline_us=60_000_000, key="k")
                await gateway.jobs.submit(submission._replace(key=prediction_id[:16]))
                job = await processor.claim_one()
                await processor.store.claims.extend([job])
                if outcome:
                    await processor.store.claims.finish([(job, outcome)])
                else:
                    await processor.store.claims.retry([(job, 3600.0)])
        assert await subscription.receive()
    assert len(await gateway.dead_letters.list(10)) == 2
    assert await processor.reclaim() == []
    await gateway.queue.measure()
    await gateway.queue.ring()
    await processor.store.claims.leave()
    await gateway.jobs.cancel(job.id, "Prediction cancelled.")
