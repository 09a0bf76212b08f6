"""A primary, a replica and three sentinels: which server is asked, and what a failover does to who is at work."""

import asyncio
import signal
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from common.errors import StoreUnavailable
from common.store import keys
from common.store.announcements import parse_announcement
from common.store.claims import Outcome
from common.store.jobs import Submission
from common.store.states import Status
from tests.conftest import eventually, wait_until
from tests.services import running_services
from tests.store.conftest import MakeStore
from tests.store.store import Processor, Store
from tests.store.traffic import assert_clean, traffic, unfinished
from tools.ports import free_ports
from tools.redis_topologies import SERVICE, SentinelSet

DONE = Outcome(Status.SUCCEEDED, b'"done"')
FAILOVER_S = 30.0


@pytest.fixture
def sentinels(tmp_path: Path) -> Iterator[SentinelSet]:
    with SentinelSet(tmp_path / "servers") as running:
        yield running


async def announced(gateway: Store, ids: set[str]) -> None:
    """Until all are told to have ended, by announcement or, after a lost subscription, by looking."""
    missing = set(ids)
    while missing:
        try:
            async with gateway.subscription() as subscription:
                for prediction_id in tuple(missing):
                    state = await gateway.jobs.watch(prediction_id)
                    if state is None or state.final:
                        missing.discard(prediction_id)
                while missing:
                    payload = await subscription.receive()
                    told = parse_announcement(payload) if payload else ()
                    missing -= {prediction_id for prediction_id, state in told if state.final}
        except StoreUnavailable:
            await asyncio.sleep(0.1)


async def submitted(gateway: Store, prediction_id: str) -> bool:
    try:
        submission = Submission(prediction_id, b"1", watch=True)
        return (await gateway.jobs.submit(submission)).decision in ("queued", "known")
    except StoreUnavailable:
        return False


@pytest.mark.slow
class TestJobStore:
    async def test_sentinels_that_are_gone_are_passed_over(
        self, sentinels: SentinelSet, open_store: MakeStore
    ) -> None:
        sentinels.sentinels[0].kill()
        (nobody,) = free_ports(1)
        url = sentinels.url.replace("://", f"://127.0.0.1:{nobody},")
        gateway, processor = open_store(url, name="gate"), Processor(open_store(url, name="proc"))
        await gateway.queue.prepare()
        ids = list(islice(keys.new_ids(gateway.partitions), 8))
        await asyncio.gather(*[gateway.jobs.submit(Submission(i, b"1")) for i in ids])
        jobs = await processor.claim()
        assert sorted(job.id for job in jobs) == sorted(ids)
        assert all(await processor.store.claims.finish([(job, DONE) for job in jobs]))

    async def test_without_any_sentinel_the_store_is_away(
        self, sentinels: SentinelSet, open_store: MakeStore
    ) -> None:
        for sentinel in sentinels.sentinels:
            sentinel.kill()
        with pytest.raises(StoreUnavailable, match="no sentinel leads to a primary"):
            await open_store(sentinels.url, name="gate").queue.prepare()

    async def test_a_service_that_no_sentinel_knows_is_named(
        self, sentinels: SentinelSet, open_store: MakeStore
    ) -> None:
        with pytest.raises(StoreUnavailable, match="knows no service 'other'"):
            await open_store(sentinels.url.replace(SERVICE, "other"), name="gate").queue.prepare()

    async def test_the_server_that_was_the_primary_is_left(
        self, sentinels: SentinelSet, open_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A failover that somebody asked for: the old primary answers all the time, as a replica in the end."""
        monkeypatch.setattr("common.store.connections.subscription.Subscription.PING_S", 0.2)
        gateway = open_store(sentinels.url, name="gate")
        processor = Processor(open_store(sentinels.url, name="proc"))
        await gateway.queue.prepare()
        old = sentinels.primary()
        async with gateway.subscription() as subscription:
            await processor.claim()  # connected, both
            sentinels.sentinels[0].ask("SENTINEL", "FAILOVER", SERVICE)
            with pytest.raises(StoreUnavailable):
                async with asyncio.timeout(FAILOVER_S):
                    while True:
                        await subscription.receive()
        assert await eventually(lambda: old.role() == "slave", FAILOVER_S)

        prediction_id = next(keys.new_ids(gateway.partitions))

        async def finished() -> bool:
            try:
                jobs = await processor.claim() or await processor.reclaim()
                return bool(jobs) and all(await processor.store.claims.finish([(job, DONE) for job in jobs]))
            except StoreUnavailable:
                return False

        assert await eventually(lambda: submitted(gateway, prediction_id), FAILOVER_S)
        async with asyncio.timeout(FAILOVER_S):
            hearing = asyncio.create_task(announced(gateway, {prediction_id}))
            assert await eventually(finished, FAILOVER_S)
            await hearing

    async def test_a_primary_that_falls_silent_is_left_for_good(
        self, sentinels: SentinelSet, open_store: MakeStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("common.store.connections.link.COMMAND_TIMEOUT_S", 1.0)
        gateway = open_store(sentinels.url, name="gate")
        await gateway.queue.prepare()
        old = sentinels.primary()
        some = list(islice(keys.new_ids(gateway.partitions), 2))
        old.send_signal(signal.SIGSTOP)
        assert await eventually(lambda: submitted(gateway, some[0]), FAILOVER_S)
        old.send_signal(signal.SIGCONT)
        assert await eventually(lambda: submitted(gateway, some[1]), FAILOVER_S)
        assert await eventually(lambda: sentinels.primary() is not old, FAILOVER_S)  # most of them know
        assert await eventually(lambda: old.role() == "slave", FAILOVER_S)
        for prediction_id in some:
            assert await gateway.jobs.read(prediction_id) is not None


@pytest.mark.slow
class TestServices:
    def test_a_killed_primary_costs_nothing_that_was_accepted(
        self, sentinels: SentinelSet, tmp_path: Path
    ) -> None:
        """While it is away there is no replica, so nothing new is accepted: DURABILITY=replicated."""
        with running_services(sentinels.url, tmp_path, partitions=2) as services:
            gateway = services.gateway(DURABILITY="replicated")
            services.processor(LEASE_S=3)
            with traffic(gateway.url) as load:
                wait_until(lambda: load.answered > 100, 30)
                old = sentinels.primary()
                old.kill()
                wait_until(lambda: sentinels.primary() is not old, FAILOVER_S)
                old.start()
                before = load.answered
                wait_until(lambda: load.answered > before + 100, 60)
            wait_until(lambda: unfinished([sentinels.primary()]) == 0, 30)
        assert_clean([sentinels.primary()])
