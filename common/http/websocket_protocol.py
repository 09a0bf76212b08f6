"""WebSockets as the gateway speaks them: uvicorn's protocol with repairs, limits and refusals in JSON.

It owns what happens on one connection after its upgrade. It must never keep memory for a client that does not read or
does not come to an end, and never let a client fill the log.
"""

import asyncio
import socket
from collections.abc import Callable, Iterable
from http import HTTPStatus
from typing import Any

import orjson
import uvicorn
from uvicorn.protocols.utils import ClientDisconnected
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.exceptions import InvalidState
from websockets.frames import CloseCode, Frame
from websockets.http11 import Request, Response
from websockets.server import ServerProtocol

from common.http.server_state import SharedServerState

WS_MAX_BYTES = 4096  # a subscriber has nothing to say
WS_FRAGMENTS = 64  # of one message; empty ones are not limited by its size
WS_SEND_BUFFER = 1 << 17  # bytes in the kernel, per subscriber


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
    """uvicorn's protocol with repairs.

    Refusals are JSON, and there is one for requests that websockets cannot parse: uvicorn leaves those open. Who sends
    pings without end and reads no pong, or fragments without end, costs no memory; who sends text that is not UTF-8
    costs no line in the log, where uvicorn writes a traceback. Who does not read is cut off.

    The app finds an event in `scope["extensions"]["writable"]`: wait for it before making a frame, as `send` would with
    the frame in hand. And a function in `scope["extensions"]["send_large"]`, for one text message in pieces.
    """

    def __init__(self, config: uvicorn.Config, *args: Any, **kwargs: Any) -> None:
        super().__init__(config, *args, **kwargs)
        state: SharedServerState = kwargs["server_state"]
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
            extensions["send_large"] = self._send_large

    async def _send_large(self, pieces: Iterable[bytes]) -> None:
        """One text message, each piece a fragment: whole, it would be copied five times at once while everybody waits.
        Raises OSError when the client is gone."""
        send: Callable[[bytes, bool], None] = self.conn.send_text
        try:
            for piece in pieces:
                await self.writable.wait()
                send(piece, False)
                send = self.conn.send_continuation
                self.transport.write(b"".join(self.conn.data_to_send()))
            send(b"", True)
            self.transport.write(b"".join(self.conn.data_to_send()))
        except InvalidState:
            raise ClientDisconnected from None

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
