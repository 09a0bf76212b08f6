"""Errors → HTTP, in one place. Every body is `{"error": "<one sentence>"}`, plus `prediction_id` where one exists."""

import orjson
import structlog
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response

from common.store.states import Fault
from gateway.compression import encoded

log = structlog.get_logger("foretell")

#: The code of a synchronous answer, by why the prediction did not succeed.
CODE_OF_FAULT = {
    Fault.MODEL: 500,
    Fault.INPUT: 422,
    Fault.CRASH: 500,
    Fault.TIMEOUT: 504,
    Fault.GIVEN_UP: 500,
    Fault.CANCELLED: 409,
    Fault.EXPIRED: 504,
}

NOT_FOUND = "Prediction ID not found."
ALREADY_FINISHED = "Prediction already finished."


class HttpError(Exception):
    """An answer that ends the request."""

    def __init__(
        self,
        code: int,
        sentence: str,
        *,
        prediction_id: str | None = None,
        headers: dict[str, str] | None = None,
    ) -> None:
        super().__init__(sentence)
        self.code = code
        self.sentence = sentence
        self.prediction_id = prediction_id
        self.headers = headers or {}


def queue_full(retry_after_s: int) -> HttpError:
    sentence = "The queue is full and nothing was accepted: try again later."
    return HttpError(429, sentence, headers={"Retry-After": str(retry_after_s)})


async def _answer(request: Request, error: HttpError) -> Response:
    body = {"error": error.sentence}
    if error.prediction_id:
        body["prediction_id"] = error.prediction_id
    request.scope["observation"].code = error.code
    headers = {"Cache-Control": "no-store", **error.headers}
    response = Response(orjson.dumps(body), error.code, headers, media_type="application/json")
    return await encoded(request, response)


async def http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HttpError)
    return await _answer(request, error)


async def not_json(request: Request, error: Exception) -> Response:
    return await _answer(request, HttpError(400, str(error)))


async def no_input(request: Request, error: Exception) -> Response:
    return await _answer(request, HttpError(422, str(error)))


async def store_unavailable(request: Request, error: Exception) -> Response:
    sentence = "The job store is not available: try again in a moment."
    return await _answer(request, HttpError(503, sentence, headers={"Retry-After": "1"}))


async def store_full(request: Request, error: Exception) -> Response:
    sentence = "The job store's memory is full and nothing was accepted: try again later."
    return await _answer(request, HttpError(503, sentence, headers={"Retry-After": "10"}))


async def routing_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 405:
        allowed = ", ".join(sorted((error.headers or {}).get("Allow", "").split(", ")))
        sentence = f"{request.method} is not possible here: use {allowed}."
        return await _answer(request, HttpError(405, sentence, headers={"Allow": allowed}))
    sentence = "There is nothing at this path: see POST /predict."
    prefix = request.scope["asked"].prefix
    if prefix and request.scope["path"].startswith(f"{prefix}/"):
        sentence = f"There is nothing at this path: the proxy must remove {prefix} from its beginning."
    return await _answer(request, HttpError(error.status_code, sentence))


async def unexpected_error(request: Request, error: Exception) -> Response:
    log.error("unexpected error", path=request.url.path, exc_info=error)
    return await _answer(request, HttpError(500, "Foretell failed to answer: the gateway's log says why."))
