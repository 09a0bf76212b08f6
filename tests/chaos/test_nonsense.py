"""What answers at Redis' address is not Redis for a while, or refuses what it allowed before: an outage like any other."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import Redis

from tests.chaos.faults import NONSENSE, RIGHTS
from tests.chaos.proxy import Proxy
from tests.conftest import eventually
from tests.services import ECHO, Service, running_services
from tools.embedded_server import EmbeddedServer
from tools.ports import free_port

pytestmark = pytest.mark.slow

START_S = 30


class World:
    """A gateway and a processor that reach their server through a proxy."""

    def __init__(self, proxy: Proxy, raw: Any, gateway: Service, processor: Service) -> None:
        self.proxy, self.raw = proxy, raw
        self.members = (gateway, processor)
        self.client = httpx2.AsyncClient(base_url=gateway.url, timeout=60, trust_env=False)

    async def answers(self, code: int) -> None:
        """Predictions are answered with a result or a 503; wait for `code`."""

        async def answered() -> bool:
            answer = await self.client.post("/predict", json={"input": 1})
            assert answer.status_code in (200, 503), answer.text
            return bool(answer.status_code == code)

        await eventually(answered, 30)

    async def readiness_is(self, ready: bool) -> None:
        async def is_it() -> bool:
            found = [await asyncio.to_thread(member.is_ready) for member in self.members]
            return found == [ready, ready]

        await eventually(is_it, START_S)

    def check(self) -> None:
        """All live, and nobody stumbled."""
        for member in self.members:
            assert member.process.poll() is None, member.log
            assert "Traceback" not in member.log


@pytest.fixture
async def world(tmp_path: Path, partitions: int) -> AsyncIterator[World]:
    with ExitStack() as stack:
        port = free_port()
        server = stack.enter_context(EmbeddedServer(tmp_path / "server", port=port))
        proxy = Proxy(port)
        url = f"redis://127.0.0.1:{await proxy.start()}/0"
        raw = stack.enter_context(Redis.from_url(server.url, decode_responses=True))
        services = stack.enter_context(running_services(url, tmp_path, partitions=partitions))
        world = World(proxy, raw, services.gateway(wait=False), services.processor(ECHO, wait=False))
        try:
            await world.readiness_is(True)
            yield world
            world.check()
            for member in world.members:
                await asyncio.to_thread(member.stop)  # while the proxy still turns
        finally:
            await world.client.aclose()
            await proxy.aclose()


@pytest.mark.parametrize("nonsense", NONSENSE, ids=lambda reply: repr(reply[:8]))
async def test_nonsense_is_an_outage(world: World, nonsense: bytes) -> None:
    await world.answers(200)
    world.proxy.nonsense = nonsense
    world.proxy.cut()
    await world.answers(503)
    await world.readiness_is(False)
    world.check()
    world.proxy.heal()
    world.proxy.cut()
    await world.readiness_is(True)
    await world.answers(200)


@pytest.mark.parametrize("right", [*RIGHTS, "hset", "memory", "spublish", "xack", "xadd"])
async def test_a_right_that_is_taken_away_ends_nobody(world: World, right: str) -> None:
    await world.answers(200)
    world.raw.acl_setuser("default", enabled=True, nopass=True, commands=["+@all", f"-{right}"], keys=["*"])
    world.raw.client_kill_filter(skipme=True)
    for _ in range(3):
        answer = await world.client.post("/predict?", json={"input": 1}, headers={"Prefer": "wait=1"})
        assert answer.status_code in (200, 202, 503), answer.text
    world.check()
    world.raw.execute_command("ACL", "SETUSER", "default", "+@all")
    await world.readiness_is(True)
    await world.answers(200)


async def test_a_password_that_changes_ends_nobody(world: World) -> None:
    world.raw.execute_command("CONFIG", "SET", "requirepass", "new")
    world.raw.client_kill_filter(skipme=True)
    await world.answers(503)
    await world.readiness_is(False)
    await eventually(lambda: "check the user and password in REDIS_URL" in world.members[0].log)
    world.raw.execute_command("CONFIG", "SET", "requirepass", "")
    await world.readiness_is(True)
    await world.answers(200)
