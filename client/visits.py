"""Streams that last as long as it takes to say them: a thousand open and close within seconds.

Once the server has accepted, everything is sent in one write. Lean like client/load.py, so that a hundred thousand of
them are a matter of minutes.
"""

from __future__ import annotations

import asyncio
import struct
from collections import Counter
from typing import Final

from client.frames import BINARY, CLOSE, TEXT, Reader, client_frame, upgrade

AUDIO: Final = bytes(3_200)
"""100 ms of silence."""


class Visit(asyncio.Protocol):
    """One stream: opens, says `configure`, a chunk and `close`, and reads until the server has closed it."""

    def __init__(self, request: bytes, words: bytes, tally: Counter[str]) -> None:
        self._request, self._words = request, words
        self._tally, self._code = tally, "broken"
        self._reader = Reader()
        self._transport: asyncio.Transport | None = None
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade."""
        assert isinstance(transport, asyncio.Transport)  # noqa: S101 (a TCP connection has one)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Say everything once the upgrade is granted; answer the server's close."""
        assert self._transport is not None  # noqa: S101 (it is what brought the data)
        asked = not self._reader.status
        for opcode, payload in self._reader.feed(data):
            if opcode == CLOSE:
                self._code = str(struct.unpack("!H", payload[:2])[0])
                self._transport.write(client_frame(CLOSE, payload[:2]))
                self._transport.close()
        if asked and self._reader.status == 101:
            self._transport.write(self._words)
        elif asked and self._reader.status:
            self._code = f"HTTP {self._reader.status}"
            self._transport.close()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's own signature)
        """Note how it ended."""
        self._tally[self._code] += 1
        self.ended.set_result(None)


async def visit(port: int, count: int, at_once: int) -> Counter[str]:
    """Open and close `count` streams of a server on this machine, `at_once` at a time; count how they ended.

    An end is a close code, or the HTTP status of a refusal.
    """
    request = upgrade(f"127.0.0.1:{port}", "/v1/stream")
    words = client_frame(TEXT, b'{"type":"configure"}') + client_frame(BINARY, AUDIO)
    words += client_frame(TEXT, b'{"type":"close"}')
    turns, tally = iter(range(count)), Counter[str]()

    async def one_after_the_other() -> None:
        for _ in turns:
            loop = asyncio.get_running_loop()
            _, one = await loop.create_connection(lambda: Visit(request, words, tally), "127.0.0.1", port)
            await one.ended

    await asyncio.gather(*(one_after_the_other() for _ in range(at_once)))
    return tally
