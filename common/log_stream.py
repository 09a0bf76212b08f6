"""Standard output and error as streams that never raise and never hold anybody up for long: a line that cannot be written
is dropped and counted. A full disk, a pipe that nobody reads or a closed descriptor costs log lines, not predictions.
"""

import io
import os
import select

#: With a pipe or terminal that is full; after that its lines are dropped until it takes one again.
PATIENCE_MS = 50
#: So much is written at once to what poll() calls writable, without waiting (pipe(7)).
PIPE_BUF = select.PIPE_BUF


class LogStream(io.TextIOBase):
    """Not buffered: what was written is out, also if the process is killed a moment later."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self.closed_at_start = False
        self._full = False
        self._cut = False  # the last line was, in its middle
        self.dropped_lines = 0

    def write(self, text: str) -> int:
        data = text.encode(self.encoding, self.errors)
        rest = b"\n" + data if self._cut else data
        try:
            while rest:
                self._wait()
                rest = rest[os.write(self._descriptor, rest[:PIPE_BUF]) :]
                self._cut = bool(rest)
        except OSError:
            self.dropped_lines += data.count(b"\n")
        return len(text)

    def _wait(self) -> None:
        if self.closed_at_start:
            raise BrokenPipeError
        poll = select.poll()
        poll.register(self._descriptor, select.POLLOUT)
        self._full = not poll.poll(0 if self._full else PATIENCE_MS)
        if self._full:
            raise BlockingIOError

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)
