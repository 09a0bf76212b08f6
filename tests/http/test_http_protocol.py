"""How answers leave: the head waits for its body, and never longer than a turn of the loop. How long a client may take
for its part, and what it is told then. tests/security/test_raw_bytes.py sends what is not quite HTTP."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.routing import Route

from common.http import http_protocol, server_state
from common.http.http_protocol import CoalescedWrites
from common.http.listener import bind
from common.http.server import make_server
from tests.conftest import eventually

HEAD = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n"


class Wire:
    """A transport that keeps what is written, write by write."""

    def __init__(self) -> None:
        self.writes: list[bytes] = []
        self.closed = False

    def write(self, data: bytes) -> None:
        assert not self.closed
        self.writes.append(bytes(data))

    def close(self) -> None:
        self.closed = True

    def is_closing(self) -> bool:
        return self.closed


async def wrapped() -> tuple[Wire, Any]:
    wire = Wire()
    return wire, CoalescedWrites(wire, asyncio.get_running_loop())  # type: ignore[arg-type]


async def test_head_and_body_are_one_write() -> None:
    wire, transport = await wrapped()
    transport.write(HEAD)
    transport.write(b"{}")
    await asyncio.sleep(0)
    assert wire.writes == [HEAD + b"{}"]


async def test_a_head_without_a_body_goes_out_in_the_next_turn() -> None:
    wire, transport = await wrapped()
    transport.write(HEAD)
    await asyncio.sleep(0)
    assert wire.writes == [HEAD]
    transport.write(b"{}")  # a body that comes late
    assert wire.writes == [HEAD, b"{}"]


async def test_closing_loses_nothing() -> None:
    wire, transport = await wrapped()
    transport.write(HEAD)
    transport.close()
    assert (wire.writes, wire.closed) == ([HEAD], True)
    await asyncio.sleep(0)
    assert wire.writes == [HEAD]


async def test_two_heads_in_one_turn_keep_their_order() -> None:
    wire, transport = await wrapped()
    transport.write(HEAD)
    transport.write(HEAD)
    transport.write(b"{}")
    await asyncio.sleep(0)
    assert b"".join(wire.writes) == HEAD + HEAD + b"{}"


async def test_100_continue_is_not_held() -> None:
    wire, transport = await wrapped()
    transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    assert wire.writes == [b"HTTP/1.1 100 Continue\r\n\r\n"]


async def test_the_rest_of_a_transport_is_there() -> None:
    _, transport = await wrapped()
    assert transport.is_closing() is False


async def plain(request: Request) -> Response:
    return Response(b"{}", media_type="application/json")


async def empty(request: Request) -> Response:
    return Response(status_code=204)


async def read(request: Request) -> Response:
    return Response(str(len(await request.body())))


async def in_parts(request: Request) -> Response:
    async def parts() -> AsyncIterator[bytes]:
        for part in (b"HTTP/1.1 ", b"looks like a head\r\n\r\n", b"end"):
            yield part
            await asyncio.sleep(0)

    return StreamingResponse(parts())


@asynccontextmanager
async def connected() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection to a real server with these endpoints."""
    routes = [Route("/", plain), Route("/empty", empty), Route("/parts", in_parts)]
    routes.append(Route("/read", read, methods=["POST"]))
    server = make_server(Starlette(routes=routes))
    listener = bind("127.0.0.1", 0, variable="PORT")
    port = listener.getsockname()[1]
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await eventually(lambda: server.started)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(30):
            yield reader, writer
        writer.close()
        await writer.wait_closed()
    finally:
        server.should_exit = True
        await serving


@pytest.mark.parametrize(
    ("request_line", "code", "body"),
    [
        ("GET /", b"200", b"{}"),
        ("HEAD /", b"200", b""),
        ("GET /empty", b"204", b""),
    ],
)
async def test_every_answer_comes_whole_on_a_kept_connection(
    request_line: str, code: bytes, body: bytes
) -> None:
    async with connected() as (reader, writer):
        for _ in range(3):
            writer.write(f"{request_line} HTTP/1.1\r\nhost: x\r\n\r\n".encode())
            head = await reader.readuntil(b"\r\n\r\n")
            assert head.startswith(b"HTTP/1.1 " + code)
            assert await reader.readexactly(len(body)) == body
        writer.write(b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        last = await reader.read()
        assert last.startswith(b"HTTP/1.1 200")  # no byte of the answers before
        assert last.endswith(b"\r\n\r\n{}")


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with connected() as (reader, writer):
        get = b"GET %b HTTP/1.1\r\nhost: x\r\n\r\n"
        writer.write(get % b"/" + get % b"/empty" + get % b"/nowhere" + get % b"/")
        codes = []
        for _ in range(4):
            head = await reader.readuntil(b"\r\n\r\n")
            codes.append(head[9:12])
            lengths = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length")]
            await reader.readexactly(int(lengths[0].split(b":")[1]) if lengths else 0)
        assert codes == [b"200", b"204", b"404", b"200"]


async def test_a_streamed_body_that_looks_like_heads() -> None:
    async with connected() as (reader, writer):
        writer.write(b"GET /parts HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n")
        answer = await reader.read()
        chunks = b"9\r\nHTTP/1.1 \r\n15\r\nlooks like a head\r\n\r\n\r\n3\r\nend\r\n0\r\n\r\n"
        assert answer.endswith(b"\r\n\r\n" + chunks)


async def test_what_is_not_http_is_told_so_in_json() -> None:
    async with connected() as (reader, writer):
        writer.write(b"This is not HTTP\r\n\r\n")
        answer = await reader.read()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b'\r\n\r\n{"error":"The request is not valid HTTP/1.1' in answer


class TestPatience:
    """Times are short here; docs/api.md has the real ones."""

    @pytest.fixture(autouse=True)
    def impatient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(http_protocol, "HEAD_S", 0.2)
        monkeypatch.setattr(http_protocol, "BODY_S", 0.4)
        monkeypatch.setattr(server_state, "SWEEP_S", 0.02)

    @pytest.mark.parametrize(
        "begun",
        [b"GET / HTTP/1.1\r\nhost: x\r\n", b"POST /read HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\n{"],
        ids=["head", "body"],
    )
    async def test_who_stops_half_way_is_told(self, begun: bytes) -> None:
        async with connected() as (reader, writer):
            writer.write(begun)
            answer = await reader.read()
            assert answer.startswith(b"HTTP/1.1 408 ")
            assert b'\r\n\r\n{"error":"' in answer

    @pytest.mark.parametrize("said", [b"", b"\r\n" * 5], ids=["nothing", "empty lines"])
    async def test_who_asks_for_nothing_is_closed(self, said: bytes) -> None:
        async with connected() as (reader, writer):
            writer.write(said)
            assert await reader.read() == b""

    async def test_a_body_that_goes_on_slowly_is_refused_and_one_that_goes_on_is_not(self) -> None:
        head = b"POST /read HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n\r\n"
        async with connected() as (slow, slow_writer), connected() as (steady, steady_writer):
            for writer in (slow_writer, steady_writer):
                writer.write(head)
            ended = asyncio.create_task(slow.read())
            left = 100_000
            while not ended.done():  # a byte now and then, against a KiB
                slow_writer.write(b"x")
                steady_writer.write(b"x" * 1024)
                left -= 1024
                assert left > 0
                await asyncio.sleep(0.02)
            assert ended.result().startswith(b"HTTP/1.1 408 ")
            steady_writer.write(b"x" * left)
            assert (await steady.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 200 ")

    async def test_a_connection_between_two_requests_may_be_idle_for_longer(self) -> None:
        async with connected() as (idle, idle_writer), connected() as (slow, slow_writer):
            for _ in range(2):
                idle_writer.write(b"GET / HTTP/1.1\r\nhost: x\r\n\r\n")
                assert (await idle.readuntil(b"{}")).startswith(b"HTTP/1.1 200 ")
                if not slow.at_eof():
                    slow_writer.write(b"GET / ")
                    assert (await slow.read()).startswith(b"HTTP/1.1 408 ")
