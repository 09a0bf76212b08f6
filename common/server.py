"""uvicorn, the way both services run it: JSON errors for requests it cannot parse, signals left to the service."""

import asyncio
import contextlib
import socket
from collections.abc import Iterator
from http import HTTPStatus
from typing import Any, cast

import httptools
import orjson
import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.http11 import Response
from websockets.server import ServerProtocol

from common.errors import StartFault

WS_MAX_BYTES = 4096  # a subscriber has nothing to say
MAX_HEAD_BYTES = 1 << 16  # request line and headers, give or take one read


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
    """uvicorn's protocol with three repairs: what is not HTTP is answered in JSON, a head without end is refused
    (uvicorn keeps it all in memory), and an upgrade that is not on offer is ignored, as RFC 9110 has it (httptools
    drops the body of such a request; Java's HttpClient offers h2c with every one)."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._head_bytes = 0
        super().connection_made(cast(asyncio.Transport, _WholeAnswers(transport, self.loop)))

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        scope = self.scope
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                self._without_upgrade(rest=data[upgrade.args[0] :])
        except httptools.HttpParserError:
            self.logger.warning("Invalid HTTP request received.")
            self._refuse(400, "The request is not valid HTTP/1.1: check its request line and headers.")
        else:
            in_head = self.scope is not None and (self.cycle is None or self.cycle.scope is not self.scope)
            self._head_bytes = self._head_bytes + len(data) if in_head and self.scope is scope else 0
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, f"The headers are larger than {MAX_HEAD_BYTES} bytes: send less.")

    def on_headers_complete(self) -> None:
        if not self._unwanted_upgrade():
            super().on_headers_complete()

    def on_message_complete(self) -> None:
        if not self._unwanted_upgrade():
            super().on_message_complete()

    def _unwanted_upgrade(self) -> bool:
        return bool(self.parser.should_upgrade()) and not self._should_upgrade()

    def _without_upgrade(self, *, rest: bytes) -> None:
        """Start this request again on a new parser, with the upgrade taken out."""
        method, version = self.parser.get_method(), self.parser.get_http_version().encode()
        if method == b"CONNECT":
            return self._refuse(400, "This is not a proxy: send POST /predict.")
        head = [b"%b %b HTTP/%b\r\n" % (method, self.url, version)]
        head += [b"%b: %b\r\n" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.parser.set_dangerous_leniencies(lenient_data_after_close=True)
        self.data_received(b"".join(head) + b"\r\n" + rest)

    def _refuse(self, code: int, sentence: str) -> None:
        body = orjson.dumps({"error": sentence})
        head = (
            f"HTTP/1.1 {code} {HTTPStatus(code).phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
            f"content-length: {len(body)}\r\n\r\n"
        )
        if not self.transport.is_closing():
            self.transport.write(head.encode() + body)
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
