"""Who is still sending when the answer has gone out gets it whole, and may not send for ever."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from common.http import lingering
from common.http.listener import bind
from common.http.server import Server, make_server
from tests.conftest import eventually

LENGTH = 1 << 20
HEAD = f"POST / HTTP/1.1\r\nhost: x\r\ncontent-length: {LENGTH}\r\n\r\n".encode()


async def refuse(request: Request) -> Response:
    """Without a look at the body."""
    return Response("too large", 413, headers={"connection": "close"})


@asynccontextmanager
async def refused() -> AsyncIterator[tuple[Server, asyncio.StreamReader, asyncio.StreamWriter]]:
    """A client that has sent a head, and whose answer is there, not read."""
    server = make_server(Starlette(routes=[Route("/", refuse, methods=["POST"])]))
    listener = bind("127.0.0.1", 0, variable="PORT")
    port = listener.getsockname()[1]
    serving = asyncio.create_task(server.serve(sockets=[listener]))
    try:
        await eventually(lambda: server.started)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        async with asyncio.timeout(30):
            writer.write(HEAD)
            assert (await reader.readexactly(12)) == b"HTTP/1.1 413"
            yield server, reader, writer
        writer.close()
    finally:
        server.should_exit = True
        await serving


async def test_the_rest_of_a_body_may_be_sent_after_the_answer() -> None:
    async with refused() as (server, reader, writer):
        for _ in range(LENGTH >> 14):
            writer.write(b"x" * (1 << 14))
            await writer.drain()
        assert (await reader.read()).endswith(b"\r\n\r\ntoo large")
        assert server.server_state.connections
        writer.write_eof()
        await eventually(lambda: not server.server_state.connections)


@pytest.mark.parametrize("silent", [True, False])
async def test_who_never_ends_is_cut_off(monkeypatch: pytest.MonkeyPatch, silent: bool) -> None:
    monkeypatch.setattr(lingering, "LINGER_S", 0.1)
    async with refused() as (server, reader, writer):
        assert (await reader.read()).endswith(b"\r\n\r\ntoo large")
        while server.server_state.connections:
            if not silent and not writer.is_closing():
                writer.write(b"x")
            await asyncio.sleep(0.01)
