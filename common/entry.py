"""How a service process begins and ends: settings, logs, an event loop, and one line instead of a traceback for
what a person can mend. Exit code 0 after a stop that was asked for, 1 otherwise."""

import gc
import sys
from collections.abc import Awaitable, Callable

import structlog
import uvloop

from common.errors import ForetellError
from common.logs import setup_logs
from common.settings import Settings, read_settings

# Python's default of 700 new objects has a busy gateway collect garbage some fifty times a second, for 5 % of its CPU
GC_THRESHOLD = 20_000


def run_service(name: str, kind: type[Settings], serve: Callable[[Settings], Awaitable[None]]) -> int:
    """Run `serve(settings)` to its end; returns the exit code."""

    async def main() -> None:
        await serve(settings)

    try:
        settings = read_settings(kind)
        setup_logs(settings, name)
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        uvloop.run(main())
    except BaseException as error:
        cause = _first(error)
        if isinstance(cause, ForetellError):
            print(f"{name}: {cause}", file=sys.stderr)
        elif not isinstance(cause, KeyboardInterrupt):
            structlog.get_logger("foretell").critical("a loop ended that must not end", exc_info=error)
        return 1
    return 0


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
