"""A stream is the same through our own socket and through any other ASGI server's frames."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed

from service import app
from service.protocol import (
    CloseCode,
    Closed,
    Configure,
    Detection,
    Failed,
    Marker,
    Ready,
    ServerMessage,
    Warned,
    parse_server,
)


@pytest.fixture(params=["ours", "any"])
def stream(running: Any, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Where streams are opened on a server whose sockets are ours, or pass for somebody else's."""
    if request.param == "any":
        monkeypatch.setattr(app, "EXTENSION", "absent")
    return running.stream


async def story(url: str, frames: list[str | bytes]) -> tuple[list[ServerMessage], int | None]:
    """Send frames; return what was said, and the close code."""
    messages: list[ServerMessage] = []
    async with asyncio.timeout(60), connect(url, compression=None) as socket:
        try:
            for frame in frames:
                await socket.send(frame)
            while True:
                if (message := parse_server(await socket.recv())) is not None:
                    messages.append(message)
        except ConnectionClosed:
            return messages, socket.close_code


CONFIGURE = Configure(point="dense", heartbeat_ms=60_000).model_dump_json()
CLOSE = '{"type":"close"}'


async def test_words_markers_and_totals(stream: str, spoken: np.ndarray) -> None:
    data = spoken.astype("<i2").tobytes()
    chunks: list[str | bytes] = [data[at : at + 3_200] for at in range(0, len(data), 3_200)]
    messages, code = await story(stream, [CONFIGURE, *chunks, '{"type":"marker","id":7}', CLOSE])
    assert code == CloseCode.NORMAL
    assert sum(isinstance(message, Detection) for message in messages) >= 3
    assert isinstance(messages[-1], Closed)
    assert messages[-1].totals.samples == len(spoken)
    assert Marker(id=7) in messages


@pytest.mark.parametrize("bad", ["?", "", '{"type":"marker","id":-1}'])
async def test_mistakes_end_the_stream_with_what_was_said_before(stream: str, bad: str) -> None:
    messages, code = await story(stream, [CONFIGURE, '{"type":"feedback","detection":9,"correct":true}', bad, CLOSE])
    assert code == CloseCode.BAD_MESSAGE
    assert [type(message) for message in messages[1:]] == [Warned, Failed, Closed]


async def test_more_than_may_wait_is_all_judged(stream: str) -> None:
    messages, code = await story(stream, [CONFIGURE, *[bytes(320_000)] * 5, CLOSE])
    assert code == CloseCode.NORMAL
    assert isinstance(messages[-1], Closed)
    assert messages[-1].totals.samples == 5 * 160_000


async def test_one_that_vanishes_leaves_nothing(stream: str, running: Any) -> None:
    async with asyncio.timeout(60), connect(stream, compression=None) as socket:
        await socket.send(CONFIGURE)
        await socket.recv()
        socket.transport.abort()
        while running.server.streams:  # noqa: ASYNC110 (the server is another thread)
            await asyncio.sleep(0)


async def test_the_model_in_use_may_be_named_or_left_out_when_a_stream_changes(stream: str) -> None:
    first = Configure(point="dense")
    named = first.model_copy(update={"model": "default", "scores": True})
    frames: list[str | bytes] = [one.model_dump_json() for one in (first, named, first)]
    messages, code = await story(stream, [*frames, CLOSE])
    assert [message.type for message in messages] == ["ready", "ready", "ready", "closed"]
    assert code == CloseCode.NORMAL


async def test_a_stream_that_the_server_drops_at_its_own_end_did_not_end_as_usual(
    stream: str, running: Any, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    async with asyncio.timeout(60), connect(stream, compression=None) as socket:
        await socket.send(CONFIGURE)
        ready = parse_server(await socket.recv())
        assert isinstance(ready, Ready)
        loop = running.server.engine._loop
        for task in asyncio.all_tasks(loop):
            if "run_asgi" in repr(task.get_coro()):
                loop.call_soon_threadsafe(task.cancel)
        while running.server.streams:  # noqa: ASYNC110 (the server is another thread)
            await asyncio.sleep(0)
    (outcome,) = [line["outcome"] for line in lines() if line.get("session") == ready.session]
    assert outcome == "vanished"
