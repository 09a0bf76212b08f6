"""The services under chaos are the real ones; short leases, so that what a dead processor held is taken over soon."""

from tests.services import services, start_gateway, start_processor

__all__ = ["services", "start_gateway", "start_processor"]
