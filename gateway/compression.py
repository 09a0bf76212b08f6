"""Answers as gzip, for clients that accept it.

An answer shows what its client sent and what the model made of it, and no secret of anybody else: there is nothing that its
length could give away.
"""

import asyncio
import zlib
from collections.abc import Iterable, Iterator

from starlette.requests import Request
from starlette.responses import Response

MIN_BYTES = 1024  # below, what is saved is less than a packet
INLINE_BYTES = 1 << 16  # a millisecond; above, a thread does it, which zlib lets run beside us
LEVEL = 1  # half the time of level 6 for a tenth more bytes
_GZIP = 31  # zlib's name for it

VARY = (b"vary", b"accept-encoding")
GZIP = (b"content-encoding", b"gzip")


def accepts_gzip(headers: Iterable[tuple[bytes, bytes]]) -> bool:
    """By Accept-Encoding (RFC 9110, section 12.5.3): gzip, or anything, at a weight that is not 0 and not below that of
    the answer as it is."""
    weights = {}
    for name, value in headers:
        if name == b"accept-encoding":
            for part in value.lower().split(b","):
                coding, _, parameter = part.partition(b";")
                weights[coding.strip()] = _weight(parameter)
    weight = weights.get(b"gzip", weights.get(b"x-gzip", weights.get(b"*", 0.0)))
    return weight > 0 and weight >= weights.get(b"identity", 0.0)


def _weight(parameter: bytes) -> float:
    """Of `q=0.5`; 1 without one, 0 for what is none."""
    name, _, number = parameter.partition(b"=")
    if not parameter.strip():
        return 1.0
    try:
        return float(number) if name.strip() == b"q" else 0.0
    except ValueError:
        return 0.0


async def encoded(request: Request, response: Response) -> Response:
    """The response, as gzip if it is above MIN_BYTES and its client accepts that."""
    size = len(response.body)
    if size > MIN_BYTES and request.app.state.compress:
        response.headers["vary"] = "accept-encoding"
        if accepts_gzip(request.scope["headers"]):
            response.body = b"".join(await gzipped([bytes(response.body)], size=size))
            response.headers["content-encoding"] = "gzip"
            response.headers["content-length"] = str(len(response.body))
    return response


async def gzipped(pieces: Iterable[bytes], *, size: int) -> tuple[bytes, ...]:
    """What the pieces, of `size` bytes together, are as gzip."""
    if size <= INLINE_BYTES:
        return tuple(_gzip(pieces))
    return await asyncio.to_thread(lambda: tuple(_gzip(pieces)))


def _gzip(pieces: Iterable[bytes]) -> Iterator[bytes]:
    packer = zlib.compressobj(LEVEL, zlib.DEFLATED, _GZIP)
    for piece in pieces:
        yield packer.compress(piece)
    yield packer.flush()
