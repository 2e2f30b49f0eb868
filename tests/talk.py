"""A client that talks to a server over a real WebSocket, message by message, and the files that REST takes."""

from __future__ import annotations

import asyncio
import io
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import numpy as np
import soundfile
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed

from client.frames import Reader, upgrade
from service.protocol import CloseCode, Configure, Detection, Ready, ServerMessage, parse_server

CHUNK = 3_200


@asynccontextmanager
async def opened(url: str, configure: Configure | None = None, **more: Any) -> AsyncIterator[ClientConnection]:
    async with connect(url, compression=None, **more) as socket:
        await socket.send((configure or Configure()).model_dump_json())
        assert isinstance(parse_server(await socket.recv()), Ready)
        yield socket


@asynccontextmanager
async def upgraded(port: int, **more: Any) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter, Reader]]:
    """A bare connection after its upgrade to `/v1/stream`, and what its frames are read with."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port, **more)
    frames = Reader()
    try:
        async with asyncio.timeout(60):
            writer.write(upgrade("127.0.0.1", "/v1/stream"))
            while not frames.status:
                list(frames.feed(await reader.read(512)))
            yield reader, writer, frames
    finally:
        writer.transport.abort()


async def rest(socket: ClientConnection) -> list[ServerMessage]:
    """All messages until the server closes."""
    messages = []
    async with asyncio.timeout(60):
        try:
            while True:
                if (message := parse_server(await socket.recv())) is not None:
                    messages.append(message)
        except ConnectionClosed:
            return messages


async def play(url: str, samples: np.ndarray, configure: Configure | None = None) -> list[ServerMessage]:
    """A whole recording as fast as it goes."""
    async with opened(url, configure) as socket:
        data = samples.astype("<i2").tobytes()
        for at in range(0, len(data), CHUNK):
            await socket.send(data[at : at + CHUNK])
        await socket.send('{"type":"close"}')
        messages = await rest(socket)
    assert socket.close_code == CloseCode.NORMAL
    return messages


def words(messages: list[ServerMessage]) -> list[tuple[str, float]]:
    return [(m.keyword, m.at_s) for m in messages if isinstance(m, Detection)]


def wav(samples: np.ndarray, rate: int = 16_000, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples.astype(np.int16), rate, format=kind)
    return file.getvalue()
