"""The server's clock steps by an hour, under real services: whose processor died is taken over soon, whose processor lives
stays with it.
"""

from collections.abc import Iterator
from pathlib import Path

import httpx2
import pytest
from redis import Redis

from common.store import keys
from tests.chaos.test_kills import assert_all_succeed, in_hand, slow, submit
from tests.clock import MovableClock
from tests.conftest import eventually
from tests.services import MOODY, Services
from tools.embedded_server import EmbeddedServer

pytestmark = pytest.mark.slow

HOUR = 3600
LEASE = {"LEASE_S": 3}


@pytest.fixture
def clock(tmp_path: Path) -> MovableClock:
    return MovableClock(tmp_path)


@pytest.fixture
def own(clock: MovableClock, tmp_path: Path) -> Iterator[EmbeddedServer]:
    with clock.server(tmp_path / "server") as server:
        yield server


def attempts(own: EmbeddedServer, ids: list[str], partitions: int) -> set[str | None]:
    with Redis.from_url(own.url, decode_responses=True) as client:
        return {client.hget(keys.job(i, partitions), "attempt") for i in ids}


async def test_a_step_back_does_not_freeze_recovery(
    clock: MovableClock, own: EmbeddedServer, world: Services, partitions: int
) -> None:
    """The one that takes over is idle: its blocking read would end by the clock that has stepped back."""
    gateway = world.gateway()
    processors = [world.processor(MOODY, **LEASE) for _ in range(2)]
    inputs = [slow(1, 2.0)]
    async with httpx2.AsyncClient(base_url=gateway.url) as client:
        ids = await submit(client, inputs)
        await eventually(lambda: any(map(in_hand, processors)))
        next(filter(in_hand, processors)).kill()
        clock.step(-HOUR)
        await assert_all_succeed(client, ids, inputs)
    assert attempts(own, ids, partitions) == {"2"}


@pytest.mark.parametrize("seconds", [HOUR, -HOUR], ids=["forward", "back"])
async def test_a_step_takes_nothing_from_the_living(
    clock: MovableClock, own: EmbeddedServer, world: Services, partitions: int, seconds: int
) -> None:
    gateway = world.gateway()
    processors = [world.processor(MOODY, **LEASE) for _ in range(2)]
    inputs = [slow(value, 8.0) for value in range(2)]
    async with httpx2.AsyncClient(base_url=gateway.url) as client:
        ids = await submit(client, inputs)
        await eventually(lambda: all(map(in_hand, processors)))
        clock.step(seconds)
        await assert_all_succeed(client, ids, inputs)
    assert attempts(own, ids, partitions) == {"1"}
    assert sum(processor.metrics()["foretell_leases_lost_total"] for processor in processors) == 0
