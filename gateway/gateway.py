"""What one gateway process has: its settings, its job store, its relay, and whether it is still taking work."""

import secrets

from common import keys
from common.errors import ForetellError, StoreUnavailable
from common.job_store import JobStore
from common.settings import GatewaySettings
from gateway.relay import Relay


class Gateway:
    """What the endpoints share. `store.name` is new in every process, so nobody hears what a dead one waited for."""

    def __init__(self, settings: GatewaySettings) -> None:
        self.settings = settings
        self.store = JobStore.from_settings(settings, name=secrets.token_hex(4))
        self.relay = Relay(self.store)
        self.ids = keys.new_ids(settings.partitions)
        self.started = (
            False  # the server has been checked and the relay has heard it: predictions may be taken
        )
        self.draining = False

    def check_started(self) -> None:
        """Raises StoreUnavailable before that; the probes answer all the while."""
        if not self.started:
            raise StoreUnavailable("This gateway waits for Redis.")

    async def readiness(self) -> str | None:
        """None, or one sentence why this gateway should get no requests now."""
        if self.draining:
            return "This gateway is stopping."
        if not self.started:
            return "This gateway waits for Redis."
        if not self.relay.connected.is_set():
            return "The relay does not hear announcements: its connection is being made again."
        try:
            await self.store.ping()
        except ForetellError as error:
            return str(error)
        return None
