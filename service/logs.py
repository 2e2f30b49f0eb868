"""What the process writes to standard error: one JSON object a line, and one canonical line for each stream and clip.

Every line written while somebody is served says who, by `bound_contextvars` at the doors. Bytes never reach a line:
audio is no log. Knows no sessions, settings or metrics.
"""

from __future__ import annotations

import logging
import sys
from typing import TYPE_CHECKING, Any, TextIO

import structlog

if TYPE_CHECKING:
    from collections.abc import MutableMapping

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("deltaspot")


def configure(*, pretty: bool = False, stream: TextIO | None = None) -> None:
    """Send the process's log lines, those of libraries too, to one stream in one form, from `info` on.

    Args:
        pretty: lines for a person at a terminal instead of JSON.
        stream: where to, standard error if left out.
    """
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        without_colours,
        structlog.processors.TimeStamper(fmt="iso", utc=True, key="time"),
        structlog.processors.format_exc_info,
        without_bytes,
    ]
    form: list[structlog.typing.Processor] = [structlog.processors.JSONRenderer(default=str)]
    if pretty:
        form = [visible, structlog.dev.ConsoleRenderer()]
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *form],
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.INFO)
    for name in ("uvicorn", "uvicorn.error"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    logging.captureWarnings(True)
    # The canonical lines say more than the access log and a line for each connection would.
    logging.getLogger("uvicorn.access").disabled = True
    logging.getLogger("uvicorn.error").addFilter(not_chatter)
    structlog.configure(
        processors=[*shared, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        wrapper_class=structlog.stdlib.BoundLogger,
        logger_factory=structlog.stdlib.LoggerFactory(),
    )


def not_chatter(record: logging.LogRecord) -> bool:
    """Keep a line, unless it tells of one WebSocket coming or going, or calls our refusal a mistake."""
    refusal = str(record.msg).startswith("ASGI callable returned without completing handshake")
    return "websockets" not in record.pathname or (record.levelno >= logging.WARNING and not refusal)


def without_colours(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Drop the message that uvicorn adds for a terminal, which is the same again."""
    event.pop("color_message", None)
    return event


def without_bytes(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Put a length in the place of binary data."""
    for key, value in event.items():
        if isinstance(value, bytes | bytearray | memoryview):
            event[key] = f"<{len(value)} bytes>"
    return event


def visible(_logger: object, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Write out what others sent that would move a terminal's cursor, or worse; a traceback keeps its lines."""
    for key, value in event.items():
        if isinstance(value, str):
            lines = value.split("\n") if key == "exception" else [value]
            event[key] = "\n".join("".join(map(_shown, line)) for line in lines)
    return event


def _shown(letter: str) -> str:
    return letter if letter.isprintable() else letter.encode("unicode_escape").decode()
