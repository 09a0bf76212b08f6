"""`python -m bench.socket_client PORT`: subscribes to every id on stdin, one a line, an id as often as it stands there.

A library's client would take more CPU than the gateway it measures, so frames are cut by hand here. Writes `open` once
every socket has had its first frame, and, when each has had its last, a line of JSON: µs since the epoch, in the
order of stdin, 0 for a socket that was closed before.
"""

import asyncio
import json
import resource
import struct
import sys
import time
from typing import cast

import uvloop

OPENING = 200  # at a time
HANDSHAKE = (
    "GET /ws/predict/%s HTTP/1.1\r\nHost: bench\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)
TEXT, CLOSE, PING, PONG = 0x81, 0x88, 0x89, 0x8A


class Client(asyncio.Protocol):
    """One socket. `opened` ends with the first frame, `ended` gives the time of the frame of success."""

    def __init__(self, prediction_id: str) -> None:
        loop = asyncio.get_running_loop()
        self._id = prediction_id
        self._data = b""
        self._told_us = 0
        self._upgraded = False
        self.opened = loop.create_future()
        self.ended = loop.create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        self._transport.write((HANDSHAKE % self._id).encode())

    def data_received(self, data: bytes) -> None:
        self._data += data
        if not self._upgraded:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return
            assert head.startswith(b"HTTP/1.1 101 "), head
            self._upgraded, self._data = True, rest
        while len(self._data) >= 2:
            start, length = 2, self._data[1]
            if length == 126:
                start, length = 4, int.from_bytes(self._data[2:4], "big")
            if len(self._data) < start + length:
                return
            kind, payload = self._data[0], self._data[start : start + length]
            self._data = self._data[start + length :]
            self._hear(kind, payload)

    def _hear(self, kind: int, payload: bytes) -> None:
        if kind == TEXT:
            if b'"status":"succeeded"' in payload:
                self._told_us = time.time_ns() // 1000
            if not self.opened.done():
                self.opened.set_result(None)
        elif kind == PING:
            self._say(PONG, payload)
        elif kind == CLOSE:
            self._say(CLOSE, payload)

    def _say(self, kind: int, payload: bytes) -> None:
        """Masked with zeros, which changes nothing."""
        self._transport.write(struct.pack("!BBI", kind, 0x80 | len(payload), 0) + payload)

    def connection_lost(self, error: Exception | None) -> None:
        for future in (self.opened, self.ended):
            if not future.done():
                future.set_result(self._told_us)


async def main(port: int, ids: list[str]) -> None:
    loop = asyncio.get_running_loop()
    slots = asyncio.Semaphore(OPENING)
    clients = [Client(prediction_id) for prediction_id in ids]

    async def opening(client: Client) -> None:
        async with slots:
            await loop.create_connection(lambda: client, "127.0.0.1", port)
            await client.opened

    async with asyncio.TaskGroup() as group:
        for client in clients:
            group.create_task(opening(client))
    print("open", flush=True)
    print(json.dumps([await client.ended for client in clients]), flush=True)


if __name__ == "__main__":
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    uvloop.run(main(int(sys.argv[1]), sys.stdin.read().split()))
