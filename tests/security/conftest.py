"""Everything here asks real services."""

from tests.services import services, start_gateway, start_processor

__all__ = ["services", "start_gateway", "start_processor"]
