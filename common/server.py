"""uvicorn, the way both services run it: JSON errors for requests it cannot parse, signals left to the service."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, cast

import orjson
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Response
from websockets.server import ServerProtocol

from common.errors import StartFault

WS_MAX_BYTES = 4096  # a subscriber has nothing to say


class _WholeAnswers:
    """A transport that holds an answer's head until its body comes, a moment later in the same turn of the loop:
    one segment and one system call instead of two, which is a tenth of the CPU of a prediction."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._head = b""

    def write(self, data: bytes) -> None:
        if self._head:
            data, self._head = self._head + data, b""
        elif data.endswith(b"\r\n\r\n") and data.startswith(b"HTTP/1.1 ") and data[9:12] != b"100":
            self._head = data
            self._loop.call_soon(self._flush)  # an answer to HEAD has no body
            return
        self._transport.write(data)

    def _flush(self) -> None:
        if self._head:
            data, self._head = self._head, b""
            self._transport.write(data)

    def close(self) -> None:
        self._flush()
        self._transport.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class JsonHttpProtocol(HttpToolsProtocol):
    """uvicorn answers what is not HTTP in plain text; the contract wants JSON everywhere."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(cast(asyncio.Transport, _WholeAnswers(transport, self.loop)))

    def send_400_response(self, msg: str) -> None:
        body = b'{"error":"The request is not valid HTTP/1.1: check its request line and headers."}'
        head = (
            b"HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
            b"content-length: " + str(len(body)).encode() + b"\r\n\r\n"
        )
        if not self.transport.is_closing():
            self.transport.write(head + body)
            self.transport.close()


class _JsonHandshake(ServerProtocol):
    """websockets refuses a handshake in plain text."""

    def reject(self, status: int, text: str) -> Response:
        if status == HTTPStatus.FORBIDDEN and not text:  # our apps accept whatever has a route
            status, text = HTTPStatus.NOT_FOUND, "There is nothing at this path"
        sentence = text.partition("\n")[0].rstrip(".") + "."
        response = super().reject(status, orjson.dumps({"error": sentence}).decode())
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "application/json"
        return response


class JsonWebSocketProtocol(WebSocketsSansIOProtocol):
    """uvicorn's, with refusals in JSON, and one for requests that websockets cannot parse: uvicorn leaves those open."""

    def __init__(self, config: uvicorn.Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        self.conn = _JsonHandshake(max_size=config.ws_max_size, logger=self.logger)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.handshake_exc and not self.handshake_initiated and not self.transport.is_closing():
            refusal = b"".join(self.conn.data_to_send())
            if not refusal:
                text = "Failed to open a WebSocket connection: send a GET without a body"
                refusal = self.conn.reject(HTTPStatus.BAD_REQUEST, text).serialize()
            self.transport.write(refusal)
            self.transport.close()


class Server(uvicorn.Server):
    """A uvicorn server that is told to stop, instead of catching signals itself."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: ASGIApp, *, drain_s: float) -> Server:
    return Server(
        uvicorn.Config(
            app,
            http=JsonHttpProtocol,
            ws=JsonWebSocketProtocol,
            loop="uvloop",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            ws_max_size=WS_MAX_BYTES,
            ws_ping_interval=20.0,
            ws_ping_timeout=20.0,
            ws_per_message_deflate=False,  # 64 KiB of buffers per socket for frames that are mostly small
            timeout_graceful_shutdown=max(1, int(drain_s)),
        )
    )


def bind(host: str, port: int, *, variable: str) -> socket.socket:
    """A listening socket, or a StartFault that names the setting to change."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise StartFault(f"{variable} {port} on {host} cannot be used: {error.strerror}.") from None
    listener.set_inheritable(False)
    return listener
