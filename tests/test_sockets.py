"""Frames in any split, fragmented or not, are the same messages; what breaks RFC 6455 ends as the RFC says."""

from __future__ import annotations

import asyncio
import gc
import json
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

from client.frames import CLOSE, PONG, TEXT
from service.protocol import CloseCode, Configure
from service.sockets import Door, Socket
from service.stream import Stream
from tests.talk import upgraded

CONFIGURE = Frame(Opcode.TEXT, Configure(heartbeat_ms=60_000).model_dump_json().encode()).serialize(mask=True)
PING = Frame(Opcode.PING, b"?").serialize(mask=True)


def said(opcode: Opcode, data: bytes, pieces: int = 1, between: bytes = b"") -> bytes:
    """One message in so many fragments, with something between them."""
    size = max(1, -(-len(data) // pieces))
    parts = [data[at : at + size] for at in range(0, len(data), size)] or [b""]
    frames = [
        Frame(opcode if number == 0 else Opcode.CONT, part, fin=number == len(parts) - 1).serialize(mask=True)
        for number, part in enumerate(parts)
    ]
    return between.join(frames)


def marker(number: int) -> bytes:
    return json.dumps({"type": "marker", "id": number}).encode()


async def talk(port: int, parts: list[bytes], *, until: int, patient: bool = False) -> list[tuple[int, bytes]]:
    """Send parts one by one, the first one alone if `patient`; return frames until one of this kind, or the end."""
    heard: list[tuple[int, bytes]] = []
    async with upgraded(port) as (reader, writer, frames):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)  # or the system would join the parts again
            while patient and not heard:
                data = await reader.read(65_536)
                assert data, f"HTTP {frames.status}, and no more"
                heard += frames.feed(data)
        while not any(kind == until for kind, _ in heard) and (data := await reader.read(65_536)):
            heard += frames.feed(data)
    return heard


MESSAGES = st.tuples(st.integers(0, 400), st.integers(1, 3), st.booleans())


@settings(max_examples=40)
@given(messages=st.lists(MESSAGES, min_size=1, max_size=4), cuts=st.lists(st.integers(1, 3_000), max_size=9))
def test_any_split_and_any_fragments_are_the_same_messages(running: Any, messages: Any, cuts: list[int]) -> None:
    stream, pings = CONFIGURE, 0
    for number, (samples, pieces, ping) in enumerate(messages):
        stream += (audio := said(Opcode.BINARY, bytes(2 * samples), pieces, PING if ping else b""))
        pings += audio.count(PING)
        stream += said(Opcode.TEXT, marker(number), pieces)
    stream += said(Opcode.TEXT, b'{"type":"close"}')
    heard = asyncio.run(talk(running.port, list(_cut(stream, cuts)), until=CLOSE))
    told = [json.loads(data) for kind, data in heard if kind == TEXT]
    assert [message["id"] for message in told if message["type"] == "marker"] == list(range(len(messages)))
    assert told[-1]["totals"]["samples"] == sum(samples for samples, _, _ in messages)
    assert sum(kind == PONG for kind, _ in heard) == pings
    assert int.from_bytes(heard[-1][1][:2]) == CloseCode.NORMAL


def _cut(data: bytes, cuts: list[int]) -> Iterator[bytes]:
    for size in cuts:
        yield data[:size]
        data = data[size:]
    yield data


BROKEN = {
    "no mask": (Frame(Opcode.BINARY, b"12").serialize(mask=False), 1002),
    "reserved bit": (b"\xc2\x80" + bytes(4), 1002),
    "reserved kind": (b"\x83\x80" + bytes(4), 1002),
    "long ping": (b"\x89\xfe\x00\x80" + bytes(4 + 128), 1002),
    "ping in fragments": (b"\x09\x80" + bytes(4), 1002),
    "continuation of nothing": (Frame(Opcode.CONT, b"1").serialize(mask=True), 1002),
    "message within a message": (Frame(Opcode.BINARY, b"1", fin=False).serialize(mask=True) + CONFIGURE, 1002),
    "longer than is read at all": (b"\x82\xff" + (1 << 40).to_bytes(8) + bytes(4), 1009),
    "text that is no UTF-8": (Frame(Opcode.TEXT, b"\xff").serialize(mask=True), CloseCode.BAD_MESSAGE),
}


@pytest.mark.parametrize("case", BROKEN)
async def test_what_breaks_the_rules_is_told_so(running: Any, case: str) -> None:
    frames, code = BROKEN[case]
    heard = await talk(running.port, [CONFIGURE, frames], until=CLOSE, patient=True)
    assert int.from_bytes(heard[-1][1][:2]) == code


async def test_first_words_that_are_no_text_are_refused_without_a_word_in_the_log(
    running: Any, caplog: pytest.LogCaptureFixture
) -> None:
    heard = await talk(running.port, [BROKEN["text that is no UTF-8"][0]], until=CLOSE)
    assert int.from_bytes(heard[-1][1][:2]) == CloseCode.BAD_MESSAGE
    assert not caplog.records


async def test_a_flood_waits_in_the_senders_socket_and_is_all_judged(running: Any) -> None:
    second = said(Opcode.BINARY, bytes(32_000))
    parts = [CONFIGURE, *[second] * 40, said(Opcode.TEXT, b'{"type":"close"}')]
    heard = await talk(running.port, parts, until=CLOSE)
    (totals,) = [json.loads(data)["totals"] for kind, data in heard if kind == TEXT and b'"closed"' in data]
    assert totals["samples"] == 40 * 16_000


def test_what_is_over_goes_without_the_garbage_collector(running: Any) -> None:
    """Or the memory of a crowd would stay until somebody looks for it."""
    gc.collect()
    gc.disable()
    try:
        before = alive()
        for last in (said(Opcode.TEXT, b'{"type":"close"}'), b"\xff" * 99, b"\x81\x02{}"):
            asyncio.run(talk(running.port, [CONFIGURE, said(Opcode.BINARY, bytes(32_000)), last], until=CLOSE))
        asyncio.run(asked(running.http))
        asyncio.run(gone(before))
    finally:
        gc.enable()


async def asked(url: str) -> None:
    async with httpx.AsyncClient() as client:
        assert (await client.get(f"{url}/healthz")).status_code == 200


def alive() -> int:
    """Connections and streams in this process."""
    return sum(isinstance(thing, Door | Socket | ServerProtocol | Stream) for thing in gc.get_objects())


async def gone(before: int) -> None:
    """Wait until there are no more of them than before."""
    async with asyncio.timeout(60):
        while alive() > before:  # noqa: ASYNC110 (nobody is told of an object's end)
            await asyncio.sleep(0.05)
