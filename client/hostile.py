"""Connections that say nothing, half a thing, nonsense or far too much: what a server on the internet has to bear.

Knows no server's limits: it waits to be thrown out, or leaves when told to.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import repeat
from typing import Final

from client.frames import BINARY, TEXT, Reader, client_frame, upgrade

UPGRADE: Final = upgrade("h", "/v1/stream")
CONFIGURE: Final = client_frame(TEXT, b'{"type":"configure"}')
RESET: Final = client_frame(TEXT, b'{"type":"reset"}')
SCORES: Final = client_frame(TEXT, b'{"type":"configure","scores":true}')
AUDIO: Final = client_frame(BINARY, bytes(3_200))
SECOND: Final = client_frame(BINARY, bytes(32_000))
GET: Final = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"
CLIP: Final = b"POST /v1/detect HTTP/1.1\r\nHost: h\r\nContent-Length: 99999\r\n\r\n"
INTERVAL_S: Final = 0.1
"""Time between two pieces of what is said bit by bit."""


@dataclass(frozen=True, slots=True)
class Manner:
    """How a hostile client behaves.

    Attributes:
        first: what it says at once.
        then: what it says when the upgrade was answered.
        on: what it goes on saying, a piece every `INTERVAL_S`.
        deaf: it reads nothing, after the upgrade if there is one.
    """

    first: bytes = UPGRADE
    then: bytes = b""
    on: Iterable[bytes] = ()
    deaf: bool = False


def _bytewise(data: bytes) -> list[bytes]:
    return [data[at : at + 1] for at in range(len(data))]


MANNERS: Final = {
    "silent": Manner(b""),
    "half a handshake": Manner(UPGRADE[:-2]),
    "a handshake, byte by byte": Manner(b"", on=_bytewise(UPGRADE)),
    "rubbish": Manner(bytes(range(128, 256))),
    "half of a second request": Manner(GET + GET[:-2]),
    "half a clip": Manner(CLIP + bytes(99)),
    "a clip, byte by byte": Manner(CLIP, on=repeat(b"x", 99_999)),
    "a handshake, then silence": Manner(),
    "a handshake, then rubbish": Manner(then=b"\xff" * 99),
    "half of its first frame": Manner(then=CONFIGURE[:9]),
    "its first frame, byte by byte": Manner(then=CONFIGURE[:1], on=_bytewise(CONFIGURE[1:])),
    "an unmasked frame": Manner(then=b"\x81\x02{}"),
    "an endless frame": Manner(then=CONFIGURE + b"\x82\xff" + (1 << 40).to_bytes(8) + bytes(99)),
    "no JSON": Manner(then=client_frame(TEXT, b"\xff\xfe{")),
    "a stream without audio": Manner(then=CONFIGURE),
    "half a frame of audio": Manner(then=CONFIGURE + AUDIO[:99]),
    "a hundred times too fast": Manner(then=CONFIGURE, on=repeat(10 * SECOND)),
    "a flood of messages": Manner(then=CONFIGURE, on=repeat(1_000 * RESET)),
    "deaf": Manner(then=SCORES, on=repeat(SECOND), deaf=True),
}
"""Every kind that comes to the web's door, by name."""
START: Final = b'{"type":"audio-start","data":{"rate":16000,"width":2,"channels":1}}\n'
CHUNK: Final = b'{"type":"audio-chunk","payload_length":1000000}\n'
PING: Final = b'{"type":"ping","data":{"text":"' + b"?" * 16_000 + b'"}}\n'
SATELLITES: Final = {
    "silent": Manner(b""),
    "rubbish": Manner(bytes(range(128, 256))),
    "a line of rubbish": Manner(bytes(range(128, 256)) + b"\n"),
    "half a header": Manner(START[:9]),
    "a header, byte by byte": Manner(b"", on=_bytewise(START)),
    "an endless line": Manner(b"x" * 99_999),
    "endless data": Manner(b'{"type":"detect","data_length":1099511627776}\n'),
    "endless audio": Manner(b'{"type":"audio-chunk","payload_length":1099511627776}\n'),
    "audio before its time": Manner(CHUNK + bytes(99)),
    "half a chunk": Manner(START + CHUNK + bytes(99)),
    "a chunk, byte by byte": Manner(START + CHUNK, on=repeat(b"x", 99_999)),
    "a stream without audio": Manner(START),
    "deaf": Manner(b"", on=repeat(20 * PING), deaf=True),
}
"""Those that come to the Wyoming door."""


class Hostile(asyncio.Protocol):
    """Says its piece, whatever the server says, and waits for the server to end it.

    Attributes:
        ended: the connection is over.
    """

    def __init__(self, kind: str, manner: Manner) -> None:
        self.kind, self._manner = kind, manner
        self._pieces: Iterator[bytes] = iter(self._manner.on)
        self._reader, self._begun, self._writable = Reader(), self._manner.first != UPGRADE, True
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 (a TCP connection has one)
        self._transport = transport
        transport.write(self._manner.first)
        if self._begun:
            self._begin(transport)

    def data_received(self, data: bytes) -> None:
        """Go on once the upgrade is answered, whichever way; the rest does not interest it."""
        if self._begun or self._transport is None:
            return
        list(self._reader.feed(data))
        self._begun = self._reader.status != 0
        if self._begun:
            self._transport.write(self._manner.then)
            self._begin(self._transport)

    def pause_writing(self) -> None:
        """The server does not read as fast as this."""
        self._writable = False

    def resume_writing(self) -> None:
        """It reads again."""
        self._writable = True

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's own signature)
        """Thrown out, or gone."""
        if not self.ended.done():
            self.ended.set_result(None)

    def leave(self) -> None:
        """Hang up without a word."""
        if self._transport is not None:
            self._transport.abort()

    def _begin(self, transport: asyncio.Transport) -> None:
        if self._manner.deaf:  # later: Python 3.11.2 begins to read after `connection_made`, whatever was asked there
            asyncio.get_running_loop().call_soon(transport.pause_reading)
        self._go_on()

    def _go_on(self) -> None:
        if self._transport is None or self._transport.is_closing():
            return
        if self._writable:
            piece = next(self._pieces, None)
            if piece is None:
                return
            self._transport.write(piece)
        asyncio.get_running_loop().call_later(INTERVAL_S, self._go_on)


async def intrude(port: int, number: int, manners: Mapping[str, Manner] = MANNERS) -> Hostile:
    """Open the `number`-th hostile connection to a server on this machine; kinds take turns.

    Raises:
        OSError: the server does not even answer.
    """
    kind, manner = list(manners.items())[number % len(manners)]
    _, hostile = await asyncio.get_running_loop().create_connection(lambda: Hostile(kind, manner), "127.0.0.1", port)
    return hostile
