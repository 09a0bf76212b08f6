"""The bodies of the contract, put together from JSON texts as bytes: nothing is parsed and written again."""

from starlette.types import Scope, Send

from common.store.states import JobState, Status

Headers = list[tuple[bytes, bytes]]

JSON_HEADERS: Headers = [(b"content-type", b"application/json"), (b"cache-control", b"no-store")]

#: In place of an input that the client does not want to see again.
NO_INPUT = b"null"

_RESULT_WORD = {
    Status.QUEUED: b'"processing"',
    Status.PROCESSING: b'"processing"',
    Status.FAILED: b'"failed"',
    Status.CANCELLED: b'"cancelled"',
    Status.EXPIRED: b'"expired"',
}


async def answer(scope: Scope, send: Send, code: int, body: bytes, headers: Headers) -> None:
    """One complete JSON answer."""
    scope["observation"].code = code
    length = (b"content-length", str(len(body)).encode())
    await send({"type": "http.response.start", "status": code, "headers": [*JSON_HEADERS, length, *headers]})
    await send({"type": "http.response.body", "body": body})


def id_headers(prediction_id: str, location: str) -> Headers:
    return [(b"location", location.encode()), (b"prediction-id", prediction_id.encode())]


def sync_body(input_: bytes, result: bytes) -> bytes:
    return b'{"input":%b,"result":%b}' % (input_, result)


def accepted_body(prediction_id: str) -> bytes:
    return (
        b'{"prediction_id":"%b","message":"Request received. Processing asynchronously."}'
        % prediction_id.encode()
    )


def prediction_body(prediction_id: str, state: JobState, *, with_status: bool = False) -> bytes:
    """The body of GET and, `with_status`, a WebSocket frame. `state` has its input, or NO_INPUT in its place."""
    status = b'"status":"%b",' % state.status.encode() if with_status else b""
    result = _RESULT_WORD.get(state.status, state.payload)
    error = b',"error":%b' % state.payload if state.final and state.status is not Status.SUCCEEDED else b""
    return b'{"prediction_id":"%b",%b"output":{"input":%b,"result":%b}%b}' % (
        prediction_id.encode(),
        status,
        state.input or NO_INPUT,
        result,
        error,
    )


def status_header(status: Status) -> tuple[bytes, bytes]:
    return b"prediction-status", status.encode()
