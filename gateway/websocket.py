"""`/ws/predict/{id}`: the state now, then one frame per change, then close 1000.

A frame is text, one JSON object. The client has nothing to say: what it sends is ignored up to MAX_MESSAGES
(then 1008); a message above `common.server.WS_MAX_BYTES` is refused by the protocol (1009).
"""

import asyncio
from collections.abc import Callable

import orjson
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect

from common import keys
from common.errors import StoreUnavailable
from common.job_store import JobState
from gateway.answers import prediction_body
from gateway.errors import NOT_FOUND
from gateway.gateway import Gateway
from gateway.relay import Ending

MAX_MESSAGES = 64
SEND_TIMEOUT_S = 20.0  # for a client that does not read, before keep-alive gives it up
NEWS_LIMIT = 8  # unsent changes kept for a slow client; older ones are dropped, the final one never

NORMAL, POLICY, RESTART, TRY_AGAIN, UNKNOWN = 1000, 1008, 1012, 1013, 4404


class PredictionSocket:
    """One subscriber."""

    route = "/ws/predict/{prediction_id}"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        socket = WebSocket(scope, receive, send)
        await socket.accept()
        try:
            code = await self._serve(socket)
            if code is not None:
                await socket.close(code)
        except (WebSocketDisconnect, TimeoutError):
            pass

    async def _serve(self, socket: WebSocket) -> int | None:
        """The close code, or None if the client is gone."""
        prediction_id = keys.parse_id(socket.path_params["prediction_id"])
        if prediction_id is None:
            return await _say(socket, NOT_FOUND, UNKNOWN)
        news: asyncio.Queue[JobState | Ending | int] = asyncio.Queue()

        def tell(item: JobState | Ending | int) -> None:
            if news.qsize() >= NEWS_LIMIT:
                news.get_nowait()
            news.put_nowait(item)

        waiting = self._gateway.relay.add(prediction_id, tell, changes=True)
        listener = asyncio.create_task(_listen(socket, tell), name="subscriber speaks")
        try:
            self._gateway.check_started()
            state = await self._gateway.store.watch(prediction_id, changes=True)
            if state is None:
                return await _say(socket, NOT_FOUND, UNKNOWN)
            waiting.known = True
            return await self._follow(socket, prediction_id, state, news)
        except StoreUnavailable:
            return await _say(socket, "The job store is not available: connect again in a moment.", TRY_AGAIN)
        finally:
            listener.cancel()
            self._gateway.relay.remove(prediction_id, tell)

    async def _follow(
        self,
        socket: WebSocket,
        prediction_id: str,
        state: JobState,
        news: "asyncio.Queue[JobState | Ending | int]",
    ) -> int | None:
        await _send(socket, prediction_body(prediction_id, state, with_status=True))
        while not state.final:
            item = await news.get()
            if item is Ending.LOST:
                return await _say(socket, NOT_FOUND, UNKNOWN)
            if item is Ending.STOPPING:
                return RESTART
            if isinstance(item, int):  # a close code from the listener; 0: the client is gone
                return item or None
            assert isinstance(item, JobState)
            if item.status is state.status:
                continue
            state = JobState(item.status, state.input, item.fault, item.payload)
            await _send(socket, prediction_body(prediction_id, state, with_status=True))
        return NORMAL


async def _listen(socket: WebSocket, tell: Callable[[int], None]) -> None:
    """Tells 0 when the client is gone, and POLICY when it talks too much."""
    for _ in range(MAX_MESSAGES):
        if (await socket.receive())["type"] == "websocket.disconnect":
            return tell(0)
    tell(POLICY)


async def _send(socket: WebSocket, frame: bytes) -> None:
    async with asyncio.timeout(SEND_TIMEOUT_S):
        await socket.send_text(frame.decode())


async def _say(socket: WebSocket, sentence: str, code: int) -> int:
    await _send(socket, orjson.dumps({"error": sentence}))
    return code
