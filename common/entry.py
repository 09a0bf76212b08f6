"""How a service process begins and ends: settings, logs, an event loop, signals, and one line instead of a traceback
for what a person can mend. Exit code 0 after a stop that was asked for, 1 otherwise."""

import asyncio
import contextlib
import gc
import resource
import signal
import sys
from collections.abc import Callable, Coroutine
from typing import Any

import structlog
import uvloop

from common.errors import ForetellError, StartFault
from common.logs import on_console, setup_logs
from common.misspelt import misspelt
from common.settings import CommonSettings, Settings, ignored_options, read_settings, settings_of_logs

# Python's default of 700 new objects has a busy gateway collect garbage some fifty times a second, for 5 % of its CPU
GC_THRESHOLD = 20_000


#: `serve(settings, stop)` runs until `stop` is set or something ends it, drains, and returns.
Serve = Callable[[Settings, asyncio.Event], Coroutine[Any, Any, None]]


def run_service(name: str, kind: type[Settings], serve: Serve[Settings]) -> int:
    """Run `serve` to its end; returns the exit code. The first SIGTERM or SIGINT sets `stop`, more change nothing."""

    async def main() -> None:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        # not by the loop, whose end would give SIGTERM back its default action, the death of the process
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda *_: loop.call_soon_threadsafe(stop.set))
        try:
            await serve(settings, stop)
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_IGN)  # so would the end of Python

    try:
        settings = read_settings(kind)
    except StartFault as fault:
        _say_last(settings_of_logs(), name, fault)
        return 1
    try:
        setup_logs(settings, name)
        _doubt(settings)
        _allow_many_files()
        gc.freeze()
        gc.set_threshold(GC_THRESHOLD)
        uvloop.run(main())
    except BaseException as error:
        cause = _first(error)
        if isinstance(cause, ForetellError):
            _say_last(settings, name, cause)
        elif not isinstance(cause, KeyboardInterrupt):
            structlog.get_logger("foretell").critical("a loop ended that must not end", exc_info=error)
        return 1
    return 0


async def stop_or_end(stop: asyncio.Event, work: asyncio.Task[None]) -> None:
    """Wait until a stop is asked for or `work` has ended, whichever comes first."""
    stopping = asyncio.create_task(stop.wait(), name="stop")
    try:
        await asyncio.wait({work, stopping}, return_when=asyncio.FIRST_COMPLETED)
    finally:
        stopping.cancel()


def open_files_limit() -> int:
    """How many files, sockets included, this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def _say_last(settings: CommonSettings, name: str, fault: ForetellError) -> None:
    """The one line: readable where a person reads, else a line like all others, which no pipeline loses."""
    if on_console(settings):
        print(f"{name}: {fault}", file=sys.stderr)
    else:
        setup_logs(settings, name)
        structlog.get_logger("foretell").critical(str(fault))


def _doubt(settings: CommonSettings) -> None:
    """Say what was given and is not heeded."""
    log = structlog.get_logger("foretell")
    for name, near in misspelt(type(settings)).items():
        log.warning(f"{name} is no setting and is ignored: did you mean {near}?")
    if ignored := ignored_options(settings):
        log.warning(f"REDIS_URL has options that Foretell sets itself and ignores: {', '.join(ignored)}.")


def _allow_many_files() -> None:
    """As many as an unprivileged process may give itself; shells start with 1024, for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):  # macOS calls its limit infinite and refuses it
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _first(error: BaseException) -> BaseException:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
