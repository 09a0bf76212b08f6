"""uvicorn, the way both services run it: its configuration, and how it stops.

What happens on a connection is the protocols' work. It must never catch a signal: those belong to the service.
"""

import asyncio
import contextlib
from collections.abc import Iterator

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from common.http.http_protocol import JsonHttpProtocol
from common.http.server_state import SharedServerState
from common.http.websocket_protocol import WS_MAX_BYTES, JsonWebSocketProtocol

PROBE_CONNECTIONS = 1_000  # where nobody says otherwise
# Balancers keep idle connections for about 60 s. The side that closes first must be theirs: a request that is on its
# way when we close is lost, and becomes a 502.
KEEP_ALIVE_S = 75


class Server(uvicorn.Server):
    """A uvicorn server that is told to stop, instead of catching signals itself."""

    server_state: SharedServerState

    def __init__(self, config: uvicorn.Config, *, max_connections: int) -> None:
        super().__init__(config)
        self.server_state = SharedServerState(max_connections)

    def answer_last(self) -> None:
        """From now on every answer is the last of its connection, so that clients move on to another replica."""
        self.server_state.draining = True
        for connection in self.server_state.connections:
            if isinstance(connection, HttpToolsProtocol) and connection.cycle is not None:
                connection.cycle.keep_alive = False

    def stop(self, *, within_s: float) -> None:
        """Close the listener and idle connections; requests under way have so long, then they are cut off."""
        asyncio.get_running_loop().call_later(within_s, self._cut_off)
        self.should_exit = True

    def _cut_off(self) -> None:
        """What uvicorn does instead, cancel the app, is answered with a 500 in plain text."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


def make_server(app: ASGIApp, *, max_connections: int = PROBE_CONNECTIONS) -> Server:
    return Server(
        uvicorn.Config(
            app,
            http=JsonHttpProtocol,
            ws=JsonWebSocketProtocol,
            loop="uvloop",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=KEEP_ALIVE_S,
            ws_max_size=WS_MAX_BYTES,
            ws_ping_interval=20.0,
            ws_ping_timeout=20.0,
            ws_per_message_deflate=False,  # 64 KiB of buffers per socket for frames that are mostly small
        ),
        max_connections=max_connections,
    )
