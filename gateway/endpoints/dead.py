"""`/dead`: the predictions that were given up, for the people who run the service."""

import re

import orjson
from starlette.types import Receive, Scope, Send

from common.store import keys
from common.store.dead import DeadLetter
from common.store.states import Status
from gateway.answers import accepted_body, answer, id_headers, status_header
from gateway.errors import HttpError, queue_full
from gateway.gateway import Gateway
from gateway.proxies import location
from gateway.requests import query_value, read_limit

_PLACE = re.compile(r"[0-9]{1,3}-[1-9][0-9]{0,14}-[0-9]{1,15}")

NOT_DEAD = "No prediction with this ID was given up: GET /dead lists those that were."


class DeadPredictions:
    """GET /dead: newest first in each partition, at most `?limit=` of them, `?after=` the `next` of the answer before."""

    route = "/dead"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._gateway.operators.check(scope)
        self._gateway.check_started()
        dead = await self._gateway.dead_letters.list(read_limit(scope), after=_read_after(scope))
        following = dead[-1].cursor if dead else None
        body = {"dead": [_described(one) for one in dead], "next": following}
        await answer(scope, send, 200, orjson.dumps(body), [])


def _described(dead: DeadLetter) -> dict[str, object]:
    return {
        "prediction_id": dead.id,
        "given_up_at": dead.given_up_ms / 1000,  # seconds since the epoch
        "input": orjson.Fragment(dead.input),
        "error": orjson.Fragment(dead.error),
        "attempts": dead.attempts,
        "processor": dead.processor,
        "traceback": dead.traceback,
    }


def _read_after(scope: Scope) -> str:
    after = query_value(scope, "after") or ""
    if after and not _PLACE.fullmatch(after):
        raise HttpError(400, "after must be the 'next' of an answer of GET /dead.")
    return after


class DeadPrediction:
    """DELETE /dead/{id}."""

    route = "/dead/{prediction_id}"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._gateway.operators.check(scope)
        self._gateway.check_started()
        prediction_id = _id(scope)
        if not await self._gateway.dead_letters.forget(prediction_id):
            raise HttpError(404, NOT_DEAD)
        await answer(scope, send, 200, orjson.dumps({"prediction_id": prediction_id}), [])


class DeadRetry:
    """POST /dead/{id}/retry: the same prediction again, with as many attempts as a new one."""

    route = "/dead/{prediction_id}/retry"

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._gateway.operators.check(scope)
        self._gateway.check_started()
        prediction_id = _id(scope)
        word = await self._gateway.dead_letters.revive(prediction_id)
        if word == "unknown":
            raise HttpError(404, NOT_DEAD)
        if word == "known":
            sentence = "This prediction was submitted again since it was given up: read that one."
            raise HttpError(409, sentence, prediction_id=prediction_id)
        if word == "full":
            raise queue_full(self._gateway.clock.retry_after_s())
        headers = id_headers(prediction_id, location(scope, prediction_id))
        headers.append(status_header(Status.QUEUED))
        await answer(scope, send, 202, accepted_body(prediction_id), headers)


def _id(scope: Scope) -> str:
    prediction_id = keys.parse_id(scope["path_params"]["prediction_id"])
    if prediction_id is None:
        raise HttpError(404, NOT_DEAD)
    return prediction_id
