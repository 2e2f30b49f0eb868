"""Hostile clients on real sockets: each ends with a documented code, and an honest stream beside them feels nothing."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from service.protocol import CloseCode, Closed, Configure, Detection, Marker, Ready, parse_server

MESSAGES = [
    {"type": "configure"}, {"type": "configure", "scores": True, "heartbeat_ms": 100}, {"type": "flush"},
    {"type": "configure", "keywords": {}}, {"type": "configure", "keywords": {"yes": {"threshold": 0, "patience": 1}}},
    {"type": "configure", "encoding": "f32le", "sample_rate": 44100, "channels": 3}, {"type": "reset"},
    {"type": "marker", "id": 1}, {"type": "marker", "id": "x"}, {"type": "keepalive"}, {"type": "close"},
    {"type": "feedback", "detection": 0, "correct": True}, {"type": "configure", "preroll_ms": 3000},
    {"type": "configure", "resume": {"token": "bm8=", "sample": 5}}, {"type": "configure", "point": "dense"},
]  # fmt: skip
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9)
BENT = st.builds(
    lambda message, key, value: {**message, key: value},
    st.sampled_from(MESSAGES),
    st.sampled_from(["type", "sample_rate", "channels", "id", "keywords", "resume", "coarsest", "zzz"]),
    VALUES | st.dictionaries(st.text(max_size=5), VALUES, max_size=3),
)
AUDIO = st.binary(max_size=200) | st.integers(0, 50_000).map(os.urandom) | st.integers(0, 50_000).map(bytes)
FRAME = st.sampled_from(MESSAGES).map(json.dumps) | BENT.map(json.dumps) | st.text(max_size=50) | AUDIO
OPENING = st.just([json.dumps({"type": "configure"})]) | st.just([])
STORIES = st.builds(lambda first, rest: [*first, *rest], OPENING, st.lists(FRAME, max_size=12))


async def tell(url: str, frames: list[str | bytes], *, vanish: bool) -> int | None:
    """Send frames and, unless the client vanishes, read to the end; return the server's close code."""
    async with asyncio.timeout(60), connect(url, compression=None) as socket:
        try:
            for frame in frames:
                await socket.send(frame)
            if vanish:
                socket.transport.abort()
                return None
            await socket.send('{"type":"configure"}')
            await socket.send('{"type":"close"}')
            while True:
                assert parse_server(await socket.recv()) is not None
        except ConnectionClosed:
            return socket.close_code


async def alone(running: Any) -> None:
    """A stream is served, and after a while there is no other."""
    async with asyncio.timeout(30), connect(running.stream) as socket:
        await socket.send(Configure().model_dump_json())
        assert isinstance(parse_server(await socket.recv()), Ready)
        while len(running.server.streams) > 1 or running.server.engine.places.reserved:
            await socket.send('{"type":"marker","id":1}')
            assert parse_server(await socket.recv()) == Marker(id=1)


@pytest.fixture(scope="module", autouse=True)
def nothing_is_left_of_them(running: Any) -> Iterator[None]:
    """Every place was given back."""
    yield
    asyncio.run(alone(running))


@settings(max_examples=80)
@given(frames=STORIES, vanish=st.booleans())
def test_any_story_ends_well(running: Any, frames: list[str | bytes], vanish: bool) -> None:
    code = asyncio.run(tell(running.stream, frames, vanish=vanish))
    assert code is None or CloseCode(code) is not CloseCode.INTERNAL


def test_any_bytes_after_the_upgrade_end_well(running: Any, lines: Callable[[], list[dict[str, Any]]]) -> None:
    async def story(data: list[bytes]) -> None:
        async with asyncio.timeout(60), connect(running.stream, compression=None, ping_interval=None) as socket:
            for part in data:
                socket.transport.write(part)
            socket.transport.abort()

    @settings(max_examples=40)
    @given(data=st.lists(st.binary(max_size=60) | st.integers(0, 2_000).map(os.urandom), max_size=4))
    def told(data: list[bytes]) -> None:
        asyncio.run(story(data))

    told()
    asyncio.run(alone(running))
    assert [line for line in lines() if line["level"] not in {"debug", "info"}] == []


def test_honest_stream_among_hostile_ones_hears_what_it_hears_alone(running: Any, spoken: np.ndarray) -> None:
    hostile = [[os.urandom(50)], ["{"], ['{"type":"configure"}', os.urandom(9_999), "?"], ['{"type":"configure"}'] * 3]

    async def honest() -> list[tuple[str, float]]:
        async with asyncio.timeout(60), connect(running.stream, compression=None) as socket:
            await socket.send(Configure(point="dense").model_dump_json())
            assert isinstance(parse_server(await socket.recv()), Ready)
            for at in range(0, len(spoken), 1_600):
                await socket.send(spoken[at : at + 1_600].tobytes())
                await asyncio.sleep(0)
            await socket.send('{"type":"close"}')
            messages = [parse_server(text) async for text in socket]
        assert isinstance(messages[-1], Closed)
        return [(m.keyword, m.at_s) for m in messages if isinstance(m, Detection)]

    async def together() -> list[tuple[str, float]]:
        listening = asyncio.create_task(honest())
        for number in range(40):
            await tell(running.stream, hostile[number % len(hostile)], vanish=bool(number % 2))
        return await listening

    alone = asyncio.run(honest())
    assert asyncio.run(together()) == alone != []
