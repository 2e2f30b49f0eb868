"""What the process writes to standard error: one JSON object a line, and one canonical line for each stream and clip.

Every line written while a request is served carries its `request_id`, which the response repeats in `X-Request-ID`.
Bytes never reach a line: audio is no log. Knows no sessions, settings or metrics.
"""

from __future__ import annotations

import logging
import re
import sys
import uuid
from typing import TYPE_CHECKING, Any, TextIO

import structlog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping
    from contextlib import AbstractContextManager

    Message = MutableMapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[Message], Awaitable[None]]
    App = Callable[[Message, Receive, Send], Awaitable[None]]

HEADER = b"x-request-id"
ACCEPTABLE = re.compile(rb"[A-Za-z0-9._-]{1,64}")
"""A request id that a client may bring along; anything else is replaced, for logs are read by machines."""

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("deltaspot")


def configure(level: str = "info", *, pretty: bool = False, stream: TextIO | None = None) -> None:
    """Send the process's log lines, those of libraries too, to one stream in one form.

    Args:
        level: least severe level written: debug, info, warning, error.
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
    renderer = structlog.dev.ConsoleRenderer() if pretty else structlog.processors.JSONRenderer(default=str)
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
    )
    handler = logging.StreamHandler(stream or sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
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


def session_ended(session: str, outcome: str, **totals: float | str) -> None:
    """Write the one line that tells a whole stream.

    Args:
        session: id of the stream.
        outcome: why it ended, a name of `service.metrics.OUTCOMES`.
        totals: the stream in numbers, in the words of the protocol's `closed.totals`.
    """
    log.info("session", session=session, outcome=outcome, **totals)


def clip_ended(outcome: str, **totals: float | str) -> None:
    """Write the one line that tells a whole recording sent over REST.

    Args:
        outcome: judged, refused or failed.
        totals: the recording in numbers, or why it was refused.
    """
    log.info("clip", outcome=outcome, **totals)


def refused(reason: str, message: str, path: str, peer: tuple[str, int] | None) -> None:
    """Write the line of somebody who was turned away at the door, so that an attack has an address."""
    log.info("refused", reason=reason, message=message, path=path, peer=peer[0] if peer else None)


def called_by(name: str) -> AbstractContextManager[None]:
    """Within this, every line carries the name of the key on whose behalf something happens."""
    return structlog.contextvars.bound_contextvars(caller=name)


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


class RequestIds:
    """ASGI middleware: names every request and upgrade, in its log lines and in its answer."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection under its id."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        name = request_id(scope["headers"])

        async def named(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.accept", "websocket.http.response.start"}:
                message["headers"] = [*message.get("headers", ()), (HEADER, name.encode())]
            await send(message)

        with structlog.contextvars.bound_contextvars(request_id=name):
            await self._app(scope, receive, named)


def request_id(headers: list[tuple[bytes, bytes]]) -> str:
    """The id that a client brought along if it is acceptable, a new one otherwise."""
    brought = dict(headers).get(HEADER, b"")
    return brought.decode() if ACCEPTABLE.fullmatch(brought) else uuid.uuid4().hex
