"""Standard output and error as streams that never raise and never hold anybody up for long: a line that cannot be written
is dropped and counted. A full disk, a pipe that nobody reads or a closed descriptor costs log lines, not predictions.
"""

import contextlib
import fcntl
import io
import os
import select
import stat
import time

#: With a pipe or terminal that is full, in each second; then its lines are dropped until it takes one again.
PATIENCE_MS = 50.0
#: So much is written at once to what poll() calls writable, without waiting (pipe(7)).
PIPE_BUF = select.PIPE_BUF


class LogStream(io.TextIOBase):
    """Not buffered: what was written is out, also if the process is killed a moment later."""

    encoding = "utf-8"
    errors = "backslashreplace"

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._output = descriptor
        self.closed_at_start = False
        self._full = False
        self._patience_ms = PATIENCE_MS
        self._patience_until = 0.0
        self._cut = False  # the last line was, in its middle
        self.dropped_lines = 0

    def prepare(self) -> None:
        """Open a pipe or terminal once more, so that writing to it never waits. poll() does not keep it from that: between
        the two another process may fill the pipe, and a terminal may take less than it is given. To set O_NONBLOCK on what
        we were given would set it for all who share it. Where it may not be opened (it is another user's), poll() must do.
        """
        with contextlib.suppress(OSError):
            is_pipe = stat.S_ISFIFO(os.fstat(self._descriptor).st_mode)
            may_write = fcntl.fcntl(self._descriptor, fcntl.F_GETFL) & os.O_ACCMODE != os.O_RDONLY
            if may_write and (is_pipe or self.isatty()):
                flags = os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY
                self._output = os.open(f"/proc/self/fd/{self._descriptor}", flags)

    def write(self, text: str) -> int:
        data = text.encode(self.encoding, self.errors)
        rest = b"\n" + data if self._cut else data
        try:
            while rest:
                self._wait()
                rest = rest[os.write(self._output, rest[:PIPE_BUF]) :]
                self._cut = bool(rest)
        except OSError:
            self.dropped_lines += data.count(b"\n")
        return len(text)

    def _wait(self) -> None:
        if self.closed_at_start:
            raise BrokenPipeError
        poll = select.poll()
        poll.register(self._output, select.POLLOUT)
        if not poll.poll(0) and (self._full or not self._waits_for_it(poll)):
            self._full = True
            raise BlockingIOError
        self._full = False

    def _waits_for_it(self, poll: select.poll) -> bool:
        began = time.monotonic()
        if began > self._patience_until:
            self._patience_ms, self._patience_until = PATIENCE_MS, began + 1
        is_ready = bool(poll.poll(max(0.0, self._patience_ms)))
        self._patience_ms -= (time.monotonic() - began) * 1000
        return is_ready

    def writable(self) -> bool:
        return True

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return os.isatty(self._descriptor)
