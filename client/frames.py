"""WebSocket frames (RFC 6455, section 5) as bytes, for a load client that sends the same ones through many sockets.

A client must mask; a mask of zeros is a mask, leaves the bytes alone, and lets one prebuilt frame serve every stream.
No extensions, no fragments from the client. Knows no socket.
"""

from __future__ import annotations

import base64
import os
from collections.abc import Iterator
from typing import Final

TEXT: Final = 1
BINARY: Final = 2
CLOSE: Final = 8
PING: Final = 9
PONG: Final = 10

NO_MASK: Final = bytes(4)


def client_frame(opcode: int, payload: bytes) -> bytes:
    """A whole masked message."""
    size = len(payload)
    if size < 126:
        head = bytes((0x80 | opcode, 0x80 | size))
    elif size < 1 << 16:
        head = bytes((0x80 | opcode, 0x80 | 126)) + size.to_bytes(2)
    else:
        head = bytes((0x80 | opcode, 0x80 | 127)) + size.to_bytes(8)
    return head + NO_MASK + payload


def upgrade(host: str, path: str, key: str | None = None) -> bytes:
    """The request that opens a WebSocket; `key` goes along as a bearer token."""
    lines = [
        f"GET {path} HTTP/1.1",
        f"Host: {host}",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
        *([f"Authorization: Bearer {key}"] if key else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode()


class Reader:
    """Bytes from a server in any split -> its answer to the upgrade, then frames.

    Attributes:
        status: of the HTTP answer; 0 until its head is complete.
    """

    def __init__(self) -> None:
        """Expect an HTTP answer."""
        self.status = 0
        self._data = bytearray()
        self._message = b""

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield each complete message as (opcode, payload)."""
        self._data += data
        if not self.status:
            end = self._data.find(b"\r\n\r\n")
            if end < 0:
                return
            self.status = int(self._data[9:12])
            del self._data[: end + 4]
        while self.status == 101 and (frame := self._frame()) is not None:
            final, opcode, payload = frame
            if opcode >= CLOSE:
                yield opcode, payload
                continue
            self._message += payload
            if final:
                yield opcode or TEXT, self._message
                self._message = b""

    @property
    def body(self) -> bytes:
        """What came after the head of an answer that is a refusal."""
        return bytes(self._data)

    def _frame(self) -> tuple[bool, int, bytes] | None:
        data = self._data
        if len(data) < 2:
            return None
        size, start = data[1] & 127, 2
        if size >= 126:
            start = 4 if size == 126 else 10
            size = int.from_bytes(data[2:start])
        if len(data) < start + size or (start > 2 and len(data) < start):
            return None
        first, payload = data[0], bytes(data[start : start + size])
        del data[: start + size]
        return bool(first & 0x80), first & 15, payload
