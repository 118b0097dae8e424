"""Logs: one line per step, colored on a terminal, JSON anywhere else."""

import functools
import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict, Processor

from shared.process.settings import Common
from shared.text import plain


def configure(settings: Common, service: str, stream: TextIO | None = None) -> None:
    """Sends structlog's lines to `stream` (standard error), each with the service's name."""
    target = stream or sys.stderr
    pretty = settings.log == "console" or (settings.log == "auto" and target.isatty())
    last: list[Processor] = [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    if pretty:
        last = [_only_shown, structlog.dev.ConsoleRenderer()]
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            functools.partial(_name, service),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=not pretty),
            structlog.processors.StackInfoRenderer(),
            *last,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(target),
        cache_logger_on_first_use=True,
    )
    # Drivers log the same failures that their exceptions carry, so only their critical messages are shown.
    logging.basicConfig(stream=target, level=logging.CRITICAL, force=True)


def _name(service: str, _logger: object, _method: str, line: EventDict) -> EventDict:
    """Adds the service's name to a line from any thread; context variables would not reach all threads."""
    line.setdefault("service", service)
    return line


def _only_shown(_logger: object, _method: str, line: EventDict) -> EventDict:
    """Makes a line safe for a terminal, because parts of it come from messages or the bucket; JSON escapes them."""
    return {name: plain(value) if isinstance(value, str) else value for name, value in line.items()}
