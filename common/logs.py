"""Logs: one JSON object a line on stderr, or readable lines on a terminal. uvicorn's own lines come the same way."""

import logging
import sys

import structlog
from structlog.types import Processor

from common.settings import CommonSettings


def setup_logs(settings: CommonSettings, service: str) -> structlog.stdlib.BoundLogger:
    """Route structlog and the standard library to stderr; returns the service's logger."""
    console = settings.log_format == "console" or (settings.log_format is None and sys.stderr.isatty())
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
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
    logger: structlog.stdlib.BoundLogger = structlog.get_logger("foretell").bind(service=service)
    return logger
