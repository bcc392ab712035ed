"""What every test shares."""

from __future__ import annotations

import structlog


def pytest_configure() -> None:
    """Log exceptions as plain tracebacks: structlog draws them with every local variable, which takes seconds."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.dev.ConsoleRenderer(colors=False, exception_formatter=structlog.dev.plain_traceback),
        ]
    )
