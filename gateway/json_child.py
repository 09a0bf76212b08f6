"""The other process of `gateway.json_process`: looks through one large JSON text after the other. It ends when nobody can
ask any more.

A request is an operation and a text, an answer a kind and up to two numbers, and a text where the kind says so.
"""

import struct
import sys
from enum import IntEnum
from typing import BinaryIO

from common.json_text import NoInput, NotJson, input_of, value_digest

REQUEST = struct.Struct("!BQ")  # operation, bytes of the text
ANSWER = struct.Struct("!BQQ")  # kind, then what it says


class Operation(IntEnum):
    INPUT_OF = 0
    VALUE_DIGEST = 1


class Kind(IntEnum):
    PLACE = 0  # the input stands in the body: from, to
    TEXT = 1  # so many bytes follow
    NOT_JSON = 2  # so many bytes follow: why
    NO_INPUT = 3  # likewise


def main() -> None:
    while head := sys.stdin.buffer.read(REQUEST.size):
        operation, size = REQUEST.unpack(head)
        _answer(sys.stdout.buffer, operation, sys.stdin.buffer.read(size))
        sys.stdout.buffer.flush()


def _answer(out: BinaryIO, operation: int, text: bytes) -> None:
    try:
        found = input_of(text) if operation == Operation.INPUT_OF else value_digest(text).encode()
    except (NotJson, NoInput) as error:
        sentence = str(error).encode()
        kind = Kind.NOT_JSON if isinstance(error, NotJson) else Kind.NO_INPUT
        out.write(ANSWER.pack(kind, len(sentence), 0) + sentence)
        return
    if operation == Operation.INPUT_OF and (start := text.find(found)) >= 0:
        out.write(ANSWER.pack(Kind.PLACE, start, start + len(found)))
    else:
        out.write(ANSWER.pack(Kind.TEXT, len(found), 0))
        out.write(found)


if __name__ == "__main__":
    main()
