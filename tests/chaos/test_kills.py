"""Whatever is killed, every accepted prediction ends once, with the result of its own input, and who waits is told."""

import asyncio
import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from redis import Redis
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from common.store import keys
from tests.conftest import eventually, leftovers
from tests.services import MOODY, MOODY_BATCH, Service

Start = Callable[..., Service]

LEASE = {"LEASE_S": 1}
ENOUGH_S = 40.0


def slow(value: int, seconds: float = 0.1) -> dict[str, Any]:
    return {"mood": "slow", "seconds": seconds, "value": value}


async def submit(client: httpx2.AsyncClient, inputs: list[dict[str, Any]]) -> list[str]:
    async def one(input_: dict[str, Any]) -> str:
        answer = await client.post("/predict", json={"input": input_}, headers={"Async-Mode": "true"})
        assert answer.status_code == 202, answer.text
        return str(answer.json()["prediction_id"])

    return list(await asyncio.gather(*map(one, inputs)))


async def assert_all_succeed(
    client: httpx2.AsyncClient, ids: list[str], inputs: list[dict[str, Any]]
) -> None:
    for prediction_id, input_ in zip(ids, inputs, strict=True):
        answer = await client.get(
            f"/predict/{prediction_id}", params={"wait": ENOUGH_S}, timeout=2 * ENOUGH_S
        )
        assert answer.headers["Prediction-Status"] == "succeeded", answer.text
        assert answer.json()["output"] == {"input": input_, "result": {"value": input_["value"]}}


def in_hand(processor: Service) -> int:
    return int(processor.metrics()["foretell_in_hand"])


def model_pids(processor: Service) -> list[int]:
    children = Path(f"/proc/{processor.pid}/task/{processor.pid}/children").read_text()
    return [int(pid) for pid in children.split()]


def nothing_queued(redis_url: str) -> bool:
    """No entry, nothing pending, no job without a TTL; the consumers of the dead stay until they are swept."""
    with Redis.from_url(redis_url, decode_responses=True) as client:
        return not [what for what in leftovers(client) if not what.startswith("consumer ")]


@pytest.mark.leaves_jobs("the consumer of the killed processor is swept a minute later")
@pytest.mark.parametrize("model", [MOODY, MOODY_BATCH], ids=["single", "batch"])
async def test_a_processor_killed_in_mid_batch_loses_nothing(
    redis_url: str, start_gateway: Start, start_processor: Start, model: str
) -> None:
    gateway, doomed = start_gateway(), start_processor(model, **LEASE)
    inputs = [slow(value) for value in range(20)]
    async with httpx2.AsyncClient(base_url=gateway.url) as client:
        ids = await submit(client, inputs)
        await eventually(lambda: in_hand(doomed))
        orphans = model_pids(doomed)
        doomed.kill()
        start_processor(model, **LEASE)
        await assert_all_succeed(client, ids, inputs)
    assert nothing_queued(redis_url)
    await eventually(lambda: not any(Path(f"/proc/{pid}").exists() for pid in orphans))


async def test_a_model_process_killed_in_mid_predict_costs_one_attempt(
    redis_url: str, partitions: int, start_gateway: Start, start_processor: Start
) -> None:
    gateway, processor = start_gateway(), start_processor(MOODY)
    async with httpx2.AsyncClient(base_url=gateway.url) as client:
        inputs = [slow(1, seconds=1.0), slow(2, seconds=0.0)]
        ids = await submit(client, inputs)
        await eventually(lambda: in_hand(processor))
        (victim,) = model_pids(processor)
        os.kill(victim, signal.SIGKILL)
        await assert_all_succeed(client, ids, inputs)
    with Redis.from_url(redis_url, decode_responses=True) as raw:
        attempts = [raw.hget(keys.job(i, partitions), "attempt") for i in ids]
    assert attempts == ["2", "1"]
    assert model_pids(processor) != [victim]


async def test_a_gateway_killed_with_clients_waiting_loses_no_prediction(
    start_gateway: Start, start_processor: Start
) -> None:
    doomed, other = start_gateway(), start_gateway()
    start_processor(MOODY)
    inputs = [slow(value, seconds=0.3) for value in range(5)]
    async with (
        httpx2.AsyncClient(base_url=doomed.url) as client,
        httpx2.AsyncClient(base_url=other.url) as second,
    ):
        ids = await submit(client, inputs)
        waiting = [asyncio.create_task(client.get(f"/predict/{ids[-1]}", params={"wait": 30}))]
        async with connect(f"{doomed.url.replace('http', 'ws')}/ws/predict/{ids[-1]}") as socket:
            assert json.loads(await socket.recv())["status"] in ("queued", "processing")
            doomed.kill()
            with pytest.raises(ConnectionClosed):
                while True:
                    await socket.recv()
        with pytest.raises(httpx2.TransportError):
            await asyncio.gather(*waiting)
        async with connect(f"{other.url.replace('http', 'ws')}/ws/predict/{ids[-1]}") as socket:
            frames = [json.loads(frame) async for frame in socket]
        assert frames[-1]["status"] == "succeeded"
        await assert_all_succeed(second, ids, inputs)


async def test_waiters_are_told_after_the_pub_sub_connection_was_cut(
    redis_url: str, start_gateway: Start, start_processor: Start
) -> None:
    """The results come while nobody hears: the relay must look them up once it hears again."""
    gateway = start_gateway()
    start_processor(MOODY)
    with Redis.from_url(redis_url) as raw:
        async with httpx2.AsyncClient(base_url=gateway.url, timeout=ENOUGH_S) as client:
            inputs = [slow(value, seconds=0.2) for value in range(8)]
            answers = [
                asyncio.create_task(client.post("/predict", json={"input": input_})) for input_ in inputs
            ]
            await eventually(lambda: raw.keys("*:job:*"))
            (followed,) = await submit(client, [slow(99, seconds=0.2)])
            async with connect(f"{gateway.url.replace('http', 'ws')}/ws/predict/{followed}") as socket:
                cuts = 0
                while not all(answer.done() for answer in answers):
                    cuts += raw.client_kill_filter(_type="pubsub")
                    await asyncio.sleep(0.05)
                frames = [json.loads(frame) async for frame in socket]
            assert cuts
            assert frames[-1]["output"]["result"] == {"value": 99}
            for input_, answer in zip(inputs, answers, strict=True):
                assert answer.result().json() == {"input": input_, "result": {"value": input_["value"]}}


@pytest.mark.leaves_jobs("a stopped processor is a dead consumer until it goes on")
async def test_a_processor_that_was_frozen_longer_than_its_lease_changes_nothing(
    redis_url: str, start_gateway: Start, start_processor: Start
) -> None:
    """Its late result is refused, the other's stands, and it takes work again."""
    gateway, frozen = start_gateway(), start_processor(MOODY, **LEASE)
    async with httpx2.AsyncClient(base_url=gateway.url) as client:
        inputs = [slow(1, seconds=0.5)]
        ids = await submit(client, inputs)
        await eventually(lambda: in_hand(frozen))
        frozen.send_signal(signal.SIGSTOP)
        other = start_processor(MOODY, **LEASE)
        await assert_all_succeed(client, ids, inputs)
        before = (await client.get(f"/predict/{ids[0]}")).content
        frozen.send_signal(signal.SIGCONT)
        await eventually(lambda: not in_hand(frozen))
        other.stop()
        again = [slow(2, seconds=0.0)]
        await assert_all_succeed(client, await submit(client, again), again)
        assert (await client.get(f"/predict/{ids[0]}")).content == before
    assert nothing_queued(redis_url)
