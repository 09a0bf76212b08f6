"""`/predict` and `/predict/{id}`: plain ASGI endpoints, because Request and Response objects cost a fifth of the CPU
of a prediction here. A sync prediction is one call to the store (submit) and one line heard by the relay."""

import orjson
from starlette.types import Receive, Scope, Send

from common.errors import StoreFull
from common.store import keys
from common.store.jobs import Submission, SubmitReply
from common.store.states import Fault, JobState, Status
from gateway.answers import (
    NO_INPUT,
    Headers,
    accepted_body,
    answer,
    id_headers,
    prediction_body,
    status_header,
    sync_body,
)
from gateway.errors import ALREADY_FINISHED, CODE_OF_FAULT, NOT_FOUND, HttpError, queue_full
from gateway.gateway import Gateway
from gateway.proxies import location
from gateway.relay import Notice
from gateway.requests import (
    RequestOptions,
    read_body,
    read_options,
    read_packed_body,
    read_wait,
    read_with_input,
)
from gateway.waiter import Waiter

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
        self._least_room = min(map(gateway.session.byte_limit, range(gateway.session.partitions)))

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._gateway.admit():
            options = read_options(scope["headers"])
            prediction_id = next(self._gateway.ids)
            if options.key:
                partitions = self._gateway.settings.partitions
                prediction_id = keys.moved(prediction_id, keys.partition_of_key(options.key, partitions))
            await self.take(scope, receive, send, prediction_id, options, protected=bool(options.key))

    async def take(
        self,
        scope: Scope,
        receive: Receive,
        send: Send,
        prediction_id: str,
        options: RequestOptions,
        *,
        protected: bool,
    ) -> None:
        """Submit and answer. `protected`: it may be asked for again, so a client that hangs up does not cancel it."""
        if options.encoding:
            body = await read_packed_body(receive, options.length, self._limit, options.encoding)
        else:
            body = await read_body(receive, options.length, self._limit)
        input_ = await self._gateway.json.input_of(body)
        seen = scope["observation"]
        seen.prediction_id = prediction_id
        watch = options.wait_s != 0
        if len(input_) > self._least_room:
            self._check_size(prediction_id, len(input_))
        digest = "" if self._gateway.settings.keep_input else await self._gateway.json.value_digest(input_)
        request = Submission(
            prediction_id, input_, watch, options.deadline_us, options.key, seen.trace, digest
        )
        state: JobState | Notice | bool | None = None
        with Waiter(self._gateway, prediction_id) as waiter:
            submitted = await self._submit(scope, request)
            if submitted.decision == "queued" and request.watch:
                waiter.known()
                state = await self._wait(waiter, receive, options)
        prediction_id = seen.prediction_id = submitted.id
        if submitted.decision == "known" and request.watch:
            state = await self._join(prediction_id, receive, options)
        where = location(scope, prediction_id)
        headers = id_headers(prediction_id, where)
        if options.applied:
            headers.append((b"preference-applied", options.applied))
        if isinstance(state, JobState):
            await _answer_final(scope, send, prediction_id, input_, state, headers)
        elif state is None and options.then_202:
            now = None
            if submitted.decision == "known" or request.watch:  # it has had the time to start
                now = await self._gateway.jobs.read(prediction_id)
            headers.append(status_header(now.status if now else Status.QUEUED))
            await answer(scope, send, 202, accepted_body(prediction_id), headers)
        elif state is None:
            sentence = f"No result within {self._wait_s:g} s: read it at {where}."
            raise _sync_error(504, sentence, prediction_id, headers)
        elif state is Notice.STOPPING:
            sentence = f"This gateway is stopping: read the result at {where}."
            raise _sync_error(503, sentence, prediction_id, headers)
        elif state is Notice.LOST:
            sentence = "The prediction was lost with the job store's data: send it again."
            raise HttpError(503, sentence, prediction_id=prediction_id, headers={"Retry-After": "1"})
        elif not protected and not self._gateway.relay.waits_for(prediction_id):
            # the client is gone, and nobody else wants it
            await self._gateway.jobs.cancel(prediction_id, CANCELLED_HUNG_UP, only_mine=True)

    def _check_size(self, prediction_id: str, size: int) -> None:
        """Raises HttpError 413 for an input that finds no room even in an empty queue."""
        session = self._gateway.session
        limit = session.byte_limit(session.partition_of(prediction_id))
        if size > limit:
            sentence = (
                f"The input has {size} bytes, and the queue takes {limit} at most (MAX_QUEUE_BYTES): "
                "send a smaller one."
            )
            raise HttpError(413, sentence)

    async def _submit(self, scope: Scope, submission: Submission) -> SubmitReply:
        """Queued or known. Raises HttpError 422, 429, and 503 if it is not as safe as it should be."""
        try:
            submitted = await self._gateway.jobs.submit(submission)
        except StoreFull:
            self._gateway.fitness.refused()
            raise
        if submitted.decision == "full":
            raise queue_full(self._gateway.clock.retry_after_s())
        if submitted.decision == "conflict":
            known = await self._gateway.jobs.read(submitted.id)
            if known is None:  # its time was over in between: the id is free
                return await self._submit(scope, submission)
            if not await self._same_input(known, submission):
                which = "Idempotency-Key" if submission.key else "prediction ID"
                sentence = f"This {which} was used with another input: use a new one."
                raise HttpError(422, sentence, prediction_id=submitted.id)
            submitted = submitted._replace(decision="known")
        if not submitted.durable:
            where = location(scope, submitted.id)
            sentence = (
                "The prediction is queued but not yet as safe as DURABILITY asks: it may still run, "
                f"read it at {where}."
            )
            headers = id_headers(submitted.id, where)
            raise _sync_error(503, sentence, submitted.id, headers)
        return submitted

    async def _same_input(self, known: JobState, submission: Submission) -> bool:
        digest = self._gateway.json.value_digest
        if known.input is None:  # it was dropped at the end
            return known.digest == await digest(submission.input)
        return await digest(known.input) == await digest(submission.input)

    async def _wait(
        self, waiter: Waiter, receive: Receive, options: RequestOptions
    ) -> JobState | Notice | bool | None:
        """The final state, None when the time is up, False if the client hangs up."""
        wait_s = self._wait_s if options.wait_s is None else min(options.wait_s, self._wait_s)
        end = await waiter.wait(min(wait_s, PATIENCE_S))
        if end is None and wait_s > PATIENCE_S:
            return await waiter.wait_while_connected(receive, wait_s - PATIENCE_S)
        return end

    async def _join(
        self, prediction_id: str, receive: Receive, options: RequestOptions
    ) -> JobState | Notice | bool | None:
        """What `_wait` gives, for a prediction that was submitted before."""
        with Waiter(self._gateway, prediction_id) as waiter:
            now = await self._gateway.jobs.watch(prediction_id)
            if now is None:
                return Notice.LOST
            if now.final:
                return now
            waiter.known()
            return await self._wait(waiter, receive, options)


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


class Prediction:
    """GET, PUT and DELETE /predict/{id}."""

    route = "/predict/{prediction_id}"

    def __init__(self, gateway: Gateway, predictions: Predictions) -> None:
        self._gateway = gateway
        self._predictions = predictions

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self._gateway.admit():
            prediction_id = keys.parse_id(scope["path_params"]["prediction_id"])
            if scope["method"] == "PUT":
                return await self._put(scope, receive, send, prediction_id)
            if prediction_id is None:
                raise HttpError(404, NOT_FOUND)
            scope["observation"].prediction_id = prediction_id
            wait_s, with_input = read_wait(scope), read_with_input(scope)
            if scope["method"] == "DELETE":
                await self._cancel(prediction_id)
            state = await self._look(prediction_id, receive, wait_s)
            if state is None:
                raise HttpError(404, NOT_FOUND)
            if not with_input:
                state = state._replace(input=NO_INPUT)
            headers = [status_header(state.status)]
            if not state.final:
                headers.append(RETRY_AFTER)
            code = 200 if state.final else 202
            await answer(scope, send, code, prediction_body(prediction_id, state), headers)

    async def _put(self, scope: Scope, receive: Receive, send: Send, prediction_id: str | None) -> None:
        """The id is the client's, and is itself the key that makes a repeat harmless."""
        if prediction_id is None:
            raise HttpError(400, "The prediction ID must be a UUID: make one, or use POST /predict.")
        options = read_options(scope["headers"])
        options.key = ""
        await self._predictions.take(scope, receive, send, prediction_id, options, protected=True)

    async def _cancel(self, prediction_id: str) -> None:
        reply = await self._gateway.jobs.cancel(prediction_id, CANCELLED_BY_CLIENT)
        if reply == "finished":
            raise HttpError(409, ALREADY_FINISHED)

    async def _look(self, prediction_id: str, receive: Receive, wait_s: float) -> JobState | None:
        if wait_s == 0:
            return await self._gateway.jobs.read(prediction_id)
        with Waiter(self._gateway, prediction_id) as waiter, self._gateway.on_drain(waiter.notify):
            state = await self._gateway.jobs.watch(prediction_id)
            if state is None or state.final:
                return state
            waiter.known()
            await waiter.wait_while_connected(receive, wait_s)
        # announcements carry no input, and a prediction that is not final may have started meanwhile
        return await self._gateway.jobs.read(prediction_id)
