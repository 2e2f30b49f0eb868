"""uvicorn's HTTP and WebSocket with the changes that a thousand listeners and a hostile one ask for. Knows no streams.

Whole, ordinary frames are cut out here and handed to a `Receiver` in the same call, ten a second from each of a
thousand peers, without a task, a queue or an event loop's turn between them. Everything else (the upgrade, fragments,
control frames, whatever breaks RFC 6455) is left to the library, one whole frame at a time.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Protocol

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol
from websockets.frames import apply_mask

if TYPE_CHECKING:
    import asyncio

    from uvicorn._types import ASGIReceiveEvent
    from websockets.http11 import Request

EXTENSION = "deltaspot.socket"
"""Where an application finds its `Socket` among the ASGI scope's extensions; absent under another server."""
OFFER = re.compile(rb"\r\nUpgrade:(?! *websocket *(\r|$))", re.IGNORECASE)
"""Begins the line of a request's head that offers another protocol, such as HTTP/2."""
TURN = 64
"""Frames of one connection that are taken at a time: whoever sends thousands of tiny ones shall not hold up others."""
AHEAD = 8
"""Frames read ahead of the application before reading pauses; uvicorn pauses and resumes for every single one."""
LINGER_S = 3.0
"""Time in which a peer must have read the last bytes; one that never reads would hold its socket for ever."""
TEXT, BINARY = 0x81, 0x82
ORDINARY = {TEXT, BINARY}
"""First bytes of whole, ordinary frames."""
FINAL, RESERVED, CONTROL, MASKED = 0x80, 0x70, 0x08, 0x80


class Door(HttpToolsProtocol):
    """One connection before it is a WebSocket; uvicorn itself would wait for a request's last line for ever."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Expect a request."""
        super().connection_made(transport)
        self._expect()

    def data_received(self, data: bytes) -> None:
        """Take a request; the parser would stop at the head of one that offers another protocol than WebSocket."""
        if not self._late.cancelled():
            head, end, body = data.partition(b"\r\n\r\n")
            data = OFFER.sub(b"\r\nDeclined:", head) + end + body
        super().data_received(data)

    def on_headers_complete(self) -> None:
        """A request has come; its answer may take its time."""
        self._late.cancel()
        super().on_headers_complete()

    def on_response_complete(self) -> None:
        """Expect the next request, unless it is here."""
        waiting = bool(self.pipeline)
        super().on_response_complete()
        if not waiting:
            self._expect()

    def handle_websocket_upgrade(self) -> None:
        """The connection is somebody else's from now on, unless an earlier request is still to be answered on it."""
        if self.pipeline or not getattr(self.cycle, "response_complete", True):
            self.send_400_response("An upgrade has to wait for the answer before it.")
            return
        super().handle_websocket_upgrade()
        self.parser = None  # type: ignore[assignment]  # its methods are this door's

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over."""
        self._late.cancel()
        super().connection_lost(exc)
        del self._late  # it knows the transport, which knows this

    def _expect(self) -> None:
        self._late = self.loop.call_later(self.timeout_keep_alive, self.transport.abort)


class Receiver(Protocol):
    """Who takes a connection's messages as they come; nothing here may raise."""

    def audio(self, data: bytes) -> None:
        """A binary message."""

    def text(self, data: bytes) -> None:
        """A text message, which need not be UTF-8."""

    def writable(self) -> None:
        """The peer reads again."""

    def gone(self) -> None:
        """The connection is over."""


class Socket(WebSocketsSansIOProtocol):
    """One connection."""

    def __init__(self, *arguments: Any, **options: Any) -> None:  # noqa: ANN401 (uvicorn's own)
        super().__init__(*arguments, **options)
        self._receiver: Receiver | None = None
        self._held, self._needed = bytearray(), 0
        self._fragmented = self._deaf = False
        self._extensions: dict[str, Any] = {}

    # --- for the application

    def attach(self, receiver: Receiver) -> None:
        """Hand messages to a receiver from now on, those that wait for `receive` first."""
        self._receiver = receiver
        while not self.queue.empty():
            message: Any = self.queue.get_nowait()
            if message["type"] == "websocket.disconnect":
                receiver.gone()
            elif (data := message.get("bytes")) is not None:
                receiver.audio(data)
            else:
                receiver.text(message["text"].encode())
        self.resume()

    def detach(self) -> None:
        """Let messages wait for `receive` again."""
        self._receiver = None
        self.resume()

    def pause(self) -> None:
        """Read and hand over nothing for now."""
        if not self.read_paused:
            self.read_paused = True
            self.transport.pause_reading()

    def resume(self) -> None:
        """Go on with what came before the pause, and read on when that is done."""
        if self.read_paused and not self.transport.is_closing():
            self.read_paused = False
            self.loop.call_soon(self._go_on)

    @property
    def open(self) -> bool:
        """Whether messages may be written: the peer is there, reads, and was not told that this is the end."""
        return not (self.close_sent or self.transport.is_closing()) and self.writable.is_set()

    def write(self, texts: list[bytes]) -> None:
        """Send text messages; only while `open`."""
        self.transport.write(b"".join([part for text in texts for part in (_head(len(text)), text)]))

    async def receive(self) -> ASGIReceiveEvent:
        """The next message for the application; without this, what came before a pause would stay behind."""
        message = await self.queue.get()
        if self.queue.empty():
            self.resume()
        return message

    # --- from the network

    def handle_connect(self, event: Request) -> None:
        """Answer the upgrade; the application will find this socket in its scope."""
        super().handle_connect(event)
        if not self.close_sent:
            self._extensions = {**self.scope["extensions"], EXTENSION: self}
            self.scope["extensions"] = self._extensions

    def data_received(self, data: bytes) -> None:
        """Take the upgrade's request, then frames in any split."""
        if not self.handshake_initiated:
            super().data_received(data)
            if self.conn.handshake_exc is not None:
                self._decline()
            return
        if self._deaf:
            return
        if self._held:
            self._held += data
            if len(self._held) < self._needed:
                return
            data = bytes(self._held)
            self._held.clear()
        at, size, taken = 0, len(data), 0
        while at < size:
            begin, end = _extent(data, at)
            if not end or (end > size and self._acceptable(data, at, end - begin)):
                self._hold(data[at:], end - at)
                return
            at, taken = self._frame(data, at, begin, end), taken + 1
            if taken == TURN and at < size and not self.read_paused:
                self._deaf = self.close_sent  # who says this much after the end is heard no further
                self.pause()
                self.loop.call_soon(self.resume)
            if self.read_paused and (self._receiver is not None or taken == TURN or not self.writable.is_set()):
                self._hold(data[at:], 0)
                return

    def _frame(self, data: bytes, at: int, begin: int, end: int) -> int:
        """Take one frame; return where the next one begins."""
        head = data[at]
        acceptable = self._acceptable(data, at, end - begin)
        if head not in ORDINARY or self._fragmented or not acceptable:
            end = end if acceptable else len(data)
            if not head & CONTROL:
                self._fragmented = not head & FINAL
            elif not self.writable.is_set():
                self.pause()  # it asks for answers that it does not read
            super().data_received(data[at:end])
            if self.transport.is_closing():
                self._end()
                return len(data)
            return end
        self.curr_msg_data_type = "bytes" if head == BINARY else "text"
        self.frames = [apply_mask(data[begin:end], data[begin - 4 : begin])]
        self.send_receive_event_to_app()
        return end

    def _acceptable(self, data: bytes, at: int, length: int) -> bool:
        """Whether a frame is worth waiting for; the library says what is wrong with others by their head alone."""
        return data[at + 1] & MASKED != 0 and not data[at] & RESERVED and length <= self.config.ws_max_size

    def _hold(self, rest: bytes, needed: int) -> None:
        """Keep bytes until there are as many as are needed."""
        self._held += rest
        self._needed = max(needed, len(rest) + 1)

    def send_receive_event_to_app(self) -> None:
        """Hand over a whole message, or queue it; reading goes on until `AHEAD` of them wait."""
        if self._receiver is not None and not self.close_sent:
            data, self.frames = b"".join(self.frames), []
            (self._receiver.audio if self.curr_msg_data_type == "bytes" else self._receiver.text)(data)
            return
        if self.curr_msg_data_type == "text":  # uvicorn has a traceback in the log for what is no UTF-8
            self.frames = [b"".join(self.frames).decode(errors="replace").encode()]
        paused, self.read_paused = self.read_paused, True
        super().send_receive_event_to_app()
        self.read_paused = paused
        if not paused and self.queue.qsize() >= AHEAD:
            self.pause()

    def resume_writing(self) -> None:
        """The peer reads again."""
        super().resume_writing()
        if self._receiver is not None:
            self._receiver.writable()
        elif self.queue.qsize() < AHEAD:
            self.resume()

    def connection_lost(self, exc: Exception | None) -> None:
        """The connection is over, and nothing may wait for the garbage collector."""
        super().connection_lost(exc)
        self._extensions.pop(EXTENSION, None)
        del self.conn.parser  # a generator that knows its connection, which knows it
        error: BaseException | None = self.conn.parser_exc
        while error is not None:
            error.__traceback__, error = None, error.__context__
        self._end()

    def on_task_complete(self, task: asyncio.Task[None]) -> None:
        """The application is done with this connection; soon the system shall be, too."""
        super().on_task_complete(task)
        self.loop.call_later(LINGER_S, self.transport.abort)

    def _go_on(self) -> None:
        if self.read_paused or self.transport.is_closing():
            return
        self._needed = 0
        self.data_received(b"")
        if not self.read_paused:
            self.transport.resume_reading()

    def _decline(self) -> None:
        """Answer an upgrade that the library cannot read; it has words for most of them."""
        answer = b"".join(self.conn.data_to_send()) or b"HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n"
        self.transport.write(answer)
        self.handshake_initiated = self.handshake_complete = self.close_sent = True
        self.transport.close()

    def _end(self) -> None:
        if self._receiver is not None:
            self._receiver.gone()


def _extent(data: bytes, at: int) -> tuple[int, int]:
    """Where the payload of the masked frame at `at` begins and ends; (0, 0) if that cannot be told yet."""
    begin, size = at + 6, len(data)
    if at + 2 > size:
        return 0, 0
    length = data[at + 1] & 127
    if length > 125:
        wide = 2 if length == 126 else 8
        if at + 2 + wide > size:
            return 0, 0
        length = int.from_bytes(data[at + 2 : at + 2 + wide])
        begin += wide
    return begin, begin + length


def _head(length: int) -> bytes:
    """Head of a whole text frame from a server."""
    if length < 126:
        return bytes((TEXT, length))
    return bytes((TEXT, 126)) + length.to_bytes(2) if length < 1 << 16 else bytes((TEXT, 127)) + length.to_bytes(8)
