"""HTTP/1.1 as both services speak it: uvicorn's protocol with repairs, limits and JSON errors.

It owns what happens on one connection, up to the app and back. It must never let a client hold a connection, or memory
beyond the limits here, by being slow or by sending what is not HTTP; and never refuse in anything but JSON.
"""

import asyncio
from http import HTTPStatus
from typing import Any, cast

import httptools
import orjson
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from common.http.lingering import LingeringClose
from common.http.server_state import SharedServerState, TimedConnection

MAX_HEAD_BYTES = 1 << 16  # request line and headers, give or take one read
MAX_URL_BYTES = 1 << 13
MAX_HEADERS = 100
HEAD_S = 10.0  # for a head to be complete, from its first byte or the connection's beginning
BODY_S = 30.0  # for a body, and one second more for each
MIN_BYTES_PER_S = 1024


class CoalescedWrites:
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


class JsonHttpProtocol(HttpToolsProtocol, TimedConnection):
    """uvicorn's protocol with repairs.

    What is not HTTP is answered in JSON. A head without end is refused: uvicorn keeps it all in memory. An upgrade that
    is not on offer is ignored, as RFC 9110 has it: httptools drops the body of such a request, and Java's HttpClient
    offers h2c with every one. Who does not read is cut off, and so is who does not send: a head or a body that does not
    come on is a 408.

    httptools itself refuses doubled lengths, folded headers, bare line feeds and whatever else two parsers may read
    differently.
    """

    server_state: SharedServerState

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self._head_bytes = 0
        self._received = 0
        self._fault: tuple[int, str] | None = None  # why a callback of the parser gave up
        self._final_response: bytes | None = None  # a refusal that waits for the answers before it
        # what `check_progress` saw the client owe, since when, and how much had come
        self._waits_for: object = None
        self._since = self.loop.time()
        self._received_before = 0
        lingering = cast(asyncio.Transport, LingeringClose(transport, self.loop, self._in_body))
        super().connection_made(cast(asyncio.Transport, CoalescedWrites(lingering, self.loop)))
        if len(self.connections) > self.server_state.max_connections:
            self._refuse(503, "This gateway has too many connections: try again later.", retry_after_s=1)
        self.server_state.sweep_later()

    def data_received(self, data: bytes) -> None:
        if self._final_response is not None or self.transport.is_closing():
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
            self._reject(414, f"The URL is longer than {MAX_URL_BYTES} bytes: send less.")

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
            self._reject(431, f"There are more than {MAX_HEADERS} headers: send less.")
        hosts = 0
        for name, _ in self.headers:
            if name == b"host":
                hosts += 1
            elif name == b"transfer-encoding" and self.parser.get_http_version() == "1.0":
                self._reject(400, "HTTP/1.0 has no Transfer-Encoding: use Content-Length.")
        if hosts > 1 or (hosts == 0 and self.parser.get_http_version() == "1.1"):
            self._reject(400, "The request must have exactly one Host header.")

    def _reject(self, code: int, sentence: str) -> None:
        self._fault = code, sentence
        raise ValueError(sentence)  # httptools makes an HttpParserError of it

    def on_response_complete(self) -> None:
        last = self._final_response is not None and not self.pipeline
        super().on_response_complete()
        if last:
            self._send_final_response()

    def check_progress(self, now: float) -> None:
        """Called by the sweep. End the connection of a client that owes a head or a body for too long.

        A connection is idle and left to uvicorn's timer only while that timer runs: empty lines stop it.
        """
        cycle = self.cycle
        in_body = cycle is not None and cycle.scope is self.scope
        if self.flow.read_paused or self.timeout_keep_alive_task or self._final_response is not None:
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
        self._final_response = head.encode() + body
        cycle = self.cycle
        own = self._in_body()
        if own and self.pipeline:
            self.pipeline.popleft()  # it has not begun; what is before it has
        elif own or cycle is None or cycle.response_complete:
            self._send_final_response()

    def _in_body(self) -> bool:
        """Whether the last request has an app, and is not complete."""
        return self.cycle is not None and self.cycle.scope is self.scope and self.cycle.more_body

    def _send_final_response(self) -> None:
        if self._final_response and not self.transport.is_closing():
            if not (self._in_body() and self.cycle.response_started):
                self.transport.write(self._final_response)
            self.transport.close()
