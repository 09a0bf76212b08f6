"""`/predict` and `/predict/{id}`: plain ASGI endpoints, because Request and Response objects cost a fifth of the CPU
of a prediction here. A sync prediction is one call to the store (submit) and one line heard by the relay."""

import asyncio

import orjson
from starlette.types import Receive, Scope, Send

from common import keys
from common.job_store import JobState, Submission
from common.json_text import input_of
from common.states import Fault, Status
from gateway.answers import Headers, accepted_body, answer, prediction_body, status_header, sync_body
from gateway.errors import ALREADY_FINISHED, CODE_OF_FAULT, NOT_FOUND, HttpError
from gateway.gateway import Gateway
from gateway.relay import Ending
from gateway.requests import Wishes, read_body, read_wait, read_wishes

#: Watching for a client that hangs up costs a task; a prediction done within this time does without.
PATIENCE_S = 0.1

CANCELLED_BY_CLIENT = "Prediction cancelled: a client asked for it."
CANCELLED_HUNG_UP = "Prediction cancelled: its client hung up before the result."

RETRY_AFTER = (b"retry-after", b"1")


class Predictions:
    """POST /predict."""

    route = "/predict"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._limit = gateway.settings.max_body_bytes
        self._wait_s = gateway.settings.sync_wait_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._gateway.check_started()
        wishes = read_wishes(scope["headers"])
        input_ = input_of(await read_body(receive, wishes.length, self._limit))
        prediction_id = next(self._gateway.ids)
        raw_id = prediction_id.encode()
        headers: Headers = [(b"location", b"/predict/" + raw_id), (b"prediction-id", raw_id)]
        if wishes.applied:
            headers.append((b"preference-applied", wishes.applied))
        if wishes.wait_s == 0:
            await self._submit(Submission(prediction_id, input_))
            await self._accepted(scope, send, prediction_id, headers)
        else:
            await self._sync(scope, receive, send, prediction_id, input_, wishes, headers)

    async def _submit(self, submission: Submission) -> None:
        if await self._gateway.store.submit(submission) == "full":
            sentence = "The queue is full and nothing was accepted: try again later."
            raise HttpError(429, sentence, headers={"Retry-After": "1"})

    @staticmethod
    async def _accepted(scope: Scope, send: Send, prediction_id: str, headers: Headers) -> None:
        headers.append(status_header(Status.QUEUED))
        await answer(scope, send, 202, accepted_body(prediction_id), headers)

    async def _sync(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        prediction_id: str,
        input_: bytes,
        wishes: Wishes,
        headers: Headers,
    ) -> None:
        with FinalState(self._gateway, prediction_id) as final:
            await self._submit(Submission(prediction_id, input_, watch=True))
            final.known()
            wait_s = self._wait_s if wishes.wait_s is None else min(wishes.wait_s, self._wait_s)
            state: JobState | Ending | bool | None = await final.wait(min(wait_s, PATIENCE_S))
            if state is None and wait_s > PATIENCE_S:
                state = await final.wait_while_connected(receive, wait_s - PATIENCE_S)
        if isinstance(state, JobState):
            await _answer_final(scope, send, prediction_id, input_, state, headers)
        elif state is None and wishes.then_202:
            await self._accepted(scope, send, prediction_id, headers)
        elif state is None:
            sentence = f"No result within {self._wait_s:g} s: read it at /predict/{prediction_id}."
            raise _sync_error(504, sentence, prediction_id, headers)
        elif state is Ending.STOPPING:
            sentence = f"This gateway is stopping: read the result at /predict/{prediction_id}."
            raise _sync_error(503, sentence, prediction_id, headers)
        elif state is Ending.LOST:
            sentence = "The prediction was lost with the job store's data: send it again."
            raise HttpError(503, sentence, prediction_id=prediction_id, headers={"Retry-After": "1"})
        elif not self._gateway.relay.waits_for(prediction_id):  # the client is gone, and nobody else wants it
            await self._gateway.store.cancel(prediction_id, CANCELLED_HUNG_UP, only_mine=True)


async def _answer_final(
    scope: Scope, send: Send, prediction_id: str, input_: bytes, state: JobState, headers: Headers
) -> None:
    timing = b"queue;dur=%.3f, predict;dur=%.3f" % (state.queue_us / 1000, state.predict_us / 1000)
    headers += [status_header(state.status), (b"server-timing", timing)]
    if state.status is Status.SUCCEEDED:
        await answer(scope, send, 200, sync_body(input_, state.payload), headers)
    else:
        raise _sync_error(_code(state), orjson.loads(state.payload), prediction_id, headers)


def _code(state: JobState) -> int:
    return CODE_OF_FAULT[Fault(state.fault)]


def _sync_error(code: int, sentence: str, prediction_id: str, headers: Headers) -> HttpError:
    more = {name.decode(): value.decode() for name, value in headers}
    if code == 503:
        more["Retry-After"] = "1"
    return HttpError(code, sentence, prediction_id=prediction_id, headers=more)


class FinalState:
    """Waits for the final state of one prediction, from inside a `with` block that has the relay listen."""

    def __init__(self, gateway: Gateway, prediction_id: str) -> None:
        self._gateway = gateway
        self._id = prediction_id
        self._news: JobState | Ending | None = None
        self._wake_up: asyncio.Future[None] | None = None

    def __enter__(self) -> "FinalState":
        self._waiting = self._gateway.relay.add(self._id, self._tell)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._gateway.relay.remove(self._id, self._tell)

    def known(self) -> None:
        """The store has the prediction: from now on it may be looked up, and be found lost."""
        self._waiting.known = True

    def _tell(self, news: JobState | Ending) -> None:
        if self._news is None and (isinstance(news, Ending) or news.final):
            self._news = news
            self._wake()

    def _wake(self) -> None:
        if self._wake_up is not None and not self._wake_up.done():
            self._wake_up.set_result(None)

    async def wait(self, seconds: float) -> JobState | Ending | None:
        """The final state, or None when the time is up."""
        if self._news is None:
            loop = asyncio.get_running_loop()
            self._wake_up = loop.create_future()
            timer = loop.call_later(seconds, self._wake)
            try:
                await self._wake_up
            finally:
                timer.cancel()
        return self._news

    async def wait_while_connected(self, receive: Receive, seconds: float) -> JobState | Ending | bool | None:
        """Like `wait`; False if the client hangs up first."""
        hung_up = asyncio.create_task(_disconnect(receive), name="client hangs up")
        waiting = asyncio.create_task(self.wait(seconds), name="final state")
        try:
            await asyncio.wait({hung_up, waiting}, return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting.done() else False
        finally:
            hung_up.cancel()
            waiting.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class Prediction:
    """GET and DELETE /predict/{id}."""

    route = "/predict/{prediction_id}"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._gateway.check_started()
        prediction_id = keys.parse_id(scope["path_params"]["prediction_id"])
        if prediction_id is None:
            raise HttpError(404, NOT_FOUND)
        if scope["method"] == "DELETE":
            await self._cancel(prediction_id)
        state = await self._look(prediction_id, receive, read_wait(scope))
        if state is None:
            raise HttpError(404, NOT_FOUND)
        headers = [status_header(state.status)]
        if not state.final:
            headers.append(RETRY_AFTER)
        code = 200 if state.final else 202
        await answer(scope, send, code, prediction_body(prediction_id, state), headers)

    async def _cancel(self, prediction_id: str) -> None:
        reply = await self._gateway.store.cancel(prediction_id, CANCELLED_BY_CLIENT)
        if reply == "finished":
            raise HttpError(409, ALREADY_FINISHED)

    async def _look(self, prediction_id: str, receive: Receive, wait_s: float) -> JobState | None:
        if wait_s == 0:
            return await self._gateway.store.read(prediction_id)
        with FinalState(self._gateway, prediction_id) as final:
            state = await self._gateway.store.watch(prediction_id)
            if state is None or state.final:
                return state
            final.known()
            await final.wait_while_connected(receive, wait_s)
        # announcements carry no input, and a prediction that is not final may have started meanwhile
        return await self._gateway.store.read(prediction_id)
