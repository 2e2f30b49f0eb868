"""The WebSocket door: frames of `/v1/stream` to and from one `Stream`.

Speaks ASGI directly: ten frames a second from each of a thousand listeners pass here, and a layer less is felt.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from service.errors import BadMessage, Idle, Internal, failed
from service.logs import log
from service.protocol import CloseCode, Configure, WireError, parse_client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from service.auth import Caller
    from service.protocol import ServerMessage
    from service.server import Server
    from service.stream import Stream

    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

GOODBYE_S = 2.0
"""Time for the last messages to reach a client that may not read any more."""


class Vanished(Exception):
    """The client went without a word."""


async def serve(server: Server, caller: Caller, receive: Receive, send: Send) -> None:
    """Serve an accepted connection, for which a place is reserved, until either side ends it."""
    caller.open += 1
    try:
        stream = server.open(await _configure(server, receive), caller)
    except WireError as error:
        server.engine.cancel()
        await _end(send, [failed(error)], error.code)
    except Vanished:
        server.engine.cancel()
    else:
        with server.tracing.span("session", session=stream.session.id) as span:
            await _run(server, stream, receive, send)
            span.note(outcome=stream.code.wire, audio_s=stream.session.audio_s, detections=stream.session.detections)
    finally:
        caller.open -= 1


async def _configure(server: Server, receive: Receive) -> Configure:
    """The first frame, if it comes in time."""
    limit = server.settings.configure_s
    try:
        async with asyncio.timeout(limit):
            return await _first(receive)
    except TimeoutError:
        raise Idle(f"configure did not come within {limit:g} s") from None


async def _first(receive: Receive) -> Configure:
    """The first frame, which is `configure`."""
    message = await receive()
    if message["type"] == "websocket.disconnect":
        raise Vanished
    if message.get("text") is None:
        raise BadMessage("audio came before configure")
    configure = parse_client(message["text"])
    if not isinstance(configure, Configure):
        raise BadMessage(f"{configure.type} came before configure", "type")
    return configure


async def _run(server: Server, stream: Stream, receive: Receive, send: Send) -> None:
    """Read and write until one of them ends; then say why."""
    reader = asyncio.create_task(_read(stream, receive))
    writer = asyncio.create_task(_write(stream, send))
    outcome = None
    try:
        await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
        reader.cancel()
        there = await _ended(stream, reader)
        stream.finish()
        if there:
            await asyncio.wait((writer,), timeout=GOODBYE_S)
        writer.cancel()
        there = await _ended(stream, writer) and there
        outcome = None if there else "vanished"
    finally:
        last = server.close(stream, outcome)
    if outcome is None:
        await _end(send, last, stream.code)


async def _ended(stream: Stream, task: asyncio.Task[None]) -> bool:
    """Take a task's result into the stream; False if the client vanished."""
    try:
        await task
    except asyncio.CancelledError:
        return True
    except WireError as error:
        stream.fail(error)
    except (Vanished, OSError):
        return False
    except Exception:  # noqa: BLE001 (whatever it is, it ends this stream and no other)
        log.exception("a connection failed", session=stream.session.id)
        stream.fail(Internal("the server made a mistake; it is logged"))
    return True


async def _read(stream: Stream, receive: Receive) -> None:
    """Frames into the stream, until `close`, an error or the client's disappearance."""
    while not stream.closing:
        message = await receive()
        if data := message.get("bytes"):
            await stream.audio(data)
        elif text := message.get("text"):
            stream.tell(parse_client(text))
        elif message["type"] == "websocket.disconnect":
            raise Vanished
        elif message.get("text") is not None:
            raise BadMessage("an empty text frame is no message")
        if stream.error is not None:
            return
    await stream.drained()


async def _write(stream: Stream, send: Send) -> None:
    """Messages out of the stream, until it is over; the last ones are `close`'s."""
    while not stream.over:
        for message in await stream.fetch():
            await send({"type": "websocket.send", "text": message.model_dump_json(exclude_none=True)})


async def _end(send: Send, messages: list[ServerMessage], code: CloseCode) -> None:
    """Say the last words and close; a client that does not listen is not waited for."""
    with suppress(OSError, TimeoutError, RuntimeError):
        async with asyncio.timeout(GOODBYE_S):
            for message in messages:
                await send({"type": "websocket.send", "text": message.model_dump_json(exclude_none=True)})
            await send({"type": "websocket.close", "code": int(code), "reason": code.wire})
