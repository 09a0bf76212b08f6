"""The other process of `gateway.json_process`: looks through one large JSON text after the other. It ends when nobody can
ask any more.

A request is an operation and one or two texts, an answer a kind and up to two numbers, and a text where the kind says so.
"""

import struct
import sys
from enum import IntEnum
from typing import BinaryIO

from common.json_text import NoInput, NotJson, input_of, same_value

REQUEST = struct.Struct("!BQQ")  # operation, bytes of the first text, bytes of the second
ANSWER = struct.Struct("!BQQ")  # kind, then what it says


class Operation(IntEnum):
    INPUT_OF = 0
    SAME_VALUE = 1


class Kind(IntEnum):
    PLACE = 0  # the input stands in the body: from, to
    TEXT = 1  # so many bytes follow
    SAME = 2  # 1 or 0
    NOT_JSON = 3  # so many bytes follow: why
    NO_INPUT = 4  # likewise


def main() -> None:
    while head := sys.stdin.buffer.read(REQUEST.size):
        operation, first, second = REQUEST.unpack(head)
        texts = sys.stdin.buffer.read(first), sys.stdin.buffer.read(second)
        _answer(sys.stdout.buffer, operation, *texts)
        del texts
        sys.stdout.buffer.flush()


def _answer(out: BinaryIO, operation: int, one: bytes, other: bytes) -> None:
    try:
        if operation == Operation.SAME_VALUE:
            out.write(ANSWER.pack(Kind.SAME, same_value(one, other), 0))
            return
        text = input_of(one)
    except (NotJson, NoInput) as error:
        sentence = str(error).encode()
        kind = Kind.NOT_JSON if isinstance(error, NotJson) else Kind.NO_INPUT
        out.write(ANSWER.pack(kind, len(sentence), 0) + sentence)
        return
    if (start := one.find(text)) >= 0:
        out.write(ANSWER.pack(Kind.PLACE, start, start + len(text)))
    else:
        out.write(ANSWER.pack(Kind.TEXT, len(text), 0))
        out.write(text)


if __name__ == "__main__":
    main()
