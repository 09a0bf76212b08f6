"""Whether the servers are fit: looked at every minute too, and where INFO is refused that is said once."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from structlog.testing import capture_logs

from common.store import fitness
from common.store.fitness import Fitness, Unfit
from common.store.session import Session
from tests.conftest import eventually
from tests.store.conftest import MakeStore
from tests.store.store import Store


@pytest.fixture(autouse=True)
def _often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fitness, "TICK_S", 0.01)
    monkeypatch.setattr(fitness, "LOOK_S", 0.05)


@pytest.fixture
def config(raw: Any) -> Iterator[Callable[[str, Any], None]]:
    """CONFIG SET, put back after the test."""
    before = raw.config_get("maxmemory*")
    yield raw.config_set
    for name in ("maxmemory", "maxmemory-policy"):
        raw.config_set(name, before[name])


@asynccontextmanager
async def watching(session: Session) -> AsyncIterator[Fitness]:
    watch = Fitness(session)
    task = asyncio.create_task(watch.run())
    try:
        yield watch
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


def refused_looks(raw: Any) -> int:
    return int(raw.info("commandstats")["cmdstat_info"]["rejected_calls"])


async def test_it_looks_again_and_again_and_says_once_what_it_finds(
    gateway: Store, config: Callable[[str, Any], None]
) -> None:
    with capture_logs() as logs:
        async with watching(gateway) as watch:
            await eventually(lambda: watch.reasons == {Unfit.NO_FILE})
            for _ in range(2):
                config("maxmemory-policy", "allkeys-lru")
                config("maxmemory", 1)
                await eventually(lambda: watch.reasons == {Unfit.NO_FILE, Unfit.EVICTS, Unfit.FULL})
                config("maxmemory", 0)
                config("maxmemory-policy", "noeviction")
                await eventually(lambda: watch.reasons == {Unfit.NO_FILE})
    said = [line["event"] for line in logs if line["log_level"] == "warning"]
    assert sorted(map(said.count, set(said))) == [1, 2, 2]


async def test_a_server_that_refuses_to_tell_is_said_once(
    gateway: Store, raw: Any, redis_url: str, open_store: MakeStore
) -> None:
    raw.acl_setuser("mute", enabled=True, nopass=True, commands=["+@all", "-info"], keys=["*"])
    try:
        with capture_logs() as logs:
            async with watching(open_store(redis_url.replace("unix://", "unix://mute:x@"), name="mute")):
                await eventually(lambda: logs)
                looks = refused_looks(raw)
                await eventually(lambda: refused_looks(raw) > looks + 3)
        assert [line["event"] for line in logs] == ["nobody watches how Redis is set up"]
    finally:
        raw.acl_deluser("mute")


async def test_an_answer_without_these_fields_is_no_fault() -> None:
    assert fitness.unfit(fitness.parse_info(b"# Memory\r\nused_memory:5\r\n")) == {}
