"""Closing a connection whose client is still sending, so that it gets the answer that was sent before.

The kernel answers data for a closed socket with a reset, and a reset makes the other side, often a proxy, forget what it
has not read yet: the 413 of a large body becomes the proxy's own 502. RFC 9112, section 9.6, has the remedy.
"""

import asyncio
from collections.abc import Callable
from typing import Any

LINGER_S = 2.0  # for the rest of a body that nobody wants


class LingeringClose:
    """A transport. Closed while the client is `still_sending`, it closes for writing alone; what comes within LINGER_S is
    for its protocol to throw away."""

    def __init__(
        self,
        transport: asyncio.Transport,
        loop: asyncio.AbstractEventLoop,
        still_sending: Callable[[], bool],
    ) -> None:
        self._transport = transport
        self._loop = loop
        self._still_sending = still_sending
        self._lingers = False
        self.write = transport.write  # as it is called for every answer

    def close(self) -> None:
        if self._lingers or self._transport.is_closing() or not self._still_sending():
            return self._transport.close()
        self._lingers = True
        self._transport.write_eof()
        self._transport.resume_reading()
        self._loop.call_later(LINGER_S, self._transport.close)

    def is_closing(self) -> bool:
        return self._lingers or self._transport.is_closing()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)
