"""`/ws/predict/{id}`: the state now, then one frame per change, then close 1000.

A frame is text, one JSON object. The client has nothing to say: what it sends is ignored up to MAX_MESSAGES
(then 1008); a message above `common.http.websocket_protocol.WS_MAX_BYTES` is refused by the protocol (1009).

Ten thousand of them are idle most of the time, so an idle one is one task, which waits for the client to leave; the
task that sends lives only while there is something to send. Clients that do not read are `common.http.slow_readers`' work.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress

import orjson
from starlette.types import Receive, Scope, Send

from common.errors import StoreError
from common.store import keys
from common.store.jobs import Jobs
from common.store.states import JobState, Status
from gateway.answers import NO_INPUT, PIECE_BYTES, in_pieces, prediction_body
from gateway.errors import NOT_FOUND, HttpError
from gateway.gateway import Gateway
from gateway.metrics import WEBSOCKETS
from gateway.relay import Notice, Waiters
from gateway.requests import read_with_input
from gateway.security import SUBPROTOCOL

MAX_MESSAGES = 64
SMALL = 4096  # bytes; of an idle or a slow subscriber no larger input or result is kept: it is read again when sent
LARGE_FRAMES = 16  # made at the same time
LARGE_S = 0.2  # so long one of them is waited for before the next is made
UPDATES_LIMIT = 8  # unsent changes kept for a slow client; older ones are dropped, the final one never

STORE_AWAY = "The job store is not available: connect again in a moment."
NORMAL, POLICY, RESTART, TRY_AGAIN, UNKNOWN = 1000, 1008, 1012, 1013, 4404

LOOK = None
#: A state, an ending, a code to close with, or LOOK: there is something too large to be kept until it is sent.
Update = JobState | Notice | int | None


class PredictionSocket:
    """The endpoint."""

    route = "/ws/predict/{prediction_id}"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._large = asyncio.Semaphore(LARGE_FRAMES)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        prediction_id = keys.parse_id(scope["path_params"]["prediction_id"])
        with suppress(OSError), WEBSOCKETS.track_inprogress():  # OSError: the client is gone
            await receive()  # that it connects
            offered = SUBPROTOCOL in scope["subprotocols"]
            await send({"type": "websocket.accept", "subprotocol": SUBPROTOCOL if offered else None})
            if prediction_id is None:
                return await _say(send, NOT_FOUND, UNKNOWN)
            try:
                await self._serve(prediction_id, scope, receive, send)
            except HttpError as error:  # by frame: a browser shows no page the body of a refused handshake
                await _say(send, error.sentence, POLICY)
            except StoreError:
                await _say(send, STORE_AWAY, TRY_AGAIN)

    async def _serve(self, prediction_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        jobs = self._gateway.jobs
        subscriber = Subscriber(prediction_id, jobs, self._large, scope, send)
        waiting = self._gateway.relay.add(prediction_id, subscriber.notify, changes=True)
        try:
            with self._gateway.on_drain(subscriber.notify):
                self._gateway.check_started()
                subscriber.begin(await _known(waiting, jobs.watch(prediction_id, changes=True)))
                await _until_gone(receive, subscriber)
        finally:
            subscriber.end()
            self._gateway.relay.remove(prediction_id, subscriber.notify)


async def _known(waiting: Waiters, watched: Awaitable[JobState | None]) -> JobState | None:
    """The state now. In a function of its own, so that an idle subscriber does not keep it."""
    state = await watched
    waiting.known = waiting.known or state is not None
    return state


async def _until_gone(receive: Receive, subscriber: "Subscriber") -> None:
    """Until either side has closed. A client that talks too much is closed."""
    said = 0
    while (await receive())["type"] != "websocket.disconnect":
        said += 1
        if said == MAX_MESSAGES:
            subscriber.notify(POLICY)


class Subscriber:
    """What one client has been sent, and what it will be. Frames are sent from `begin` on; updates that come before it wait."""

    __slots__ = (
        "_id",
        "_input",
        "_jobs",
        "_large",
        "_send",
        "_send_large",
        "_sending",
        "_status",
        "_updates",
        "_with_input",
        "_writable",
    )

    def __init__(
        self, prediction_id: str, jobs: Jobs, large: asyncio.Semaphore, scope: Scope, send: Send
    ) -> None:
        """Raises HttpError 400 for its query."""
        self._id = prediction_id
        self._jobs = jobs
        self._large = large
        self._writable: asyncio.Event = scope["extensions"]["writable"]
        self._with_input = read_with_input(scope)
        self._send = send
        self._send_large: Callable[[Iterator[bytes]], Awaitable[None]] = scope["extensions"]["send_large"]
        self._updates: list[Update] = []
        self._sending: asyncio.Task[None] | None = None
        self._status: Status | None = None
        self._input: bytes | None = None

    def begin(self, state: JobState | None) -> None:
        """`state` is its first frame; None: there is no such prediction."""
        self._updates.insert(0, self._wanted(state) if state else Notice.LOST)
        self._sending = asyncio.create_task(self._send_updates(), name="subscriber sends")

    def notify(self, item: "Update") -> None:
        if len(self._updates) == UPDATES_LIMIT:
            del self._updates[0]
        if isinstance(item, JobState):
            item = self._wanted(item)
        if isinstance(item, JobState) and len(item.payload) + len(item.input or b"") > SMALL:
            item = LOOK
        self._updates.append(item)
        if self._status and not self._sending:
            self._sending = asyncio.create_task(self._send_updates(), name="subscriber sends")

    def _wanted(self, state: JobState) -> JobState:
        return state if self._with_input else state._replace(input=NO_INPUT)

    def end(self) -> None:
        """Nothing more will be sent."""
        if self._sending:
            self._sending.cancel()

    async def _send_updates(self) -> None:
        with suppress(OSError):  # the client is gone: the endpoint hears it too
            try:
                while self._updates:
                    await self._writable.wait()
                    code = await self._send_one(self._updates.pop(0))
                    if code is not None:
                        return await _close(self._send, code)  # and `_sending` stays: nothing may follow
            except StoreError:
                return await _say(self._send, STORE_AWAY, TRY_AGAIN)
            self._sending = None

    async def _send_one(self, item: "Update") -> int | None:
        """The code to close with after it; None: more may come."""
        if isinstance(item, int):
            return item
        if item is Notice.STOPPING:
            return RESTART
        if isinstance(item, JobState) and item.status is self._status:
            return None
        if isinstance(item, JobState) and item.input is not None:
            if len(item.input) <= SMALL:
                self._input = item.input
            return await self._show(item)
        if isinstance(item, JobState) and self._input is not None:  # announcements carry no input
            return await self._show(JobState(item.status, self._input, item.fault, item.payload))
        async with self._large:
            state = None if item is Notice.LOST else await self._jobs.read(self._id)
            if state is None:
                await _send_text(self._send, orjson.dumps({"error": NOT_FOUND}))
                return UNKNOWN
            if state.status is self._status:
                return None
            code = await self._show(self._wanted(state))
            with suppress(TimeoutError):
                async with asyncio.timeout(LARGE_S):
                    await self._writable.wait()
            return code

    async def _show(self, state: JobState) -> int | None:
        self._status = state.status
        body = prediction_body(self._id, state, with_status=True)
        if sum(map(len, body)) > PIECE_BYTES:
            await self._send_large(in_pieces(body))
        else:
            await _send_text(self._send, b"".join(body))
        return NORMAL if state.final else None


async def _send_text(send: Send, frame: bytes) -> None:
    await send({"type": "websocket.send", "text": frame.decode()})


async def _close(send: Send, code: int) -> None:
    await send({"type": "websocket.close", "code": code})


async def _say(send: Send, sentence: str, code: int) -> None:
    await _send_text(send, orjson.dumps({"error": sentence}))
    await _close(send, code)
