"""What lies between every request and the application: its name, headers for browsers, patience with long bodies."""

from __future__ import annotations

import asyncio
import re
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Final

from structlog.contextvars import bound_contextvars

from service.logs import log

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Send
    from starlette.types import Scope as Connection

POLICY: Final = {
    "Content-Security-Policy": "default-src 'self'; connect-src 'self' ws: wss:; img-src 'self' data:; "
    "object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Permissions-Policy": "microphone=(self), camera=(), geolocation=()",
    "Cache-Control": "no-cache",  # ask each time, or modules of two versions meet in one page
}
HEADER: Final = b"x-request-id"
ACCEPTABLE: Final = re.compile(rb"[A-Za-z0-9._-]{1,64}")
"""A request id that a client may bring along; anything else is replaced, for logs are read by machines."""
LINGER_S: Final = 5.0
"""For how long a client that was answered may go on sending its request."""


class Mistakes:
    """Answers a request that ends in an exception of ours, where the layers around it can still add their headers."""

    def __init__(self, app: ASGIApp, confess: ASGIApp) -> None:
        self._app, self._confess = app, confess

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        begun = scope["type"] != "http"

        async def answered(message: Message) -> None:
            nonlocal begun
            begun = True
            await send(message)

        try:
            await self._app(scope, receive, answered)
        except Exception as error:
            if begun:
                raise
            log.error("a request failed", exc_info=error)
            await self._confess(scope, receive, send)


class SecurityHeaders:
    """Puts what browsers must not do into every HTTP answer."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._headers = [(name.lower().encode(), value.encode()) for name, value in POLICY.items()]

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Serve one connection."""

        async def secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], *self._headers]
            await send(message)

        await self._app(scope, receive, secured if scope["type"] == "http" else send)


class Lingering:
    """Reads away what still comes of a request that is answered early.

    Bytes unread at the close reset the connection, and the answer is lost with it.
    """

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Serve one connection."""
        more = True

        async def heard() -> Message:
            nonlocal more
            message = await receive()
            more = message.get("more_body", False)
            return message

        async def answered(message: Message) -> None:
            if more and message["type"] == "http.response.body" and not message.get("more_body", False):
                await send({**message, "more_body": True})
                with suppress(TimeoutError):
                    async with asyncio.timeout(LINGER_S):
                        while more:
                            await heard()
                message = {"type": "http.response.body"}
            await send(message)

        await (self._app(scope, heard, answered) if scope["type"] == "http" else self._app(scope, receive, send))


LINE: Final = "deltaspot.line"
"""Where what all lines of a request say is found in its ASGI scope."""


class RequestIds:
    """Names every request and upgrade, in its answer and its log lines, which also say where from and where to."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Connection, receive: Receive, send: Send) -> None:
        """Serve one connection under its id."""
        if scope["type"] not in {"http", "websocket"}:
            await self._app(scope, receive, send)
            return
        name = request_id(scope["headers"])

        async def named(message: Message) -> None:
            if message["type"] in {"http.response.start", "websocket.accept", "websocket.http.response.start"}:
                message["headers"] = [*message.get("headers", ()), (HEADER, name.encode())]
            await send(message)

        peer = scope["client"][0] if scope.get("client") else None
        line = scope[LINE] = {"request_id": name, "peer": peer, "path": scope["path"]}
        with bound_contextvars(**line):
            await self._app(scope, receive, named)


def request_id(headers: list[tuple[bytes, bytes]]) -> str:
    """The id that a client brought along if it is acceptable, a new one otherwise."""
    brought = dict(headers).get(HEADER, b"")
    return brought.decode() if ACCEPTABLE.fullmatch(brought) else uuid.uuid4().hex
