"""The framed messages between a processor and its model processes, over a socket pair, never over stdout.

A frame is a big-endian header of u64 and u32 (bytes that follow, items), then one u8 u32 u32 (kind, µs, bytes) per item,
then the items' bytes. No pickle: a model process can corrupt nothing but its own results.
"""

import struct
from collections.abc import Sequence
from enum import IntEnum
from typing import NamedTuple

HEADER = struct.Struct("!QI")
ITEM = struct.Struct("!BII")
LARGE_BYTES = 1 << 18


class Kind(IntEnum):
    INPUT = 0  # parent → child: JSON text of one input
    READY = 1  # child → parent, once: JSON {"batch": bool}
    FAULT = 2  # child → parent, once, instead of READY: a sentence
    RESULT = 3  # JSON text of one result
    ERROR = (
        4  # JSON {"error": a sentence for the client, "cause": words for the log, without any of the input}
    )
    REFUSED = 5  # a sentence: the model's type hints refuse this input
    RETRY = 6  # JSON {"error", "cause", "after": seconds, "traceback": text}: the model asks for another try
    CANCEL = 7  # parent → child: "<batch> <index>", an input of the present batch that nobody wants
    CANCELLED = 8  # child → parent, out of turn: "<batch> <index>", it does not run and will not


class Item(NamedTuple):
    kind: int
    predict_us: int
    data: bytes


def pack(items: Sequence[Item]) -> list[bytes]:
    """A frame, in one piece unless it is large: to copy 40 MB takes as long as many predictions."""
    heads = [ITEM.pack(kind, min(us, 0xFFFFFFFF), len(data)) for kind, us, data in items]
    size = sum(len(data) for _, _, data in items)
    pieces = [
        HEADER.pack(len(items) * ITEM.size + size, len(items)),
        *heads,
        *[data for _, _, data in items],
    ]
    return pieces if size > LARGE_BYTES else [b"".join(pieces)]


def unpack(count: int, frame: bytes) -> list[Item]:
    """The `count` items of what follows a header."""
    items = []
    at = count * ITEM.size
    for kind, us, length in ITEM.iter_unpack(frame[:at]):
        items.append(Item(kind, us, frame[at : at + length]))
        at += length
    return items
