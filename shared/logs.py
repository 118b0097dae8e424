"""Logs: one line per step, coloured on a terminal, JSON anywhere else."""

import functools
import logging
import sys
from typing import TextIO

import structlog
from structlog.typing import EventDict

from shared.settings import Common


def configure(settings: Common, service: str, stream: TextIO | None = None) -> None:
    """Sends structlog's lines to `stream` (standard error), each with the service's name."""
    target = stream or sys.stderr
    pretty = settings.log == "console" or (settings.log == "auto" and target.isatty())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            functools.partial(_name, service),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=not pretty),
            structlog.processors.StackInfoRenderer(),
            *(
                [structlog.dev.ConsoleRenderer()]
                if pretty
                else [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
            ),
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, settings.log_level.upper())),
        logger_factory=structlog.PrintLoggerFactory(target),
        cache_logger_on_first_use=True,
    )
    # Drivers log the same failures that their exceptions carry to us; only what nobody raises is of use.
    logging.basicConfig(stream=target, level=logging.CRITICAL, force=True)


def _name(service: str, _logger: object, _method: str, line: EventDict) -> EventDict:
    """Every line says which service wrote it, whatever thread it comes from (context variables would not)."""
    line.setdefault("service", service)
    return line
