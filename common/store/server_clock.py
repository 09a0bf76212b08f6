"""What the server's clock says, by ours, which never steps: so that a step of the server's is noticed."""

import time


class ServerClock:
    """One server's. It knows nothing until it has learned."""

    def __init__(self) -> None:
        self._ahead_us: int | None = None  # of our own

    @property
    def known(self) -> bool:
        return self._ahead_us is not None

    def learn(self, now_us: int) -> None:
        """The server has just said what time it is; a reply that came late makes it seem behind, never ahead."""
        self._ahead_us = now_us - _monotonic_us()

    def earliest(self) -> int:
        """What it says now at least, in µs, unless it has stepped back."""
        return 0 if self._ahead_us is None else self._ahead_us + _monotonic_us()

    def latest(self, *, within_s: float) -> int | None:
        """What it may say now at the latest, in µs, unless it has stepped forward by more than that; None: not known."""
        if self._ahead_us is None:
            return None
        return self._ahead_us + _monotonic_us() + int(within_s * 1e6)


def _monotonic_us() -> int:
    return time.monotonic_ns() // 1000
