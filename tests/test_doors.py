"""Before and around WebSocket frames: upgrades nobody can read, other protocols on offer, floods of tiny frames."""

from __future__ import annotations

import asyncio
import itertools
import json
from typing import Any

import pytest
from websockets.frames import Frame, Opcode

from client.frames import CLOSE, TEXT, upgrade
from service.protocol import CloseCode, Configure
from service.sockets import TURN, Socket
from service.stream import MESSAGES
from tests.talk import upgraded

UPGRADE = upgrade("h", "/v1/stream")
CONFIGURE = Frame(Opcode.TEXT, Configure(heartbeat_ms=60_000).model_dump_json().encode()).serialize(mask=True)
MARKER = Frame(Opcode.TEXT, b'{"type":"marker","id":7}').serialize(mask=True)
CLOSING = Frame(Opcode.TEXT, b'{"type":"close"}').serialize(mask=True)


async def answer(port: int, said: bytes) -> bytes:
    """Say something; return all that is answered until the server hangs up."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        writer.write(said)
        async with asyncio.timeout(30):
            return await reader.read()
    finally:
        writer.transport.abort()


def header(line: bytes) -> bytes:
    return UPGRADE.replace(b"\r\n\r\n", b"\r\n" + line + b"\r\n\r\n")


@pytest.mark.parametrize(
    "said",
    [
        header(b"Cookie: " + b"x" * 9_000),
        header(b"\r\n".join(b"X-%d: 1" % number for number in range(140))),
        header(b"Content-Length: 5") + b"hello",
        header(b"Transfer-Encoding: chunked"),
        upgrade("h", "/v1/stream?ticket=" + "x" * 9_000),
    ],
    ids=["a long header", "many headers", "a body", "chunks", "a long path"],
)
async def test_an_upgrade_that_cannot_be_read_is_answered_and_closed(running: Any, said: bytes) -> None:
    assert (await answer(running.port, said)).startswith(b"HTTP/1.1 4")


async def test_an_upgrade_waits_for_the_answer_before_it(running: Any) -> None:
    assert (await answer(running.port, b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n" + UPGRADE)).startswith(
        b"HTTP/1.1 400"
    )


@pytest.mark.parametrize("offer", [b"Upgrade: h2c", b"upgrade:h2c", b"Upgrade: websocket2"])
async def test_a_clip_is_judged_though_another_protocol_is_on_offer(running: Any, offer: bytes) -> None:
    clip = bytes(32_000) + b"\r\nUpgrade: h2c\r\n"
    head = [
        b"POST /v1/detect?encoding=s16le HTTP/1.1",
        b"Host: h",
        b"Connection: Upgrade, HTTP2-Settings, close",
        offer,
        b"Content-Length: %d" % len(clip),
    ]
    told = await answer(running.port, b"\r\n".join(head) + b"\r\n\r\n" + clip)
    assert told.startswith(b"HTTP/1.1 200")
    assert json.loads(told.partition(b"\r\n\r\n")[2])["seconds"] == len(clip) / 32_000


async def frames_of(port: int, said: bytes) -> list[tuple[int, bytes]]:
    """Upgrade and say something at once; return the frames that are answered, up to the end."""
    heard: list[tuple[int, bytes]] = []
    async with upgraded(port) as (reader, writer, frames):
        writer.write(said)
        while data := await reader.read(65_536):
            heard += frames.feed(data)
    return heard


async def test_tiny_frames_are_taken_in_turns_and_none_is_lost(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []
    received, frame = Socket.data_received, Socket._frame

    def counted(socket: Socket, data: bytes) -> None:
        turns.append(0)
        received(socket, data)

    def one(socket: Socket, *place: Any) -> int:
        turns[-1] += 1
        return frame(socket, *place)

    monkeypatch.setattr(Socket, "data_received", counted)
    monkeypatch.setattr(Socket, "_frame", one)
    count = MESSAGES * 3 // 4
    heard = await frames_of(running.port, CONFIGURE + count * MARKER + CLOSING)
    told = [json.loads(data)["type"] for kind, data in heard if kind == TEXT]
    assert told == ["ready", *["marker"] * count, "closed"]
    assert max(turns) == TURN


@pytest.mark.parametrize("tiny", [b"", b"\1"])
async def test_tiny_frames_without_end_are_too_fast_and_heard_no_further(
    running: Any, monkeypatch: pytest.MonkeyPatch, tiny: bytes
) -> None:
    taken, frame = itertools.count(), Socket._frame

    def one(socket: Socket, *place: Any) -> int:
        next(taken)
        return frame(socket, *place)

    monkeypatch.setattr(Socket, "_frame", one)
    heard = await frames_of(running.port, CONFIGURE + 60_000 * Frame(Opcode.BINARY, tiny).serialize(mask=True))
    assert heard[-1][0] == CLOSE
    assert int.from_bytes(heard[-1][1][:2]) == CloseCode.TOO_FAST
    assert next(taken) < 50_000


async def test_pings_of_a_peer_that_does_not_read_wait_in_its_socket(
    running: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    sockets: list[Socket] = []
    attach = Socket.attach

    def attached(socket: Socket, receiver: Any) -> None:
        sockets.append(socket)
        attach(socket, receiver)

    monkeypatch.setattr(Socket, "attach", attached)
    ping, pings, pongs, stuck = Frame(Opcode.PING, bytes(125)).serialize(mask=True), 0, 0, 0
    async with upgraded(running.port, limit=16_384) as (reader, writer, frames):
        writer.write(CONFIGURE)
        while stuck < 100:  # the server has stopped reading
            stuck += 1
            if not writer.transport.get_write_buffer_size():
                writer.write(1_000 * ping)
                pings, stuck = pings + 1_000, 0
            await asyncio.sleep(0.005)
            assert not sockets or sockets[-1].transport.get_write_buffer_size() < 1 << 20
        while pongs < pings:
            pongs += sum(kind != TEXT for kind, _ in frames.feed(await reader.read(1 << 16)))
    assert pongs == pings
