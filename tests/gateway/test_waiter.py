"""Whoever waits for one prediction leaves nothing behind, misses no result and sees its client hang up."""

import asyncio

import pytest

from common.store.states import JobState
from gateway.waiter import Waiter
from tests.conftest import eventually
from tests.gateway.world import World


async def test_it_leaves_nothing_behind(world: World) -> None:
    """However the wait ends; the fixture looks."""
    prediction_id = await world.submit()
    with Waiter(world.gateway, prediction_id) as waiter:
        assert await waiter.wait(0.01) is None
    with Waiter(world.gateway, prediction_id) as waiter:
        waiting = asyncio.create_task(waiter.wait(3600))
        await asyncio.sleep(0)
        waiting.cancel()
    with pytest.raises(ZeroDivisionError), Waiter(world.gateway, prediction_id):
        raise ZeroDivisionError
    with Waiter(world.gateway, prediction_id) as waiter:
        await world.finish()
        end = await waiter.wait(30)
        assert isinstance(end, JobState)
        assert end.payload == b'"done"'


async def test_a_result_between_submit_and_wait_is_kept(world: World) -> None:
    with Waiter(world.gateway, prediction_id := await world.submit()) as waiter:
        await world.finish()
        await eventually(lambda: waiter._end)
        assert await waiter.wait(0) is not None
    assert not world.relay.waits_for(prediction_id)


async def test_a_client_that_hangs_up_is_seen(world: World) -> None:
    prediction_id = await world.submit()

    async def hangs_up() -> dict[str, str]:
        return {"type": "http.disconnect"}

    async def stays() -> dict[str, str]:
        await asyncio.sleep(3600)
        raise AssertionError

    with Waiter(world.gateway, prediction_id) as waiter:
        assert await waiter.wait_while_connected(hangs_up, 3600) is False
        assert await waiter.wait_while_connected(stays, 0.01) is None
        await world.finish()
        assert isinstance(await waiter.wait_while_connected(stays, 30), JobState)
