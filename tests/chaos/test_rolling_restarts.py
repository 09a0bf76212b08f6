"""Gateways and processors are restarted one after the other while clients of every kind go on: nobody loses a thing.

The two gateways stand behind a round-robin that asks /readyz, as behind any balancer. Clients try again only what
HTTP lets them: a 503, and a connection that was closed before any answer to a PUT, which may be repeated.
"""

import asyncio
import json
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from typing import Any

import httpx2
import pytest
from redis import Redis
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from common.store import keys
from tests.conftest import eventually
from tests.services import ROOT, Service

Start = Callable[..., Service]

PATIENT = f"{ROOT}/tests/contract/models.py:Patient"
CLIENTS = 4  # of each kind
PROBE_S = 0.05
DELAY = {"SHUTDOWN_DELAY_S": 0.5, "DRAIN_S": 10}  # several probes long


class Balancer:
    """Gives each new connection to the next gateway that is ready."""

    def __init__(self) -> None:
        self.gateways: list[Service] = []
        self._ready: list[int] = []
        self._turn = 0
        self._connections: set[asyncio.Future[None]] = set()

    @asynccontextmanager
    async def serving(self) -> AsyncIterator[int]:
        """The port."""
        server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        probing = asyncio.create_task(self._probe_forever())
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            probing.cancel()
            server.close()
            await asyncio.wait_for(asyncio.gather(*self._connections), 10)

    async def probe(self) -> None:
        gateways = list(self.gateways)
        ready = await asyncio.gather(*(asyncio.to_thread(gateway.is_ready) for gateway in gateways))
        self._ready = [gateway.port for gateway, is_ready in zip(gateways, ready, strict=True) if is_ready]

    async def _probe_forever(self) -> None:
        while True:
            await self.probe()
            await asyncio.sleep(PROBE_S)

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.create_task(self._forward(reader, writer))
        self._connections.add(connection)
        connection.add_done_callback(self._connections.discard)

    async def _forward(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._turn += 1
        port = self._ready[self._turn % len(self._ready)]
        with closing(writer), suppress(ConnectionError):
            from_gateway, to_gateway = await asyncio.open_connection("127.0.0.1", port)
            with closing(to_gateway):
                await asyncio.gather(_copy(reader, to_gateway), _copy(from_gateway, writer))


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with suppress(ConnectionError):
        while data := await reader.read(1 << 16):
            writer.write(data)
            await writer.drain()
    writer.close()


class Load:
    """Clients of every kind. `accepted`: id → input; `seen`: how often what came."""

    def __init__(self, port: int) -> None:
        self._url = f"http://127.0.0.1:{port}"
        self._values = iter(range(10**9))
        self._stopping = False
        self.accepted: dict[str, Any] = {}
        self.seen: Counter[str] = Counter()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        async with (
            httpx2.AsyncClient(base_url=self._url, timeout=60) as client,
            asyncio.TaskGroup() as group,
        ):
            for kind in (self._sync, self._async, self._subscribe):
                for _ in range(CLIENTS):
                    group.create_task(self._again(kind, client))
            try:
                yield
            finally:
                self._stopping = True

    async def progress(self) -> None:
        """Every kind of client has got something done from now on."""
        before = self.seen.copy()
        await eventually(
            lambda: all(self.seen[what] > before[what] for what in ("sync 200", "async 202", "told")), 30
        )

    async def _again(
        self, kind: Callable[[httpx2.AsyncClient], Awaitable[None]], client: httpx2.AsyncClient
    ) -> None:
        while not self._stopping:
            await kind(client)

    def _input(self) -> dict[str, Any]:
        return {"mood": "slow", "seconds": 0.01, "value": next(self._values)}

    async def _put(
        self, client: httpx2.AsyncClient, prediction_id: str, input_: Any, mode: str
    ) -> httpx2.Response:
        """A PUT may be repeated when the connection ends before the answer."""
        while True:
            try:
                return await client.put(
                    f"/predict/{prediction_id}", json={"input": input_}, headers={"Async-Mode": mode}
                )
            except httpx2.TransportError:
                self.seen["connection closed"] += 1

    async def _sync(self, client: httpx2.AsyncClient) -> None:
        prediction_id, input_ = str(uuid.uuid4()), self._input()
        answer = await self._put(client, prediction_id, input_, "false")
        self.seen[f"sync {answer.status_code}"] += 1
        self.accepted[prediction_id] = input_
        if answer.status_code == 200:
            assert answer.json() == {"input": input_, "result": {"value": input_["value"]}}
        else:
            assert answer.status_code == 503, answer.text
            assert answer.json()["prediction_id"] == prediction_id

    async def _async(self, client: httpx2.AsyncClient) -> None:
        prediction_id, input_ = str(uuid.uuid4()), self._input()
        answer = await self._put(client, prediction_id, input_, "true")
        self.seen[f"async {answer.status_code}"] += 1
        while answer.status_code == 202:
            self.accepted[prediction_id] = input_
            with suppress(httpx2.TransportError):
                answer = await client.get(f"/predict/{prediction_id}", params={"wait": 30})
        assert answer.status_code == 200, answer.text
        assert answer.json()["output"] == {"input": input_, "result": {"value": input_["value"]}}

    async def _subscribe(self, client: httpx2.AsyncClient) -> None:
        prediction_id, input_ = str(uuid.uuid4()), self._input() | {"seconds": 0.1}
        answer = await self._put(client, prediction_id, input_, "true")
        assert answer.status_code == 202, answer.text
        self.accepted[prediction_id] = input_
        last: dict[str, Any] = {}
        while last.get("status") != "succeeded":
            try:
                async with connect(f"{self._url.replace('http', 'ws')}/ws/predict/{prediction_id}") as socket:
                    while True:
                        last = json.loads(await socket.recv())
            except ConnectionClosed as closed:
                code = closed.rcvd.code if closed.rcvd else None
                self.seen[f"WebSocket {code}"] += 1
                assert code in (1000, 1012)
            except (OSError, InvalidStatus, EOFError):
                self.seen["no WebSocket"] += 1
        assert last["output"] == {"input": input_, "result": {"value": input_["value"]}}
        self.seen["told"] += 1


async def stop_while_watched(gateway: Service) -> str:
    """Stop it while somebody follows a prediction there that has not ended; returns its id. Clients of the load follow
    theirs for so short a time that a busy machine may find none of them at it."""
    prediction_id = str(uuid.uuid4())
    async with httpx2.AsyncClient(base_url=gateway.url, timeout=60) as client:
        body = {"input": {"busy": 3600}}
        answer = await client.put(f"/predict/{prediction_id}", json=body, headers={"Async-Mode": "true"})
        assert answer.status_code == 202, answer.text
    async with connect(f"{gateway.url.replace('http', 'ws')}/ws/predict/{prediction_id}") as socket:
        await socket.recv()
        await asyncio.to_thread(gateway.stop)
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                await socket.recv()
    assert closed.value.rcvd
    assert closed.value.rcvd.code == 1012
    return prediction_id


async def test_nothing_is_lost_when_all_are_restarted_in_turn(
    redis_url: str, partitions: int, start_gateway: Start, start_processor: Start
) -> None:
    balancer = Balancer()
    balancer.gateways = [start_gateway(**DELAY), start_gateway(**DELAY)]
    processors = [start_processor(PATIENT), start_processor(PATIENT)]
    watched = []
    await balancer.probe()
    async with balancer.serving() as port:
        load = Load(port)
        async with load.running():
            for i in range(2):
                await load.progress()
                watched.append(await stop_while_watched(balancer.gateways[i]))
                balancer.gateways[i] = await asyncio.to_thread(start_gateway, **DELAY)
                await load.progress()
                await asyncio.to_thread(processors[i].stop)
                processors[i] = await asyncio.to_thread(start_processor, PATIENT)
            await load.progress()
        async with httpx2.AsyncClient(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            for prediction_id in watched:
                assert (await client.delete(f"/predict/{prediction_id}")).status_code == 200
            for prediction_id, input_ in load.accepted.items():
                answer = await client.get(f"/predict/{prediction_id}", params={"wait": 30})
                assert answer.headers["Prediction-Status"] == "succeeded", answer.text
                assert answer.json()["output"] == {"input": input_, "result": {"value": input_["value"]}}
    print(dict(load.seen))
    with Redis.from_url(redis_url, decode_responses=True) as raw:
        attempts = Counter(raw.hget(keys.job(i, partitions), "attempt") for i in load.accepted)
    assert attempts == {"1": len(load.accepted)}  # what was given back was not charged, and nothing ran twice
