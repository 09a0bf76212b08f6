"""`python -m processor`."""

import sys

from common.begin import begin
from common.lean_imports import lean_imports


def main() -> int:
    begin()
    with lean_imports():
        from common.entry import run_service
        from common.settings import ProcessorSettings
        from processor.service import serve
    return run_service("processor", ProcessorSettings, serve)


if __name__ == "__main__":
    sys.exit(main())
