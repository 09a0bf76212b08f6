"""Bodies with a Content-Encoding, unpacked part by part as they come.

It must never unpack beyond the limit, whatever a few bytes may stand for.
"""

import zlib
from collections.abc import Iterator

from gateway.errors import HttpError

ENCODINGS = {b"": "", b"identity": "", b"gzip": "gzip", b"x-gzip": "gzip", b"deflate": "deflate"}
TAKEN = "gzip, deflate"
PIECE_BYTES = 1 << 20  # at once: a small part may stand for a thousand times as much
_GZIP, _ZLIB, _RAW = 31, 15, -15  # zlib's names for them


def read_encoding(value: bytes) -> str:
    """`gzip`, `deflate` or nothing. Raises HttpError 415."""
    encoding = ENCODINGS.get(value.strip().lower())
    if encoding is None:
        sentence = "The Content-Encoding must be one of gzip and deflate: use one of them, or send the body as it is."
        raise HttpError(415, sentence, headers={"Accept-Encoding": TAKEN})
    return encoding


class TooLarge(Exception):
    """There is more than the limit."""


class Unpacker:
    """At most `limit` bytes of one body. A body that is gzip may have several members, as of bgzip."""

    def __init__(self, encoding: str, limit: int) -> None:
        self._encoding = encoding
        self._room = limit
        self._members = 100 + limit // 4096  # each costs time, even one that has nothing in it
        self._stream: zlib._Decompress | None = None

    def feed(self, part: bytes) -> Iterator[bytes]:
        """What is in the next part, piece by piece. Raises TooLarge, and HttpError 400."""
        while part:
            if self._stream is None or (self._stream.eof and self._encoding == "gzip" and self._members):
                self._members -= 1
                self._stream = zlib.decompressobj(self._window(part[0]))
            if self._stream.eof:
                raise self._corrupt()
            try:
                piece = self._stream.decompress(part, min(self._room + 1, PIECE_BYTES))
            except zlib.error:
                raise self._corrupt() from None
            self._room -= len(piece)
            if self._room < 0:
                raise TooLarge
            yield piece
            part = self._stream.unconsumed_tail or self._stream.unused_data

    def end(self) -> None:
        """That was the last part. Raises HttpError 400."""
        if self._stream is None or not self._stream.eof:
            raise HttpError(400, f"The body ends before its {self._encoding} data does: send all of it.")

    def _window(self, first: int) -> int:
        """`deflate` means zlib, and many clients send raw deflate, which no encoder begins with 8 in the low half."""
        if self._encoding == "gzip":
            return _GZIP
        return _ZLIB if first & 15 == 8 else _RAW

    def _corrupt(self) -> HttpError:
        sentence = f"The body is not valid {self._encoding} data, as its Content-Encoding says: pack it again, or leave the header out."
        return HttpError(400, sentence)
