"""Subscribers that never read what they asked for: what is kept for all of them together is bounded."""

import asyncio
import json
import socket
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import httpx2
from websockets.asyncio.client import connect

from common.http.slow_readers import MAX_HELD
from tests.conftest import eventually
from tests.services import Service

LARGE = "x" * 1_000_000
CLIENTS = 2 * MAX_HELD // len(LARGE)
HANDSHAKE = (
    "GET /ws/predict/%s HTTP/1.1\r\nHost: foretell\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def open_files(service: Service) -> int:
    return len(list(Path(f"/proc/{service.pid}/fd").iterdir()))


async def test_they_are_cut_off_and_who_reads_is_served(
    start_gateway: Callable[..., Service], start_processor: Callable[..., Service]
) -> None:
    gateway = start_gateway()
    async with httpx2.AsyncClient(base_url=gateway.url) as client:
        answer = await client.post("/predict", json={"input": LARGE}, headers={"Async-Mode": "true"})
        prediction_id = answer.json()["prediction_id"]
    before = open_files(gateway)
    with ExitStack() as stack:
        for _ in range(CLIENTS):
            slow = stack.enter_context(socket.socket())
            slow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            slow.connect(("127.0.0.1", gateway.port))
            slow.sendall((HANDSHAKE % prediction_id).encode())
        await eventually(lambda: "cut off clients" in gateway.log, 60)
        await eventually(lambda: open_files(gateway) - before <= MAX_HELD // len(LARGE), 60)
        url = f"ws://127.0.0.1:{gateway.port}/ws/predict/{prediction_id}"
        async with connect(url, max_size=None) as reading:
            assert json.loads(await reading.recv())["status"] == "queued"
            await asyncio.to_thread(start_processor)
            last = {}
            async for frame in reading:
                last = json.loads(frame)
            assert last["output"] == {"input": LARGE, "result": LARGE}
            assert reading.close_code == 1000
