"""The log: structured, one line an event, without secrets, each line of bounded length.

Under systemd every line is JSON on standard output with the journal's priority in front (sd-daemon(3)), so that
`journalctl -p warning` works; elsewhere it is text for people on standard error. What other libraries say through
`logging` goes the same way.
"""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Mapping, MutableMapping
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from barnsightd.config.address import mask as mask_address

MAX_TEXT = 4096
MAX_ENTRIES = 64
MAX_DEPTH = 4
MASK = "***"

_ASSIGNED = re.compile(
    r"(?P<name>\b(?:password|passwd|user-pw)['\"]?\s*[=:]\s*)(?P<value>\"[^\"]*\"|'[^']*'|[^\s,;&]+)",
    re.IGNORECASE,
)
_AUTHORIZATION = re.compile(r"(?P<name>\bauthorization\s*[=:]\s*(?:basic|digest|bearer)\s+)[^\r\n]+", re.IGNORECASE)
_SECRET_KEY = re.compile(r"password|passwd|user_pw|secret|token|api_?key|authorization", re.IGNORECASE)
_PRIORITIES = {"critical": 2, "error": 3, "warning": 4, "info": 6, "debug": 7}


def configure_logs(level: str = "info", json: bool | None = None) -> None:
    """Set up all logging of the process; `json` None chooses JSON where systemd's journal listens."""
    journal = _goes_to_journal(sys.stdout)
    as_json = journal if json is None else json
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.StackInfoRenderer(),
        structlog.processors.format_exc_info,
        mask_event,
    ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            structlog.stdlib.PositionalArgumentsFormatter(),
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler = logging.StreamHandler(sys.stdout if as_json else sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *(_json_renderer(with_priority=journal) if as_json else _console_renderer()),
            ],
        )
    )
    logging.captureWarnings(True)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())


def mask(text: str) -> str:
    """Replace credentials in URLs, assignments and authorization headers by `***`, and cut very long text."""
    # Cut twice: before, since time has a bound too; and after, so that no secret is left at an end without its @.
    masked = _AUTHORIZATION.sub(rf"\g<name>{MASK}", mask_address(text[: 4 * MAX_TEXT]))
    masked = _ASSIGNED.sub(rf"\g<name>{MASK}", masked)
    if len(masked) <= MAX_TEXT:
        return masked
    return f"{masked[:MAX_TEXT]}… (cut from {len(text)} characters)"


def mask_event(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Mask every value of an event, however deep: the structlog processor."""
    masked: MutableMapping[str, Any] = _masked(event, MAX_DEPTH)
    return masked


def _masked(value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if depth and isinstance(value, Mapping):
        entries = list(value.items())[:MAX_ENTRIES]
        # Keys that begin with an underscore are structlog's own and never rendered.
        return {
            key: entry
            if str(key).startswith("_")
            else MASK
            if _SECRET_KEY.search(str(key))
            else _masked(entry, depth - 1)
            for key, entry in entries
        }
    if depth and isinstance(value, list | tuple | set | frozenset):
        return [_masked(entry, depth - 1) for entry in list(value)[:MAX_ENTRIES]]
    return mask(str(value))


def _goes_to_journal(stream: TextIO) -> bool:
    """Whether this very stream is the one that systemd connected to the journal, as sd-daemon(3) asks to check."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return False
    return os.environ.get("JOURNAL_STREAM") == f"{found.st_dev}:{found.st_ino}"


def _console_renderer() -> list[Processor]:
    plain = structlog.dev.plain_traceback
    return [structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), exception_formatter=plain)]


def _json_renderer(*, with_priority: bool) -> list[Processor]:
    render = structlog.processors.JSONRenderer(ensure_ascii=False)

    def prioritized(logger: WrappedLogger, method: str, event: EventDict) -> str:
        priority = _PRIORITIES.get(str(event.get("level")), 6)
        return f"<{priority}>{render(logger, method, event)!s}"

    return [prioritized if with_priority else render]
