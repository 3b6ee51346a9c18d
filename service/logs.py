"""Structured logs to standard error, for a terminal or as one JSON object per line. Never image bytes, never keys."""

import sys
from typing import Literal

import structlog


def configure(form: Literal["console", "json"]) -> None:
    """Set up structlog for the process."""
    renderer: structlog.typing.Processor
    if form == "json":
        renderer = structlog.processors.JSONRenderer()
        exceptions: list[structlog.typing.Processor] = [structlog.processors.format_exc_info]
    else:
        # Plain: the pretty formatter prints the locals of every frame, and keys and images are among them.
        plain = structlog.dev.plain_traceback
        renderer, exceptions = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain), []
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            *exceptions,
            renderer,
        ],
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def to_stderr() -> None:
    """For commands, whose output is on standard output."""
    structlog.configure(logger_factory=lambda *_: structlog.PrintLogger(sys.stderr))
