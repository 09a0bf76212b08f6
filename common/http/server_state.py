"""What all connections of a server share, and the one timer that visits those that have deadlines.

It knows no protocol: a connection that wants to be visited is a TimedConnection. It must never cost a request a timer
of its own.
"""

import asyncio

from uvicorn.server import ServerState

from common.http.slow_readers import SlowReaders

SWEEP_S = 1.0


class TimedConnection:
    """What the sweep visits."""

    def check_progress(self, now: float) -> None:
        """End the connection, if its client owes something for too long."""
        raise NotImplementedError


class SharedServerState(ServerState):
    def __init__(self, max_connections: int) -> None:
        super().__init__()
        self.draining = False
        self.slow_readers = SlowReaders()
        self.max_connections = max_connections
        self._sweeping = False

    def sweep_later(self) -> None:
        """One timer for all connections: none of them pays for its deadlines with each request."""
        if not self._sweeping:
            self._sweeping = True
            asyncio.get_running_loop().call_later(SWEEP_S, self._sweep)

    def _sweep(self) -> None:
        now = asyncio.get_running_loop().time()
        for connection in tuple(self.connections):
            if isinstance(connection, TimedConnection):
                connection.check_progress(now)
        self._sweeping = False
        if self.connections:
            self.sweep_later()
