"""Clients that do not read what they asked for. What a connection has not taken is kept in this process, a large
result for each of thousands of them: so who takes nothing is cut off, and sooner when all of it together is too much.

uvicorn waits for ever here: closing a connection means sending the rest first, and only the client decides when.
"""

import asyncio
from dataclasses import dataclass

import structlog

log = structlog.get_logger("foretell")

PATIENCE_S = 20.0  # without a byte taken
MAX_HELD = 128 << 20  # bytes, of all connections together
SWEEP_S = 1.0


@dataclass(slots=True)
class _Progress:
    """`held` bytes were unsent at first, and stay in memory until the last of them is sent; `unsent` at the last sweep,
    and since when that many."""

    held: int
    unsent: int
    since: float


class SlowReaders:
    """Watches the connections of a process that have something unsent."""

    def __init__(self) -> None:
        self._slow: dict[asyncio.Transport, _Progress] = {}
        self._sweeping = False

    def watch(self, transport: asyncio.Transport) -> None:
        """Call it when a connection's buffer is filled, or when it is closed with a filled one."""
        loop = asyncio.get_running_loop()
        unsent = transport.get_write_buffer_size()
        if unsent and transport not in self._slow:
            self._slow[transport] = _Progress(unsent, unsent, loop.time())
            if not self._sweeping:
                self._sweeping = True
                loop.call_later(SWEEP_S, self._sweep)

    def forget(self, transport: asyncio.Transport) -> None:
        """Its buffer is empty, or it is gone."""
        self._slow.pop(transport, None)

    def _sweep(self) -> None:
        loop = asyncio.get_running_loop()
        now = loop.time()
        for transport, progress in self._slow.items():
            unsent = transport.get_write_buffer_size()
            if unsent < progress.unsent:
                progress.since = now
            progress.unsent = unsent
        too_much = sum(progress.held for progress in self._slow.values()) - MAX_HELD
        cut = []
        for transport, progress in sorted(self._slow.items(), key=lambda item: item[1].since):
            if progress.since > now - SWEEP_S / 2:
                break  # this one reads, and so do all after it
            if too_much > 0 or now - progress.since > PATIENCE_S:
                too_much -= progress.held
                cut.append(transport)
        for transport in cut:
            self.forget(transport)
            transport.abort()
        if cut:
            log.warning("cut off clients that do not read", clients=len(cut))
        self._sweeping = bool(self._slow)
        if self._sweeping:
            loop.call_later(SWEEP_S, self._sweep)
