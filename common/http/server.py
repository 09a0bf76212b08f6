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
from uvicorn.server import ServerState
from websockets.frames import CloseCode, Frame
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from common.errors import StartFault
from common.http.slow_readers import SlowReaders

WS_MAX_BYTES = 4096  # a subscriber has nothing to say
WS_FRAGMENTS = 64  # of one message; empty ones are not limited by its size
WS_SEND_BUFFER = 1 << 17  # bytes in the kernel, per subscriber
MAX_HEAD_BYTES = 1 << 16  # request line and headers, give or take one read
MAX_URL_BYTES = 1 << 13
MAX_HEADERS = 100
PROBE_CONNECTIONS = 1_000  # where nobody says otherwise
# Balancers keep idle connections for about 60 s. The side that closes first must be theirs: a request that is on its
# way when we close is lost, and becomes a 502.
KEEP_ALIVE_S = 75
HEAD_S = 10.0  # for a head to be complete, from its first byte or the connection's beginning
BODY_S = 30.0  # for a body, and one second more for each
MIN_BYTES_PER_S = 1024
SWEEP_S = 1.0


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


class _State(ServerState):
    def __init__(self, max_connections: int) -> None:
        super().__init__()
        self.draining = False
        self.slow_readers = SlowReaders()
        self.max_connections = max_connections
        self._sweeping = False

    def sweep_later(self) -> None:
        """One timer for all connections: none of them pays for its deadlines with each request."""
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in tuple(self.connections):
            if isinstance(connection, JsonHttpProtocol):
                connection.check_progress(now)
        self._sweeping = False
        if self.connections:
            self.sweep_later()


class JsonHttpProtocol(HttpToolsProtocol):
    """uvicorn's protocol with repairs: what is not HTTP is answered in JSON, a head without end is refused
    (uvicorn keeps it all in memory), an upgrade that is not on offer is ignored, as RFC 9110 has it (httptools
    drops the body of such a request; Java's HttpClient offers h2c with every one), who does not read is cut off,
    and so is who does not send: a head or a body that does not come on is a 408. httptools itself refuses
    doubled lengths, folded headers, bare line feeds and whatever else two parsers may read differently."""

    server_state: _State

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._head_bytes = 0
        self._received = 0
        self._fault: tuple[int, str] | None = None  # why a callback of the parser gave up
        self._last_words: bytes | None = None  # a refusal that waits for the answers before it
        self._waits_for: object = (
            None  # what `check_progress` saw the client owe, since when, and how much had come
        )
        self._since = self.loop.time()
        self._received_before = 0
        super().connection_made(cast(asyncio.Transport, _WholeAnswers(transport, self.loop)))
        if len(self.connections) > self.server_state.max_connections:
            self._refuse(503, "This gateway has too many connections: try again later.", retry_after_s=1)
        self.server_state.sweep_later()

    def data_received(self, data: bytes) -> None:
        if self._last_words is not None or self.transport.is_closing():
            return
        self._unset_keepalive_if_required()
        self._received += len(data)
        scope = self.scope
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.handle_websocket_upgrade()
            else:
                self._without_upgrade(rest=data[upgrade.args[0] :])
        except httptools.HttpParserError:
            sentence = "The request is not valid HTTP/1.1: check its request line and headers."
            self._refuse(*(self._fault or (400, sentence)))
        else:
            in_head = self.scope is not None and (self.cycle is None or self.cycle.scope is not self.scope)
            self._head_bytes = self._head_bytes + len(data) if in_head and self.scope is scope else 0
            if self._head_bytes > MAX_HEAD_BYTES:
                self._refuse(431, f"The headers are larger than {MAX_HEAD_BYTES} bytes: send less.")

    def on_url(self, url: bytes) -> None:
        super().on_url(url)
        if len(self.url) > MAX_URL_BYTES:
            self._give_up(414, f"The URL is longer than {MAX_URL_BYTES} bytes: send less.")

    def on_headers_complete(self) -> None:
        self._check_head()
        if self._unwanted_upgrade():
            return
        super().on_headers_complete()
        if self.cycle is not None and self.server_state.draining:
            self.cycle.keep_alive = False

    def on_message_complete(self) -> None:
        if not self._unwanted_upgrade():
            super().on_message_complete()

    def _check_head(self) -> None:
        """What RFC 9112 has refused and httptools lets pass."""
        if len(self.headers) > MAX_HEADERS:
            self._give_up(431, f"There are more than {MAX_HEADERS} headers: send less.")
        hosts = 0
        for name, _ in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding" and self.parser.get_http_version() == "1.0":
                self._give_up(400, "HTTP/1.0 has no Transfer-Encoding: use Content-Length.")
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            self._give_up(400, "The request must have exactly one Host header.")

    def _give_up(self, code: int, sentence: str) -> None:
        self._fault = code, sentence
        raise ValueError(sentence)  # httptools makes an HttpParserError of it

    def on_response_complete(self) -> None:
        last = self._last_words is not None and not self.pipeline
        super().on_response_complete()
        if last:
            self._say_last()

    def check_progress(self, now: float) -> None:
        """Called by the sweep. End the connection of a client that owes a head or a body for too long.

        A connection is idle and left to uvicorn's timer only while that timer runs: empty lines stop it.
        """
        cycle = self.cycle
        in_body = cycle is not None and cycle.scope is self.scope
        if self.flow.read_paused or self.timeout_keep_alive_task or self._last_words is not None:
            owed: object = None
        elif in_body and not cycle.response_complete:
            owed = cycle if cycle.more_body else None
        else:
            owed = self.scope or self
        if owed is not self._waits_for:
            self._waits_for, self._since, self._received_before = owed, now, self._received
        if owed is None:
            return
        patience_s = HEAD_S
        if owed is cycle:
            patience_s = BODY_S + (self._received - self._received_before) / MIN_BYTES_PER_S
        if now - self._since <= patience_s:
            return
        if self.scope is None or (in_body and (cycle.response_complete or cycle.response_started)):
            self.transport.close()  # it asked for nothing, or has its answer
        else:
            self._refuse(408, "The request did not come to its end in time: send it again, faster.")

    def pause_writing(self) -> None:
        super().pause_writing()
        self.server_state.slow_readers.watch(self.transport)

    def resume_writing(self) -> None:
        super().resume_writing()
        self.server_state.slow_readers.forget(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self.server_state.slow_readers.forget(self.transport)

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

    def _refuse(self, code: int, sentence: str, *, retry_after_s: int | None = None) -> None:
        """The connection's last answer, after those to earlier requests that are still being worked on."""
        body = orjson.dumps({"error": sentence})
        retry_after = "" if retry_after_s is None else f"retry-after: {retry_after_s}\r\n"
        head = (
            f"HTTP/1.1 {code} {HTTPStatus(code).phrase}\r\ncontent-type: application/json\r\nconnection: close\r\n"
            f"{retry_after}content-length: {len(body)}\r\n\r\n"
        )
        self._last_words = head.encode() + body
        cycle = self.cycle
        own = self._in_body()
        if own and self.pipeline:
            self.pipeline.popleft()  # it has not begun; what is before it has
        elif own or cycle is None or cycle.response_complete:
            self._say_last()

    def _in_body(self) -> bool:
        """Whether the last request has an app, and is not complete."""
        return self.cycle is not None and self.cycle.scope is self.scope and self.cycle.more_body

    def _say_last(self) -> None:
        if self._last_words and not self.transport.is_closing():
            if not (self._in_body() and self.cycle.response_started):
                self.transport.write(self._last_words)
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
    """uvicorn's, with refusals in JSON, and one for requests that websockets cannot parse: uvicorn leaves those open.
    Who sends pings without end and reads no pong, fragments without end, or text that is not UTF-8 (a traceback in the
    log each time) costs no memory and no line. The app finds an event in `scope["extensions"]["writable"]`: wait for it before making a frame, as `send` would
    with the frame in hand. Who does not read is cut off."""

    def __init__(self, config: uvicorn.Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        state: _State = kwargs["server_state"]
        self._slow_readers = state.slow_readers
        self.conn = _JsonHandshake(max_size=config.ws_max_size, logger=self.logger)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        # the kernel would keep megabytes for each of thousands who do not read
        self.transport.get_extra_info("socket").setsockopt(
            socket.SOL_SOCKET, socket.SO_SNDBUF, WS_SEND_BUFFER
        )

    def handle_connect(self, event: Request) -> None:
        super().handle_connect(event)
        if self.response.status_code == HTTPStatus.SWITCHING_PROTOCOLS:
            extensions: dict[str, Any] = self.scope["extensions"]
            extensions["writable"] = self.writable

    def pause_writing(self) -> None:
        super().pause_writing()
        self._slow_readers.watch(self.transport)

    def resume_writing(self) -> None:
        super().resume_writing()
        self._slow_readers.forget(self.transport)

    def handle_ping(self) -> None:
        if self.writable.is_set():
            super().handle_ping()
        else:
            self.conn.data_to_send()  # thrown away: only the last of several pings needs an answer

    def handle_cont(self, event: Frame) -> None:
        if len(self.frames) < WS_FRAGMENTS:
            super().handle_cont(event)
        else:
            self._fail(CloseCode.POLICY_VIOLATION, "too many fragments")

    def send_receive_event_to_app(self) -> None:
        if self.curr_msg_data_type == "text":
            try:
                b"".join(self.frames).decode()
            except UnicodeDecodeError:
                return self._fail(CloseCode.INVALID_DATA, "text that is not UTF-8")
        super().send_receive_event_to_app()

    def _fail(self, code: CloseCode, reason: str) -> None:
        self.frames = []
        if not self.close_sent:
            self.conn.fail(code, reason)
            self.handle_parser_exception()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        super().on_task_complete(task)
        self._slow_readers.watch(self.transport)  # all is said; it need not be much that is unread

    def keepalive_timeout(self) -> None:
        super().keepalive_timeout()
        self._slow_readers.watch(self.transport)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._slow_readers.forget(self.transport)

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

    server_state: _State

    def __init__(self, config: uvicorn.Config, *, max_connections: int) -> None:
        super().__init__(config)
        self.server_state = _State(max_connections)

    def answer_last(self) -> None:
        """From now on every answer is the last of its connection, so that clients move on to another replica."""
        self.server_state.draining = True
        for connection in self.server_state.connections:
            if isinstance(connection, HttpToolsProtocol) and connection.cycle is not None:
                connection.cycle.keep_alive = False

    def stop(self, *, within_s: float) -> None:
        """Close the listener and idle connections; requests under way have so long, then they are cut off."""
        asyncio.get_running_loop().call_later(within_s, self._cut_off)
        self.should_exit = True

    def _cut_off(self) -> None:
        """What uvicorn does instead, cancel the app, is answered with a 500 in plain text."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: ASGIApp, *, max_connections: int = PROBE_CONNECTIONS) -> Server:
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
            timeout_keep_alive=KEEP_ALIVE_S,
            ws_max_size=WS_MAX_BYTES,
            ws_ping_interval=20.0,
            ws_ping_timeout=20.0,
            ws_per_message_deflate=False,  # 64 KiB of buffers per socket for frames that are mostly small
        ),
        max_connections=max_connections,
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
