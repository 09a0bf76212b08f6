"""The bodies of the contract, put together from JSON texts as bytes: nothing is parsed and written again."""

from collections.abc import Iterator

from starlette.types import Scope, Send

from common.store.states import JobState, Status
from gateway.compression import GZIP, MIN_BYTES, VARY, accepts_gzip, gzipped

Headers = list[tuple[bytes, bytes]]

#: A body in pieces, which are one after the other what is sent.
Body = tuple[bytes, ...]

#: At once to a connection: to copy more holds everybody up, and a client that reads slowly need not hold it all.
PIECE_BYTES = 1 << 20

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


async def answer(scope: Scope, send: Send, code: int, body: bytes | Body, headers: Headers) -> None:
    """One complete JSON answer."""
    scope["observation"].code = code
    pieces = (body,) if isinstance(body, bytes) else body
    size = sum(map(len, pieces))
    if size > MIN_BYTES and scope["app"].state.compress:
        headers = [*headers, VARY]
        if accepts_gzip(scope["headers"]):
            headers.append(GZIP)
            pieces = await gzipped(in_pieces(pieces), size=size)
            size = sum(map(len, pieces))
    length = (b"content-length", str(size).encode())
    await send({"type": "http.response.start", "status": code, "headers": [*JSON_HEADERS, length, *headers]})
    if size <= PIECE_BYTES:
        return await send({"type": "http.response.body", "body": b"".join(pieces)})
    for piece in in_pieces(pieces):
        await send({"type": "http.response.body", "body": piece, "more_body": True})
    await send({"type": "http.response.body"})


def in_pieces(body: Body) -> Iterator[bytes]:
    """None of them above PIECE_BYTES."""
    for part in body:
        for at in range(0, len(part), PIECE_BYTES):
            yield part[at : at + PIECE_BYTES]


def id_headers(prediction_id: str, location: str) -> Headers:
    return [(b"location", location.encode()), (b"prediction-id", prediction_id.encode())]


def sync_body(input_: bytes, result: bytes) -> Body:
    return b'{"input":', input_, b',"result":', result, b"}"


def accepted_body(prediction_id: str) -> bytes:
    return (
        b'{"prediction_id":"%b","message":"Request received. Processing asynchronously."}'
        % prediction_id.encode()
    )


def prediction_body(prediction_id: str, state: JobState, *, with_status: bool = False) -> Body:
    """The body of GET and, `with_status`, a WebSocket frame. `state` has its input, or NO_INPUT in its place."""
    status = b'"status":"%b",' % state.status.encode() if with_status else b""
    result = _RESULT_WORD.get(state.status, state.payload)
    error = b',"error":%b' % state.payload if state.final and state.status is not Status.SUCCEEDED else b""
    head = b'{"prediction_id":"%b",%b"output":{"input":' % (prediction_id.encode(), status)
    return head, state.input or NO_INPUT, b',"result":', result, b"}%b}" % error


def status_header(status: Status) -> tuple[bytes, bytes]:
    return b"prediction-status", status.encode()
