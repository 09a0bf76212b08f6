"""`python -m gateway`."""

import sys

from common.begin import begin
from common.lean_imports import lean_imports


def main() -> int:
    begin()
    with lean_imports():
        from common.entry import run_service
        from common.settings import GatewaySettings
        from gateway.service import serve
    return run_service("gateway", GatewaySettings, serve)


if __name__ == "__main__":
    sys.exit(main())
