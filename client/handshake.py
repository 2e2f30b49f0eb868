"""From a stream's address to a socket on which audio may be sent, and what it means when there is none.

Knows nothing of what a stream has sent or heard before.
"""

from __future__ import annotations

import asyncio
from typing import Final, Literal
from urllib.parse import urlsplit

from pydantic import ValidationError
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidMessage, InvalidStatus, InvalidURI

from client.address import is_loopback
from client.errors import CannotConnect, StreamFailed
from service.protocol import BadMessage, CloseCode, Configure, Failed, Ready, ServerMessage, parse_server

PATIENCE_S: Final = 10.0
"""Time in which a server must answer the upgrade, and then `configure`, s."""


class NotNow(CannotConnect):
    """No room, or nobody there; later there may be.

    Attributes:
        retry_after: when to ask again, s.
    """

    def __init__(self, message: str, retry_after: float) -> None:
        """Keep when to ask again."""
        super().__init__(message)
        self.retry_after = retry_after


async def dial(url: str, headers: dict[str, str]) -> ClientConnection:
    """Open a socket.

    Raises:
        OSError: nobody answers, or not to the end.
        NotNow: the server has no room.
        CannotConnect: it refuses, or is no server of this kind.
    """
    proxy: Literal[True] | None = None if is_loopback(urlsplit(url).hostname) else True  # the environment's
    try:
        return await connect(
            url,
            additional_headers=headers,
            compression=None,
            max_size=2**22,
            open_timeout=PATIENCE_S,
            proxy=proxy,
        )
    except InvalidStatus as error:
        raise _refusal(url, error) from None
    except InvalidMessage as error:
        if isinstance(error.__cause__, EOFError | OSError):
            raise ConnectionError("the server went away before it answered") from None
        raise CannotConnect(f"{url} is no stream of a deltaspot server: {error}") from None
    except (InvalidURI, InvalidHandshake) as error:
        raise CannotConnect(f"{url} is no stream of a deltaspot server: {error}") from None


async def introduce(socket: ClientConnection, url: str, hello: Configure) -> Ready:
    """Say how the stream shall be; return the server's answer.

    Raises:
        StreamFailed: it does not accept that.
        OSError: it says nothing.
        ConnectionClosed: the connection broke, or the server would rather be asked again.
    """
    failed = None
    try:
        async with asyncio.timeout(PATIENCE_S):
            await socket.send(hello.model_dump_json(exclude_none=True))
            message = parsed(await socket.recv())
            if isinstance(message, Failed):
                failed = message
                await socket.recv()  # the close that follows
    except TimeoutError:
        socket.transport.abort()  # nor would it answer a close
        raise TimeoutError("the server says nothing") from None
    except ConnectionClosed as error:
        if error.rcvd is not None:
            why_closed(error.rcvd.code, error.rcvd.reason, failed)
        raise
    if not isinstance(message, Ready):
        raise StreamFailed(CloseCode.BAD_MESSAGE, f"{url} answers, but not as a deltaspot server does")
    return message


def why_closed(code: int, text: str, failed: Failed | None) -> str:
    """A close and the error told before it -> one sentence on why to try again.

    Raises:
        StreamFailed: if trying again would not help.
    """
    message = failed.message if failed else text or "the server went away"
    known = next((c for c in CloseCode if c == code), None)
    if known is not None and not known.retry:
        raise StreamFailed(known, message, failed.field if failed else None)
    return message


def parsed(text: str | bytes) -> ServerMessage | None:
    """One text frame -> its message, or None for a type of a later version.

    Raises:
        StreamFailed: it is no message.
    """
    try:
        return parse_server(text)
    except BadMessage as error:
        raise StreamFailed(error.code, f"the server sent what this client cannot read: {error}") from None


def told(body: bytes | bytearray) -> str | None:
    """What a server of ours says in the body of a refusal; None if it is another's."""
    try:
        return Failed.model_validate_json(body, extra="ignore").message
    except ValidationError:
        return None


def _refusal(url: str, error: InvalidStatus) -> CannotConnect:
    """An HTTP status in place of the upgrade -> what to tell, and whether to try again."""
    status, headers = error.response.status_code, error.response.headers
    if status in {429, 502, 503, 504}:  # 502 and 504 are a proxy's, while no server stands behind it
        reason = told(error.response.body or b"") or "there is no room for another stream now"
        return NotNow(f"{url}: {reason} (HTTP {status})", _seconds(headers.get("Retry-After")))
    why = {
        401: "the key is missing or wrong",
        403: "this key or origin may not stream, or the path is not /v1/stream",
        404: "there is no stream here",
        426: "the upgrade to a WebSocket was lost; a proxy must pass the headers Upgrade and Connection on",
    }
    return CannotConnect(f"{url} refuses: {why.get(status, 'HTTP')} ({status})")


def _seconds(retry_after: str | None) -> float:
    """Retry-After in seconds; a proxy may send a date, or nothing, and then it is one second."""
    return float(retry_after) if retry_after and retry_after.isdecimal() else 1.0
