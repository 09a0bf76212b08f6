"""Child processes that do not outlive us, even when we are killed with SIGKILL.

Linux sends them a signal when the thread that started them ends (PDEATHSIG), so start them from a thread that
lives as long as they shall. Other systems have nothing like it: there a SIGKILL leaves the children running.
"""

import ctypes
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

_PR_SET_PDEATHSIG = 1
# loaded here: between fork and exec a child may not load anything
_PRCTL = ctypes.CDLL(None, use_errno=True).prctl if sys.platform == "linux" else None


def start_child(
    command: Sequence[str | os.PathLike[str]], *, env: Mapping[str, str] | None = None, **popen: Any
) -> "subprocess.Popen[bytes]":
    """Start `command` in a session of its own: a terminal's Ctrl-C reaches us alone, and we decide who stops when."""
    return subprocess.Popen(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
        preexec_fn=_die_with_parent(),
        **popen,
    )


def ending(status: int) -> str:
    """What a `returncode` means, in words."""
    if status >= 0:
        return f"ended with exit status {status}"
    return f"was killed by {signal.Signals(-status).name}"


def _die_with_parent() -> Callable[[], None] | None:
    if _PRCTL is None:
        return None
    prctl, parent = _PRCTL, os.getpid()

    def in_child() -> None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
        if os.getppid() != parent:  # the parent was killed before we asked to be told
            os._exit(1)

    return in_child
