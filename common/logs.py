"""Logs: one JSON object a line on stderr, or readable lines on a terminal. uvicorn's own lines come the same way."""

import logging
import sys
from typing import Any

import structlog
from structlog.types import EventDict, Processor

from common.settings import CommonSettings


def setup_logs(settings: CommonSettings, service: str) -> None:
    """Route structlog, warnings and the standard library's logging to stderr; every line names the service."""

    def name(logger: Any, method: str, line: EventDict) -> EventDict:
        line["service"] = service
        return line

    console = settings.log_format == "console" or (settings.log_format is None and sys.stderr.isatty())
    shared: list[Processor] = [
        name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="%H:%M:%S" if console else "iso", utc=not console),
    ]
    last: list[Processor] = (
        [structlog.dev.ConsoleRenderer()]
        if console
        else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
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
    root.setLevel(settings.log_level.upper())
    logging.getLogger("uvicorn").setLevel(max(root.level, logging.WARNING))
    logging.captureWarnings(True)
