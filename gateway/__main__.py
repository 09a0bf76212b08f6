"""`python -m gateway`."""

import sys

from common.lean_imports import lean_imports

with lean_imports():
    from common.entry import run_service
    from common.settings import GatewaySettings
    from gateway.service import serve

if __name__ == "__main__":
    sys.exit(run_service("gateway", GatewaySettings, serve))
