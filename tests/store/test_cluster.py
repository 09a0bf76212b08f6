"""A cluster of three masters: each partition on one of them, slots that move, masters that go and come back."""

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from common.errors import StoreMisconfigured, StoreUnavailable
from common.store import keys
from common.store.announcements import parse_announcement
from common.store.claims import Outcome
from common.store.jobs import Submission
from common.store.states import Status
from tests.conftest import eventually, wait_until
from tests.services import LANGUAGE, ROOT, running_services
from tests.store.conftest import MakeStore
from tests.store.store import Processor, Store
from tests.store.traffic import assert_clean, traffic, unfinished
from tools.ports import free_ports
from tools.redis_topologies import ClusterSet, Node, slot_of

PARTITIONS = 4  # of 0 to 2, each has a master of its own
DONE = Outcome(Status.SUCCEEDED, b'"done"')
CONTRACT_S = 280
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ClusterSet]:
    with ClusterSet(tmp_path_factory.mktemp("cluster")) as running:
        yield running


@pytest.fixture
def cluster(servers: ClusterSet) -> ClusterSet:
    """Empty, and no slot is on its way, whatever the test before left."""
    for node in servers.nodes:
        node.ask("FLUSHALL")
        for partition in range(PARTITIONS):
            node.ask("CLUSTER", "SETSLOT", slot_of(partition), "STABLE")
    return servers


@pytest.fixture
async def gateway(cluster: ClusterSet, open_store: MakeStore) -> Store:
    store = open_store(cluster.url, name="gate", partitions=PARTITIONS)
    await store.queue.prepare()
    return store


@pytest.fixture
def processor(cluster: ClusterSet, gateway: Store, open_store: MakeStore) -> Processor:
    return Processor(open_store(cluster.url, name="proc", partitions=PARTITIONS))


def ids(count: int, partition: int | None = None) -> list[str]:
    new = keys.new_ids(PARTITIONS)
    mine = (i for i in new if partition is None or keys.partition_of(i, PARTITIONS) == partition)
    return list(islice(mine, count))


async def submit(gateway: Store, some: list[str], **more: Any) -> None:
    words = await asyncio.gather(
        *[gateway.jobs.submit(Submission(i, b"1", watch=True, **more)) for i in some]
    )
    assert {submitted.decision for submitted in words} == {"queued"}


async def test_two_deployments_on_it_have_nothing_in_common(
    gateway: Store, processor: Processor, cluster: ClusterSet, open_store: MakeStore
) -> None:
    prefixed = {"partitions": PARTITIONS, "key_prefix": "staging:"}
    other = open_store(cluster.url, name="gate", **prefixed)
    await other.queue.prepare()
    theirs = Processor(open_store(cluster.url, name="proc", **prefixed))
    some = ids(20)
    async with gateway.subscription(), other.subscription() as subscription:
        await submit(gateway, some)
        await submit(other, some)
        await theirs.store.claims.finish([(job, DONE) for job in await claim_all(theirs, len(some))])
        announced: set[str] = set()

        async def all_announced() -> bool:
            payload = await subscription.receive()
            announced.update(i for i, state in parse_announcement(payload or b"") if state.final)
            return announced == set(some)

        await eventually(all_announced)
    assert (await gateway.queue.measure()).unfinished == len(some)
    assert (await other.queue.measure()).finished[Status.SUCCEEDED] == len(some)
    await processor.store.claims.finish([(job, DONE) for job in await claim_all(processor, len(some))])


async def claim_all(processor: Processor, count: int) -> list[Any]:
    """So many jobs, whatever comes between."""
    jobs: list[Any] = []

    async def more() -> bool:
        with suppress(StoreUnavailable):
            jobs.extend(await processor.claim())
        return len(jobs) >= count

    await eventually(more, 20)
    return jobs


def another(cluster: ClusterSet, node: Node) -> Node:
    return next(other for other in cluster.nodes if other is not node)


def start_moving(cluster: ClusterSet, partition: int) -> tuple[Node, Node]:
    """The slot's server and the one that it is on the way to, key by key."""
    source = cluster.owner(partition)
    target, slot = another(cluster, source), slot_of(partition)
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", cluster.id_of(source))
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", cluster.id_of(target))
    return source, target


def move_keys(source: Node, target: Node, partition: int, wanted: Callable[[str], bool]) -> None:
    for key in source.ask("CLUSTER", "GETKEYSINSLOT", slot_of(partition), 10_000):
        if wanted(key):
            assert source.ask("MIGRATE", "127.0.0.1", target.port, key, 0, 5000) == "OK"


def end_moving(cluster: ClusterSet, source: Node, target: Node, partition: int) -> None:
    move_keys(source, target, partition, lambda key: True)
    for node in (target, source, *cluster.nodes):
        node.ask("CLUSTER", "SETSLOT", slot_of(partition), "NODE", cluster.id_of(target))


def move_at_once(cluster: ClusterSet, partition: int) -> None:
    """As Valkey 9 does it: the slot changes its server in one step."""
    source, slot = cluster.owner(partition), slot_of(partition)
    target = another(cluster, source)
    source.ask("CLUSTER", "MIGRATESLOTS", "SLOTSRANGE", slot, slot, "NODE", cluster.id_of(target))
    wait_until(lambda: _owner(cluster, partition) is target, 30)


def _owner(cluster: ClusterSet, partition: int) -> Node | None:
    try:
        return cluster.owner(partition)
    except LookupError:  # for a moment nobody says so
        return None


class TestJobStore:
    def test_the_partitions_have_three_masters(self, cluster: ClusterSet) -> None:
        assert len({cluster.owner(partition) for partition in range(PARTITIONS)}) == 3

    async def test_every_partition_works_and_is_heard(self, gateway: Store, processor: Processor) -> None:
        some = ids(40)
        async with gateway.subscription() as subscription, processor.store.subscription():
            await submit(gateway, some, deadline_us=60_000_000)
            jobs = await processor.claim()
            assert sorted(job.id for job in jobs) == sorted(some)
            assert await processor.store.claims.extend(jobs) == []
            await processor.store.claims.release(jobs[:4])
            jobs[:4] = await processor.claim()
            assert (await gateway.queue.ring()).unfinished == 40
            assert await processor.store.claims.finish([(job, DONE) for job in jobs]) == [True] * 40
            told: set[str] = set()
            async with asyncio.timeout(10):
                while len(told) < 40:
                    payload = await subscription.receive()
                    told |= {i for i, state in parse_announcement(payload)} if payload else set()
        assert told == set(some)
        assert {(await gateway.jobs.read(i)).status for i in some} == {Status.SUCCEEDED}  # type: ignore[union-attr]
        await processor.store.claims.leave()

    async def test_a_url_that_is_of_another_kind_is_named(
        self, cluster: ClusterSet, tmp_path: Path, open_store: MakeStore
    ) -> None:
        one_of_them = open_store(cluster.nodes[0].url, name="gate", partitions=PARTITIONS)
        with pytest.raises(StoreMisconfigured, match=r"use redis\+cluster://"):
            await one_of_them.queue.prepare()
        with Node(tmp_path, *free_ports(1)) as single:
            no_cluster = open_store(f"redis+cluster://127.0.0.1:{single.port}", name="gate")
            with pytest.raises(StoreMisconfigured, match="use redis://"):
                await no_cluster.queue.prepare()

    async def test_a_subscription_ends_when_a_channel_moves(
        self, cluster: ClusterSet, gateway: Store
    ) -> None:
        async with gateway.subscription() as subscription:
            move_at_once(cluster, 0)
            with pytest.raises(StoreUnavailable):
                async with asyncio.timeout(10):
                    while True:
                        await subscription.receive()

        async def heard() -> bool:
            try:
                async with gateway.subscription():
                    return True
            except StoreUnavailable:
                return False

        assert await eventually(heard)


class TestASlotThatMovesKeyByKey:
    """What has moved must not look as if it never was, and no transition may be left half done."""

    @pytest.mark.parametrize("first", ["jobs:", "job:", "counts:"])
    async def test_nothing_is_lost(
        self, cluster: ClusterSet, gateway: Store, processor: Processor, first: str
    ) -> None:
        some = ids(8, partition=0)
        await submit(gateway, some)
        running = await processor.store.claims.claim(processor.readers[0], 4)
        source, target = start_moving(cluster, 0)
        at = {"job:": [f"job:{running[1].id}", f"job:{some[-1]}"]}.get(first, [first])
        move_keys(source, target, 0, lambda key: any(part in key for part in at))

        store, reader = processor.store, processor.readers[0]
        for call in (
            lambda: store.claims.finish([(job, DONE) for job in running]),
            lambda: store.claims.claim(reader, 10),
            lambda: store.claims.reclaim(reader, 10, idle_s=0),
            lambda: store.claims.extend(running),
            lambda: store.claims.release(running),
            lambda: gateway.jobs.submit(Submission(ids(1, partition=0)[0], b"1")),
            lambda: gateway.jobs.cancel(some[-1], "Prediction cancelled."),
            gateway.queue.ring,
        ):
            with pytest.raises(StoreUnavailable):
                await call()  # type: ignore[no-untyped-call]

        end_moving(cluster, source, target, 0)
        assert await store.claims.finish([(job, DONE) for job in running]) == [True] * 4
        rest = await claim_all(processor, 4)
        assert await store.claims.finish([(job, DONE) for job in rest]) == [True] * 4
        assert {(await gateway.jobs.read(i)).status for i in some} == {Status.SUCCEEDED}  # type: ignore[union-attr]
        tide = await gateway.queue.ring()
        assert (tide.unfinished, tide.finished) == (0, 8)
        await store.claims.leave()
        assert_clean(cluster.nodes)


class TestServices:
    @pytest.mark.parametrize("how", ["at once", "key by key"])
    def test_a_slot_moves_under_load(self, cluster: ClusterSet, tmp_path: Path, how: str) -> None:
        with running_services(cluster.url, tmp_path, partitions=PARTITIONS) as services:
            gateway = services.gateway()
            services.processor(LEASE_S=3)
            with traffic(gateway.url) as load:
                for partition in range(2):
                    before = load.answered
                    wait_until(lambda before=before: load.answered > before + 100, 30)
                    if how == "at once":
                        move_at_once(cluster, partition)
                    else:
                        source, target = start_moving(cluster, partition)
                        end_moving(cluster, source, target, partition)
                before = load.answered
                wait_until(lambda: load.answered > before + 100, 30)
            wait_until(lambda: unfinished(cluster.nodes) == 0, 30)
        assert_clean(cluster.nodes)

    def test_a_master_is_killed_and_comes_back_under_load(self, cluster: ClusterSet, tmp_path: Path) -> None:
        """Its slots have no master meanwhile. What a killed process had written outlives it."""
        master = cluster.owner(1)
        with running_services(cluster.url, tmp_path, partitions=PARTITIONS) as services:
            gateway = services.gateway(SYNC_WAIT_S=60)  # longer than a cluster may take to agree
            services.processor(LEASE_S=3)
            with traffic(gateway.url) as load:
                wait_until(lambda: load.answered > 100, 30)
                master.kill()
                wait_until(lambda: load.refused > 5, 30)
                master.start()
                before = load.answered
                wait_until(lambda: load.answered > before + 200, 60)
            wait_until(lambda: unfinished(cluster.nodes) == 0, 30)
        assert_clean(cluster.nodes)

    def test_a_replica_takes_over_under_load(self, tmp_path: Path) -> None:
        """Only what it has been told is sure: DURABILITY=replicated. Its master comes back as its replica."""
        with ClusterSet(tmp_path / "servers", replicas=True) as cluster:
            master = cluster.owner(1)
            with running_services(cluster.url, tmp_path, partitions=PARTITIONS) as services:
                gateway = services.gateway(DURABILITY="replicated", SYNC_WAIT_S=60)
                services.processor(LEASE_S=3)
                with traffic(gateway.url) as load:
                    wait_until(lambda: load.answered > 100, 30)
                    master.kill()
                    wait_until(lambda: _owner(cluster, 1) not in (None, master), 30)
                    master.start()
                    before = load.answered
                    wait_until(lambda: load.answered > before + 200, 60)
                masters = [node for node in cluster.nodes if node.role() == "master"]
                wait_until(lambda: unfinished(masters) == 0, 30)
            assert_clean(masters)

    def test_the_contract_holds(self, cluster: ClusterSet, tmp_path: Path) -> None:
        with running_services(cluster.url, tmp_path, partitions=PARTITIONS) as services:
            gateway = services.gateway(SYNC_WAIT_S=60)  # longer than a cluster may take to agree
            services.processor(LANGUAGE)
            done = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "pytest",
                    "-q",
                    "-p",
                    "no:randomly",
                    "-p",
                    "no:cacheprovider",
                    "tests/contract",
                ],
                cwd=ROOT,
                env={**os.environ, "BASE_URL": gateway.url},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                timeout=CONTRACT_S,
            )
            assert done.returncode == 0, done.stdout
