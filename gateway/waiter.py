"""One who waits for the end of one prediction: until it is told, the time is up or its client hangs up.

It hears from the relay and asks nobody: who uses it submits or watches, and says when the store has the prediction. It
must never stay with the relay once its `with` block is left, however that ends.
"""

import asyncio

from starlette.types import Receive

from common.store.states import JobState
from gateway.gateway import Gateway
from gateway.relay import Notice


class Waiter:
    """Waits for the final state of one prediction, from inside a `with` block that has the relay listen."""

    def __init__(self, gateway: Gateway, prediction_id: str) -> None:
        self._gateway = gateway
        self._id = prediction_id
        self._end: JobState | Notice | None = None
        self._wake_up: asyncio.Future[None] | None = None

    def __enter__(self) -> "Waiter":
        self._waiting = self._gateway.relay.add(self._id, self.notify)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._gateway.relay.remove(self._id, self.notify)

    def known(self) -> None:
        """The store has the prediction: from now on it may be looked up, and be found lost."""
        self._waiting.known = True

    def notify(self, update: JobState | Notice) -> None:
        if self._end is None and (isinstance(update, Notice) or update.final):
            self._end = update
            self._wake()

    def _wake(self) -> None:
        if self._wake_up is not None and not self._wake_up.done():
            self._wake_up.set_result(None)

    async def wait(self, seconds: float) -> JobState | Notice | None:
        """The final state, or None when the time is up."""
        if self._end is None:
            loop = asyncio.get_running_loop()
            self._wake_up = loop.create_future()
            timer = loop.call_later(seconds, self._wake)
            try:
                await self._wake_up
            finally:
                timer.cancel()
        return self._end

    async def wait_while_connected(self, receive: Receive, seconds: float) -> JobState | Notice | bool | None:
        """Like `wait`; False if the client hangs up first."""
        hung_up = asyncio.create_task(_disconnect(receive), name="client hangs up")
        waiting = asyncio.create_task(self.wait(seconds), name="final state")
        try:
            await asyncio.wait({hung_up, waiting}, return_when=asyncio.FIRST_COMPLETED)
            return waiting.result() if waiting.done() else False
        finally:
            hung_up.cancel()
            waiting.cancel()


async def _disconnect(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
