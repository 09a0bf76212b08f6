"""Logs: one JSON object a line on stderr, or readable lines on a terminal. What libraries log comes the same way."""

import json
import logging
import sys
from typing import Any

import orjson
import structlog
from structlog.types import EventDict, Processor

from common.settings import CommonSettings


def setup_logs(settings: CommonSettings, service: str) -> None:
    """Route structlog, warnings and the standard library's logging to stderr; every line names the service.

    Our own lines do not pass through `logging`, which would more than double what an access log costs.
    """

    def name(logger: Any, method: str, line: EventDict) -> EventDict:
        line["service"] = service
        return line

    console = on_console(settings)
    level = getattr(logging, settings.log_level.upper())
    shared: list[Processor] = [
        name,
        structlog.processors.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
    ]
    last: list[Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer(_json)]
    )
    structlog.configure(
        processors=[*shared, *last],
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *last],
        )
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
    logging.getLogger("uvicorn").setLevel(max(level, logging.WARNING))
    logging.captureWarnings(True)


def on_console(settings: CommonSettings) -> bool:
    """Whether lines are for a person who reads them as they come."""
    return settings.log_format == "console" or (settings.log_format is None and sys.stderr.isatty())


def _json(line: EventDict, **_: Any) -> str:
    try:
        return orjson.dumps(line, default=str).decode()
    except TypeError:  # half a surrogate pair, or a number of more than 64 bits
        return json.dumps(line, default=str)
