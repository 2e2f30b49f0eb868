"""The WebSocket door: frames of `/v1/stream` to and from one `Stream`.

Ten frames a second from each of a thousand listeners pass here, and a layer less is felt: a `Link` takes them from our
own kind of socket, without tasks and queues. Under another ASGI server, two tasks do the same.
"""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from service.errors import BadMessage, Idle, Internal, failed
from service.logs import log
from service.protocol import CloseCode, Configure, WireError, encode, parse_client

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, MutableMapping

    from service.auth import Caller
    from service.protocol import ServerMessage
    from service.server import Server
    from service.sockets import Socket
    from service.stream import Stream

    Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
    Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

GOODBYE_S = 2.0
"""Time for the last messages to reach a client that may not read any more."""


def _nothing() -> None:
    """No callback."""


class Vanished(Exception):
    """The client went without a word."""


async def serve(server: Server, caller: Caller, receive: Receive, send: Send, socket: Socket | None) -> None:
    """Serve an accepted connection, for which a place is reserved, until either side ends it.

    Args:
        server: where.
        caller: on whose behalf.
        receive: frames, as ASGI has them.
        send: likewise.
        socket: the connection itself, if the web server is ours; then frames come past `receive` and `send`.
    """
    caller.open += 1
    try:
        stream = await _opened(server, caller, receive)
    except Vanished:
        pass
    except WireError as error:
        server.turned_away(error)
        await _end(send, [failed(error)], error.code)
    else:
        await _run(server, stream, receive, send, socket)
    finally:
        caller.open -= 1


async def _opened(server: Server, caller: Caller, receive: Receive) -> Stream:
    """A stream in the place that was reserved; the place is given back if there is none, whatever the reason."""
    try:
        return server.open(await _configure(server, receive), caller)
    except BaseException as error:
        server.engine.places.cancel()
        if not isinstance(error, Exception) or isinstance(error, WireError | Vanished):
            raise
        log.error("a stream could not be opened", exc_info=error)
        raise Internal("the server made a mistake; it is logged") from None


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


async def _run(server: Server, stream: Stream, receive: Receive, send: Send, socket: Socket | None) -> None:
    """Read and write until one side ends it; then say why."""
    there = False  # nor is it told anything where the server itself ends in its midst
    try:
        there = await (_relay(stream, receive, send) if socket is None else Link(stream, socket).run())
    finally:
        last = server.close(stream, None if there else "vanished")
    if there:
        await _end(send, last, stream.code)


class Link:
    """A stream on our own kind of socket: everything happens within the call that brings a frame or a verdict."""

    def __init__(self, stream: Stream, socket: Socket) -> None:
        self._stream, self._socket = stream, socket
        self._ended: asyncio.Future[bool] = asyncio.get_running_loop().create_future()

    async def run(self) -> bool:
        """Go on until the stream is over; return whether the client is still there."""
        self._stream.on_change = self.writable
        try:
            self._socket.attach(self)
            self.writable()
            return await self._ended
        finally:
            self._stream.on_change = _nothing
            self._socket.detach()

    def audio(self, data: bytes) -> None:
        """See `service.sockets.Receiver`."""
        if self._over:
            return
        try:
            self._stream.take(data)
        except Exception as error:  # noqa: BLE001 (whatever it is, it ends this stream and no other)
            self._stream.blame(error)
        if self._stream.full:
            self._socket.pause()

    def text(self, data: bytes) -> None:
        """See `service.sockets.Receiver`."""
        if self._over:
            return
        try:
            self._stream.tell(parse_client(data))
        except Exception as error:  # noqa: BLE001 (as above)
            self._stream.blame(error)
        if self._stream.closing:
            self.writable()

    def gone(self) -> None:
        """See `service.sockets.Receiver`."""
        self._end(there=False)

    def writable(self) -> None:
        """Write what there is, if the peer reads; read on, if there is room; see whether this is the end."""
        stream, socket = self._stream, self._socket
        if stream.outbox and socket.open:
            messages, stream.outbox = stream.outbox, []
            socket.write([encode(message) for message in messages])
        if stream.over or (stream.closing and not stream.slot.pending):
            self._end(there=True)
        elif socket.read_paused and not stream.full:
            socket.resume()

    @property
    def _over(self) -> bool:
        return self._stream.closing or self._stream.over

    def _end(self, *, there: bool) -> None:
        if not self._ended.done():
            self._ended.set_result(there)


async def _relay(stream: Stream, receive: Receive, send: Send) -> bool:
    """A stream under any other ASGI server; return whether the client is still there when it is over."""
    reader = asyncio.create_task(_read(stream, receive))
    writer = asyncio.create_task(_write(stream, send))
    await asyncio.wait((reader, writer), return_when=asyncio.FIRST_COMPLETED)
    reader.cancel()
    there = await _ended(stream, reader)
    stream.finish()
    if there:
        await asyncio.wait((writer,), timeout=GOODBYE_S)
    writer.cancel()
    return await _ended(stream, writer) and there


async def _ended(stream: Stream, task: asyncio.Task[None]) -> bool:
    """Take a task's result into the stream; False if the client vanished."""
    try:
        await task
    except asyncio.CancelledError:
        return True
    except (Vanished, OSError):
        return False
    except Exception as error:  # noqa: BLE001 (whatever it is, it ends this stream and no other)
        stream.blame(error)
    return True


async def _read(stream: Stream, receive: Receive) -> None:
    """Frames into the stream, until `close`, an error or the client's disappearance."""
    while not stream.closing:
        message = await receive()
        if (data := message.get("bytes")) is not None:
            await stream.audio(data)
        elif (text := message.get("text")) is not None:
            stream.tell(parse_client(text))
        elif message["type"] == "websocket.disconnect":
            raise Vanished
        if stream.error is not None:
            return
    await stream.drained()


async def _write(stream: Stream, send: Send) -> None:
    """Messages out of the stream, until it is over; the last ones are `close`'s."""
    while not stream.over:
        for message in await stream.fetch():
            await send({"type": "websocket.send", "text": encode(message).decode()})


async def _end(send: Send, messages: list[ServerMessage], code: CloseCode) -> None:
    """Say the last words and close; a client that does not listen is not waited for."""
    with suppress(OSError, TimeoutError, RuntimeError):
        async with asyncio.timeout(GOODBYE_S):
            for message in messages:
                await send({"type": "websocket.send", "text": encode(message).decode()})
            await send({"type": "websocket.close", "code": int(code), "reason": code.wire})
