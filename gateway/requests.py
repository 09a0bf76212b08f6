"""What a request asks for, read from its raw ASGI parts."""

import asyncio
import hashlib
import re
from dataclasses import dataclass
from urllib.parse import parse_qs

from starlette.types import Receive, Scope

from gateway.errors import HttpError
from gateway.unpacking import PIECE_BYTES, TooLarge, Unpacker, read_encoding

MAX_KEY_BYTES = 255
MAX_DEADLINE_US = 7 * 86400 * 1_000_000
_DURATION = re.compile(rb"([0-9]{1,9}(?:\.[0-9]{1,6})?)(ms|s|m)")
_UNIT_US = {b"ms": 1e3, b"s": 1e6, b"m": 60e6}
LIMIT, MAX_LIMIT = 20, 100  # of a list
MAX_WAIT_S = 300.0  # a long poll above this is cut to it: proxies end it anyway


@dataclass(slots=True)
class RequestOptions:
    """`wait_s`: how long the client waits for the result; None: as long as the service does; 0: not at all.
    `then_202`: what it gets after that, instead of a 504. `applied`: the preference that was honoured. `key`: digest of the
    Idempotency-Key. `deadline_us`: the Prediction-Deadline. `encoding`: how the body is packed, if it is."""

    length: int | None = None
    wait_s: float | None = None
    then_202: bool = False
    applied: bytes = b""
    key: str = ""
    deadline_us: int | None = None
    encoding: str = ""


def read_options(headers: list[tuple[bytes, bytes]]) -> RequestOptions:
    """Async-Mode, Prefer (RFC 7240), Content-Type, -Encoding and -Length, Idempotency-Key, Prediction-Deadline.

    Raises HttpError 400 and 415.
    """
    mode = prefer = content_type = encoding = None
    options = RequestOptions()
    for name, value in headers:
        if name == b"content-length":
            options.length = int(value)
        elif name == b"content-type":
            content_type = value
        elif name == b"async-mode":
            mode = value if mode is None else mode + b"," + value
        elif name == b"prefer":
            prefer = value if prefer is None else prefer + b"," + value
        elif name == b"idempotency-key":
            options.key = _read_key(value, again=bool(options.key))
        elif name == b"prediction-deadline":
            options.deadline_us = _read_deadline(value, again=options.deadline_us is not None)
        elif name == b"content-encoding":
            encoding = value if encoding is None else encoding + b"," + value
    if content_type is not None and not _is_json(content_type):
        raise HttpError(415, "The body must be JSON: send the header 'Content-Type: application/json'.")
    if encoding is not None:
        options.encoding = read_encoding(encoding)
    if prefer is not None:
        _read_prefer(prefer, options)
    if mode is not None:
        _read_mode(mode, options)
    return options


def _read_key(value: bytes, *, again: bool) -> str:
    """Stored is a digest: keys may be long, and may be nobody's business."""
    if again or not value.strip() or len(value) > MAX_KEY_BYTES:
        raise HttpError(400, f"Idempotency-Key must be one string of 1 to {MAX_KEY_BYTES} bytes.")
    return hashlib.blake2b(value.strip(), digest_size=16).hexdigest()


def _read_deadline(value: bytes, *, again: bool) -> int:
    match = _DURATION.fullmatch(value.strip().lower())
    us = round(float(match[1]) * _UNIT_US[match[2]]) if match else 0
    if again or not 0 < us <= MAX_DEADLINE_US:
        raise HttpError(400, "Prediction-Deadline must be one time such as 500ms, 30s or 5m, at most 10080m.")
    return us


def _is_json(content_type: bytes) -> bool:
    if content_type == b"application/json":
        return True
    kind = content_type.split(b";", 1)[0].strip().lower()
    return kind == b"application/json" or (kind.startswith(b"application/") and kind.endswith(b"+json"))


def _read_mode(mode: bytes, options: RequestOptions) -> None:
    word = mode.strip().lower()
    if word == b"true":
        options.wait_s, options.then_202, options.applied = 0.0, True, b""
    elif word == b"false":
        if options.wait_s == 0:
            options.wait_s, options.then_202, options.applied = None, False, b""
    else:
        raise HttpError(400, "Async-Mode must be 'true' or 'false'.")


def _read_prefer(prefer: bytes, options: RequestOptions) -> None:
    for preference in prefer.lower().split(b","):
        name, _, value = preference.split(b";", 1)[0].partition(b"=")
        name, value = name.strip(), value.strip().strip(b'"')
        if name == b"respond-async" and options.wait_s is None:
            options.wait_s, options.then_202, options.applied = 0.0, True, b"respond-async"
        elif name == b"wait":
            if not value.isdigit() or len(value) > 9:
                raise HttpError(400, "Prefer: wait must be a whole number of seconds, such as wait=10.")
            options.wait_s, options.then_202, options.applied = float(value), True, b"wait=" + value


def read_wait(scope: Scope) -> float:
    """`?wait=N` of a GET, in seconds; 0 without it. Raises HttpError 400."""
    value = query_value(scope, "wait")
    if value is None:
        return 0.0
    try:
        wait_s = float(value)
    except ValueError:
        wait_s = -1.0
    if not 0 <= wait_s < float("inf"):
        raise HttpError(400, "wait must be a number of seconds, such as ?wait=10.")
    return min(wait_s, MAX_WAIT_S)


def read_with_input(scope: Scope) -> bool:
    """`?input=` of what shows a prediction: whether its input is shown too. Raises HttpError 400."""
    value = query_value(scope, "input")
    word = "true" if value is None else value.lower()
    if word not in ("true", "false"):
        raise HttpError(400, "input must be 'true' or 'false', such as ?input=false.")
    return word == "true"


def query_value(scope: Scope, name: str) -> str | None:
    """The last value of this name in the query; None: there is none."""
    query: bytes = scope["query_string"]
    if not query:
        return None
    values = parse_qs(query.decode("latin-1"), keep_blank_values=True).get(name)
    return values[-1] if values else None


def read_limit(scope: Scope) -> int:
    """`?limit=N` of a list: how many at most. Raises HttpError 400."""
    value = query_value(scope, "limit")
    text = str(LIMIT) if value is None else value
    if not (text.isascii() and text.isdigit() and len(text) < 4 and 1 <= int(text) <= MAX_LIMIT):
        raise HttpError(400, f"limit must be a number from 1 to {MAX_LIMIT}.")
    return int(text)


async def read_body(receive: Receive, length: int | None, limit: int) -> bytes:
    """The whole body. One over `limit` bytes is refused by its declared length, or where it crosses the limit."""
    if length is not None and length > limit:
        raise _too_large(limit)
    message = await receive()
    body: bytes = message.get("body", b"")
    if message.get("more_body"):
        parts = [body]
        size = len(body)
        while message.get("more_body"):
            if size > limit:
                raise _too_large(limit)
            message = await receive()
            parts.append(message.get("body", b""))
            size += len(parts[-1])
        body = b"".join(parts)
    if message["type"] == "http.disconnect":
        raise HttpError(400, "The body ended early.")
    if len(body) > limit:
        raise _too_large(limit)
    return body


async def read_packed_body(receive: Receive, length: int | None, limit: int, encoding: str) -> bytes:
    """The same for a body that is packed: `limit` is that of what is in it."""
    most = limit + limit // 16 + 1024  # what does not shrink comes out a little larger
    unpacker, parts, size = Unpacker(encoding, limit), [], 0
    if length is not None and length > most:
        raise _too_large(limit)
    more = True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise HttpError(400, "The body ended early.")
        part: bytes = message.get("body", b"")
        more = message.get("more_body", False)
        size += len(part)
        if size > most:
            raise _too_large(limit)
        try:
            for piece in unpacker.feed(part):
                parts.append(piece)
                if len(piece) == PIECE_BYTES:
                    await asyncio.sleep(0)  # others are served in between
        except TooLarge:
            raise _too_large(limit) from None
    unpacker.end()
    return b"".join(parts)


def _too_large(limit: int) -> HttpError:
    sentence = f"The body is larger than {limit} bytes: send less, or raise MAX_BODY_BYTES."
    return HttpError(413, sentence, headers={"Connection": "close"})
