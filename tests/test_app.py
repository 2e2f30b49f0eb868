"""The WebSocket, really: what is heard, what is refused and how, and that no stranger feels it."""

from __future__ import annotations

import asyncio
import struct
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from client.connection import connect as spotting
from client.frames import CLOSE, PING, TEXT, client_frame
from service import upkeep
from service.app import StreamDoor
from service.commands import serve
from service.protocol import (
    CloseCode,
    Closed,
    Configure,
    Detection,
    Failed,
    KeywordSettings,
    Marker,
    Ready,
    Scores,
    Warned,
    WarningCode,
    parse_server,
)
from service.server import Server
from service.session import Session
from service.sockets import Socket
from service.stream import DEAR, MESSAGES
from tests.servers import chunks, detections
from tests.talk import opened, play, rest, upgraded, words


async def test_stream_hears_and_says_goodbye(running: Any, spoken: np.ndarray) -> None:
    messages = await play(running.stream, spoken)
    assert len(words(messages)) >= 3
    closed = messages[-1]
    assert isinstance(closed, Closed)
    assert (closed.reason, closed.totals.samples) == ("normal", len(spoken))
    assert closed.totals.detections == len(words(messages))
    assert 0 < closed.totals.macs_skipped_vs_causal < closed.totals.macs_skipped_vs_window < 1


async def test_many_at_once_hear_what_one_alone_hears(running: Any, spoken: np.ndarray) -> None:
    alone = words(await play(running.stream, spoken, Configure(point="dense")))
    together = await asyncio.gather(*(play(running.stream, spoken, Configure(point="dense")) for _ in range(8)))
    assert all(words(messages) == alone for messages in together)


async def test_silence_is_heard_as_silence(running: Any) -> None:
    assert words(await play(running.stream, np.zeros(80_000))) == []


async def test_everything_a_client_may_say_is_answered_in_order(running: Any, spoken: np.ndarray) -> None:
    async with opened(running.stream, Configure(scores=True)) as socket:
        await socket.send('{"type":"keepalive"}')
        await socket.send(spoken[:16_001].tobytes())
        await socket.send('{"type":"flush"}')
        await socket.send('{"type":"marker","id":"flushed"}')
        await socket.send('{"type":"reset"}')
        await socket.send('{"type":"feedback","detection":99,"correct":false}')
        await socket.send(Configure(scores=False, keywords={}).model_dump_json())
        await socket.send(spoken[16_001:].tobytes())
        await socket.send('{"type":"close"}')
        messages = await rest(socket)
    told = [type(m) for m in messages if not isinstance(m, Scores)]
    assert {Marker, Warned, Ready, Closed} <= set(told)
    assert told.index(Marker) < told.index(Ready) < told.index(Closed)
    assert Detection not in told[told.index(Ready) :]
    rows = sum(len(m.posteriors) for m in messages if isinstance(m, Scores))
    assert rows * 480 + 320 >= 16_001


CONFIGURE = Configure().model_dump_json()
BAD: dict[str, tuple[list[str | bytes], CloseCode, str | None]] = {
    "audio before configure": ([bytes(100)], CloseCode.BAD_MESSAGE, None),
    "marker before configure": (['{"type":"marker","id":1}'], CloseCode.BAD_MESSAGE, "type"),
    "text where audio belongs": ([CONFIGURE, "AAAA"], CloseCode.BAD_MESSAGE, None),
    "empty text": ([CONFIGURE, ""], CloseCode.BAD_MESSAGE, None),
    "unknown field": ([CONFIGURE, '{"type":"flush","hard":true}'], CloseCode.BAD_MESSAGE, "hard"),
    "sample rate of 7": (['{"type":"configure","sample_rate":7}'], CloseCode.BAD_MESSAGE, "sample_rate"),
    "unknown keyword": (['{"type":"configure","keywords":{"sesame":{}}}'], CloseCode.BAD_MESSAGE, "keywords.sesame"),
    "unknown model": (['{"type":"configure","model":"gpt"}'], CloseCode.BAD_MESSAGE, "model"),
    "resumed beyond all time": (
        [f'{{"type":"configure","resume":{{"token":"","sample":{10**400}}}}}'],
        CloseCode.BAD_MESSAGE,
        "resume.sample",
    ),
    "unknown point": (['{"type":"configure","point":"gpt"}'], CloseCode.BAD_MESSAGE, "point"),
    "changed rate": ([CONFIGURE, '{"type":"configure","sample_rate":8000}'], CloseCode.BAD_MESSAGE, "sample_rate"),
    "NaN samples": (
        ['{"type":"configure","encoding":"f32le"}', np.full(9, np.nan, "<f4").tobytes()],
        CloseCode.UNSUPPORTED_AUDIO,
        None,
    ),
    "frame too long": ([CONFIGURE, bytes((1 << 20) + 2)], CloseCode.TOO_LONG, None),
    "hours of audio at once": ([CONFIGURE, *[bytes(1 << 20)] * 8], CloseCode.TOO_FAST, None),
    "a flood of messages": ([CONFIGURE, *['{"type":"reset"}'] * (2 * MESSAGES // DEAR)], CloseCode.TOO_FAST, None),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_input_gets_a_message_a_code_and_a_line(
    running: Any, lines: Callable[[], list[dict[str, Any]]], case: str
) -> None:
    frames, code, field = BAD[case]
    async with connect(running.stream, compression=None) as socket:
        for frame in frames:
            await socket.send(frame)
        messages = await rest(socket)
    failure = next(m for m in messages if isinstance(m, Failed))
    assert (failure.code, failure.field) == (code.wire, field)
    assert failure.message
    assert socket.close_code == code
    assert running.server.engine.places.reserved == 0
    (line,) = (line for line in lines() if line["event"] in {"session", "refused"})
    assert line.get("outcome", line.get("reason")) == code.wire
    assert (line["message"], line["field"], line["path"]) == (failure.message, field, "/v1/stream")


async def test_streams_of_a_server_that_stops_go_one_after_another(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    gone = []

    async def emptied(self: Server, _limit_s: float) -> None:
        gone.append(sum(stream.over for stream in self.streams))
        if len(gone) == 2:  # a place that was reserved before the end began becomes a stream
            self.engine.places.reserved += 1
            self.open(Configure(), self.guard.anyone)

    with serving() as one:
        async with opened(one.stream) as a, opened(one.stream) as b, opened(one.stream) as c:
            monkeypatch.setattr(Server, "_emptied", emptied)
            draining = asyncio.run_coroutine_threadsafe(one.server.drain(), one.server.engine._loop)
            await asyncio.wrap_future(draining)
            codes = [message.code for s in (a, b, c) for message in await rest(s) if isinstance(message, Failed)]
        for stream in list(one.server.streams):
            one.server.close(stream)
    assert gone == [0, 0, 1, 2, 4]
    assert codes == [CloseCode.DRAINING.wire] * 3


async def test_place_comes_back_whatever_went_wrong(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Session, "ready", broken)
    async with connect(running.stream) as socket:
        await socket.send(CONFIGURE)
        assert [m.code for m in await rest(socket) if isinstance(m, Failed)] == [CloseCode.INTERNAL.wire]
    assert running.server.engine.places.used == 0


async def test_place_comes_back_of_a_peer_that_is_gone_before_it_is_let_in(running: Any) -> None:
    async def connecting() -> dict[str, Any]:
        return {"type": "websocket.connect"}

    async def gone(_message: object) -> None:
        raise OSError("gone")

    scope = {"type": "websocket", "path": "/v1/stream", "headers": [], "query_string": b"", "extensions": {}}
    with pytest.raises(OSError, match="gone"):
        await StreamDoor(running.server)(scope, connecting, gone)
    assert running.server.engine.places.used == 0


async def test_memory_of_open_streams_is_told(running: Any) -> None:
    def told() -> float | None:
        return running.server.metrics.registry.get_sample_value("deltaspot_cache_bytes")

    async with opened(running.stream), opened(running.stream):
        assert told() == 2 * running.server.engine.find(None).cache.bytes_per_row
    async with asyncio.timeout(10):
        while running.server.streams:  # noqa: ASYNC110 (the server is another thread)
            await asyncio.sleep(0)
    assert told() == 0


async def test_method_asked_for_once_more_is_the_one_in_force(running: Any, spoken: np.ndarray) -> None:
    async with opened(running.stream, Configure(method="dense")) as socket:
        (stream,) = running.server.streams
        keywords = {"yes": KeywordSettings(threshold=0.3)}
        await socket.send(Configure(method="dense", keywords=keywords).model_dump_json())
        await socket.send(spoken[:8_000].tobytes())
        await socket.send('{"type":"marker","id":1}')
        ready, marker = parse_server(await socket.recv()), parse_server(await socket.recv())
        assert isinstance(ready, Ready)
        assert isinstance(marker, Marker)
        points = stream.hosted.network.points
        assert (ready.point, points[stream.hosted.cache.point[stream.slot.row]]) == ("dense", "dense")


async def test_odd_bytes_lose_nothing(running: Any, spoken: np.ndarray) -> None:
    data = spoken[:40_000].tobytes()
    async with opened(running.stream) as socket:
        for size in (1, 3, 0, 7_777, 1, len(data)):
            await socket.send(data[:size])
            data = data[size:]
        await socket.send('{"type":"close"}')
        closed = (await rest(socket))[-1]
    assert isinstance(closed, Closed)
    assert closed.totals.samples == 40_000


async def test_client_that_vanishes_in_the_middle_of_a_frame_disturbs_nobody(running: Any, spoken: np.ndarray) -> None:
    metrics = running.server.metrics
    before = metrics.registry.get_sample_value("deltaspot_sessions_total", {"outcome": "vanished"})
    async with opened(running.stream) as bystander:
        async with opened(running.stream) as victim:
            await victim.send(spoken[:8_000].tobytes())
            victim.transport.write(struct.pack("!BBH", 0x82, 0xFE, 9_999) + b"half a fra")
            victim.transport.abort()
        while metrics.registry.get_sample_value("deltaspot_sessions_total", {"outcome": "vanished"}) == before:
            await bystander.send('{"type":"marker","id":1}')
            assert parse_server(await bystander.recv()) == Marker(id=1)
        await bystander.send('{"type":"close"}')
        assert isinstance((await rest(bystander))[-1], Closed)


async def test_silent_client_is_sent_away(serving: Callable[..., Any]) -> None:
    with serving(idle_s=0.1) as running:
        async with opened(running.stream) as socket:
            await rest(socket)
        assert socket.close_code == CloseCode.IDLE
    with serving(configure_s=0.1) as running:
        async with connect(running.stream) as socket:
            await rest(socket)
        assert socket.close_code == CloseCode.IDLE


async def test_client_that_does_not_read_is_sent_away(serving: Callable[..., Any], spoken: np.ndarray) -> None:
    with serving(outbox=10, burst_s=10_000) as running:
        async with opened(running.stream, Configure(scores=True, preroll_ms=3_000)) as socket:
            socket.transport.pause_reading()
            with pytest.raises(ConnectionClosed):
                await push(socket, spoken)
        reasons = running.server.metrics.registry.get_sample_value
        assert reasons("deltaspot_sessions_total", {"outcome": CloseCode.QUEUE_FULL.wire}) == 1


async def push(socket: ClientConnection, samples: np.ndarray) -> None:
    """A recording again and again, until the server has enough."""
    while True:
        for at in range(0, len(samples), 4_800):
            await socket.send(samples[at : at + 4_800].tobytes())


async def test_stream_and_places_are_limited(serving: Callable[..., Any]) -> None:
    with serving(sessions=1, stream_s=1) as running:
        async with opened(running.stream) as socket:
            with pytest.raises(InvalidStatus) as refused:
                await connect(running.stream)
            assert refused.value.response.status_code == 503
            assert int(refused.value.response.headers["Retry-After"]) > 0
            assert Failed.model_validate_json(refused.value.response.body).code == "capacity"
            await socket.send(bytes(40_000))
            await rest(socket)
        assert socket.close_code == CloseCode.SHARE_SPENT


async def test_stream_outlives_the_share_of_a_connection(
    serving: Callable[..., Any], running: Any, spoken: np.ndarray
) -> None:
    async def heard(url: str) -> tuple[list[tuple[int, str, float]], int]:
        async with asyncio.timeout(120), spotting(url, point="dense") as spotter:
            spotter.play(chunks(spoken, {}))
            told: list[object] = [event async for event in spotter]
            return detections(told), spotter.connections

    with serving(stream_s=3) as scanty:
        told, connections = await heard(scanty.stream)
    assert connections > 3
    assert (told, 1) == await heard(running.stream)


async def test_clip_on_its_way_is_judged_before_the_end(serving: Callable[..., Any]) -> None:
    clip = bytes(32_000)
    head = b"POST /v1/detect?encoding=s16le HTTP/1.1\r\nHost: h\r\nConnection: close\r\nContent-Length: %d\r\n\r\n"
    with serving() as running:
        server = running.server
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        async with asyncio.timeout(60):
            writer.write(head % len(clip) + clip[1:])
            while not server.bodies.held:  # noqa: ASYNC110 (the server is another thread)
                await asyncio.sleep(0.01)
            draining = asyncio.run_coroutine_threadsafe(server.drain(), server.engine._loop)
            while not server.engine.places.draining:  # noqa: ASYNC110 (as above)
                await asyncio.sleep(0.01)
            await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(asyncio.sleep(0), server.engine._loop))
            assert not draining.done()
            writer.write(clip[:1])
            assert (await reader.read()).startswith(b"HTTP/1.1 200")
            await asyncio.wrap_future(draining)
        writer.close()


async def test_peer_that_answers_no_ping_is_sent_away_for_silence_alone(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Hurried(Socket):
        def __init__(self, config: Any, *arguments: Any, **options: Any) -> None:
            config.ws_ping_interval, config.ws_ping_timeout = 0.02, config.ws_ping_timeout and 0.02
            super().__init__(config, *arguments, **options)

    monkeypatch.setattr(serve, "Socket", Hurried)
    with serving(idle_s=0.5) as running:
        async with upgraded(running.port) as (reader, writer, frames):
            writer.write(client_frame(TEXT, CONFIGURE.encode()))
            heard = []
            while data := await reader.read(65_536):
                heard += frames.feed(data)
    assert [kind for kind, _ in heard].count(PING) > 3
    assert heard[-1][0] == CLOSE
    assert int.from_bytes(heard[-1][1][:2]) == CloseCode.IDLE


async def test_streams_are_warned_of_what_the_server_cannot_help(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = running.server.engine
    async with asyncio.timeout(60), opened(running.stream) as socket:
        for shedding, code in ((True, WarningCode.SHEDDING), (False, WarningCode.RESTORED)):
            engine._call(engine.on_shed, shedding)
            assert Warned.model_validate_json(await socket.recv()).code is code
        monkeypatch.setattr(engine, "age", lambda _slot: 2 * running.server.settings.lag_s)
        assert Warned.model_validate_json(await socket.recv()).code is WarningCode.LAGGING
        await socket.send('{"type":"feedback","detection":99,"correct":false}')
        assert Warned.model_validate_json(await socket.recv()).code is WarningCode.UNKNOWN_DETECTION


async def test_a_thousand_streams_are_not_told_at_once(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "CHECK_S", 1_000.0)
    with serving() as running:
        engine = running.server.engine
        async with asyncio.timeout(60), opened(running.stream) as socket:
            engine._call(engine.on_shed, True)
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(socket.recv(), 0.3)
            await socket.send('{"type":"marker","id":1}')
            assert Warned.model_validate_json(await socket.recv()).code is WarningCode.SHEDDING
            assert parse_server(await socket.recv()) == Marker(id=1)


async def test_while_the_server_stands_still_nobody_is_silent(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "CHECK_S", 0.05)
    with serving(idle_s=0.5) as running:
        async with asyncio.timeout(60), opened(running.stream) as socket:
            running.server.engine._call(time.sleep, 0.8)  # on the event loop
            await asyncio.sleep(0.9)
            await socket.send('{"type":"marker","id":1}')
            assert parse_server(await socket.recv()) == Marker(id=1)
