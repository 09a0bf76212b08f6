"""What a process does before it imports anything that takes time."""

import os
import signal
import sys
from types import FrameType

from common.log_stream import LogStream

OUT, ERR = LogStream(1), LogStream(2)


def begin() -> None:
    """Standard streams that never raise, whatever the descriptors are; and SIGTERM and SIGINT end the process with exit
    code 0 until somebody has a better idea. The kernel ignores them for PID 1 of a container that has no handler."""
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, _end)
    filled = _fill_descriptors()
    OUT.closed_at_start, ERR.closed_at_start = 1 in filled, 2 in filled
    OUT.prepare()
    ERR.prepare()
    sys.stdout, sys.stderr = OUT, ERR


def _end(number: int, frame: FrameType | None) -> None:
    """At once: nothing has begun, and an import may catch any exception."""
    os._exit(0)


def _fill_descriptors() -> set[int]:
    """Those of 0, 1 and 2 that were closed: they would be given to the next sockets, which would then get what is printed."""
    filled = set()
    while (lowest := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(lowest, True)
        filled.add(lowest)
    os.close(lowest)
    return filled
