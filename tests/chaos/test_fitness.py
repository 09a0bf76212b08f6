"""A server that somebody makes unfit for the queue while we run: it is said once, and shown until it is put right."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import Redis

from tests.conftest import wait_until
from tests.services import ECHO, Service, Services, running_services
from tools.embedded_server import EmbeddedServer
from tools.redis_topologies import ClusterSet

pytestmark = pytest.mark.slow

EVICTS = "Redis would evict jobs (maxmemory-policy allkeys-lru): set maxmemory-policy noeviction."
NO_FILE = "Redis keeps no append-only file"
FULL = "The job store's memory is full"
REASONS = ("evicts", "no_append_only_file", "memory_full")


@pytest.fixture
def own(tmp_path: Path) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path / "server") as server:
        yield server


@pytest.fixture
def raw(own: EmbeddedServer) -> Iterator[Any]:
    with Redis.from_url(own.url, decode_responses=True) as client:
        yield client


def red(gateway: Service) -> set[str]:
    metrics = gateway.metrics()
    return {reason for reason in REASONS if metrics[f'foretell_redis_unfit{{reason="{reason}"}}']}


@pytest.mark.parametrize(
    ("reason", "name", "ill", "well", "sentence"),
    [
        ("evicts", "maxmemory-policy", "allkeys-lru", "noeviction", EVICTS),
        ("no_append_only_file", "appendonly", "no", "yes", NO_FILE),
    ],
)
def test_once_for_each_episode_after_a_reconnect(
    raw: Any, world: Services, reason: str, name: str, ill: str, well: str, sentence: str
) -> None:
    gateway = world.gateway()
    assert red(gateway) == set()
    for episode in (1, 2):
        raw.config_set(name, ill)
        for _ in range(3):  # seen through each new connection, said through none but the first
            raw.client_kill_filter(_type="normal", skipme=True)
            wait_until(lambda: red(gateway) == {reason})
        raw.config_set(name, well)
        raw.client_kill_filter(_type="normal", skipme=True)
        wait_until(lambda: red(gateway) == set())
        assert gateway.log.count(sentence) == episode
        assert gateway.is_ready()


def test_what_is_wrong_at_the_start_is_said_then(raw: Any, world: Services) -> None:
    raw.config_set("appendonly", "no")
    gateway = world.gateway()
    wait_until(lambda: red(gateway) == {"no_append_only_file"})
    assert gateway.log.count(NO_FILE) == 1


def test_a_full_memory_has_its_own_words(raw: Any, world: Services) -> None:
    """What was accepted goes on, so the gateway stays ready; what is new is refused, in one line of the log."""
    gateway = world.gateway()
    world.processor(ECHO)

    def post() -> httpx2.Response:
        return httpx2.post(f"{gateway.url}/predict", json={"input": 1})

    known = post().headers["Prediction-Id"]
    for episode in (1, 2):
        raw.config_set("maxmemory", 1)
        for _ in range(3):
            refused = post()
            assert refused.status_code == 503
            assert refused.json()["error"].startswith(FULL)
            assert int(refused.headers["Retry-After"]) > 0
        assert red(gateway) == {"memory_full"}
        assert FULL in httpx2.get(f"{gateway.url}/readyz").raise_for_status().json()["warning"]
        assert httpx2.get(f"{gateway.url}/predict/{known}").status_code == 200
        raw.config_set("maxmemory", 0)
        assert post().status_code == 200
        wait_until(lambda: red(gateway) == set(), 30)
        assert httpx2.get(f"{gateway.url}/readyz").json() == {"status": "ready"}
        assert gateway.log.count(FULL) == episode


def test_a_full_memory_is_seen_without_a_request(raw: Any, world: Services) -> None:
    gateway = world.gateway()
    raw.config_set("maxmemory", 1)
    raw.client_kill_filter(_type="normal", skipme=True)
    wait_until(lambda: red(gateway) == {"memory_full"})
    raw.config_set("maxmemory", 0)
    wait_until(lambda: red(gateway) == set(), 30)


@pytest.mark.slow
def test_each_server_of_a_cluster_and_a_replica_that_takes_over(tmp_path: Path) -> None:
    with ClusterSet(tmp_path / "servers", replicas=True) as cluster:
        master = cluster.owner(1)
        for node in cluster.nodes:
            if node.role() != "master":
                node.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
        with running_services(cluster.url, tmp_path, partitions=4) as services:
            gateway = services.gateway()
            assert "evicts" not in red(gateway)
            master.kill()
            wait_until(lambda: "evicts" in red(gateway), 60)
            assert gateway.log.count(EVICTS) == 1
