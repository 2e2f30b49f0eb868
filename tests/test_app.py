"""The doors, over real sockets: what is heard, what is refused and how, and that no stranger feels it."""

from __future__ import annotations

import asyncio
import io
import json
import socket
import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import soundfile
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from models.checkpoint import shipped_path
from service.app import POLICY
from service.protocol import (
    CloseCode,
    Closed,
    Configure,
    Detection,
    Failed,
    Marker,
    Ready,
    Scores,
    ServerMessage,
    Warned,
    WarningCode,
    parse_server,
)

CHUNK = 3_200


@asynccontextmanager
async def opened(url: str, configure: Configure | None = None, **more: Any) -> AsyncIterator[ClientConnection]:
    async with connect(url, compression=None, **more) as socket:
        await socket.send((configure or Configure()).model_dump_json())
        assert isinstance(parse_server(await socket.recv()), Ready)
        yield socket


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
    "unknown point": (['{"type":"configure","point":"gpt"}'], CloseCode.BAD_MESSAGE, "point"),
    "changed rate": ([CONFIGURE, '{"type":"configure","sample_rate":8000}'], CloseCode.BAD_MESSAGE, "sample_rate"),
    "NaN samples": (
        ['{"type":"configure","encoding":"f32le"}', np.full(9, np.nan, "<f4").tobytes()],
        CloseCode.UNSUPPORTED_AUDIO,
        None,
    ),
    "frame too long": ([CONFIGURE, bytes((1 << 20) + 2)], CloseCode.TOO_LONG, None),
    "hours of audio at once": ([CONFIGURE, *[bytes(1 << 20)] * 8], CloseCode.TOO_FAST, None),
}


@pytest.mark.parametrize("case", BAD)
async def test_bad_input_gets_a_message_and_a_code(running: Any, case: str) -> None:
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
        assert socket.close_code == CloseCode.TOO_LONG


# --- REST


def wav(samples: np.ndarray, rate: int = 16_000, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, samples.astype(np.int16), rate, format=kind)
    return file.getvalue()


@pytest.fixture
async def web(running: Any) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=running.http, timeout=60) as client:
        yield client


async def test_clip_is_heard_as_a_stream_is(running: Any, web: httpx.AsyncClient, spoken: np.ndarray) -> None:
    counted = running.server.metrics.registry.get_sample_value
    before = counted("deltaspot_audio_seconds_total")
    answer = (await web.post("/v1/detect", content=wav(spoken, kind="FLAC"))).json()
    assert counted("deltaspot_audio_seconds_total") - before > 0.99 * answer["seconds"]
    heard = [word for word, _ in words(await play(running.stream, spoken))]
    assert [found["keyword"] for found in answer["detections"]] == heard
    assert answer["seconds"] == pytest.approx(len(spoken) / 16_000)
    assert {top["label"] for top in answer["top"]} == {*running.server.engine.find(None).spec.config.labels}
    bare = await web.post("/v1/detect?encoding=s16le", content=spoken.astype("<i2").tobytes())
    assert bare.json()["detections"] == answer["detections"]


@pytest.mark.parametrize(
    ("content", "query", "status"),
    [
        (b"", "", 415),
        (b"not audio", "", 415),
        (wav(np.zeros(0)), "", 415),
        (b"\1", "?encoding=s16le", 415),
        (np.full(9, np.nan, "<f4").tobytes(), "?encoding=f32le", 415),
        (wav(np.zeros(8_000 * 7_200), 8_000, "FLAC"), "", 413),
        (bytes(33 << 20), "?encoding=mulaw", 413),
        (b"x", "?encoding=mp3", 422),
        (b"x", "?encoding=s16le&sample_rate=7", 422),
        (wav(np.zeros(9)), "?model=gpt", 422),
    ],
)
async def test_bad_clip_is_refused(
    running: Any, web: httpx.AsyncClient, content: bytes, query: str, status: int
) -> None:
    answer = await web.post(f"/v1/detect{query}", content=content)
    assert answer.status_code == status
    assert answer.json()
    assert running.server.engine.places.reserved == 0


async def test_probes_documents_and_metrics(running: Any, web: httpx.AsyncClient) -> None:
    assert (await web.get("/healthz")).json()["status"] == "ok"
    assert (await web.get("/readyz")).json()["status"] == "ready"
    assert (await web.get("/asyncapi.json")).json()["asyncapi"] == "3.0.0"
    assert "deltaspot_sessions_open" in (await web.get("/metrics")).text
    models = (await web.get("/v1/models")).json()
    assert models[0]["fingerprint"] == running.server.engine.find(None).spec.fingerprint
    async with opened(running.stream):
        (session,) = (await web.get("/v1/sessions")).json()
        assert session["model"] == "default"


async def test_every_answer_carries_the_security_headers(web: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/nowhere", "/metrics"):
        assert POLICY.items() <= {name.title(): value for name, value in (await web.get(path)).headers.items()}.items()


async def test_bytes_that_are_no_http_do_no_harm(running: Any, web: httpx.AsyncClient) -> None:
    noise = np.random.default_rng(1).bytes(4_096)
    for prefix in (b"", b"GET /v1/stream HTTP/1.1\r\n", b"\x16\x03\x01"):
        with socket.create_connection(("127.0.0.1", running.port)) as raw:
            raw.sendall(prefix + noise)
    assert (await web.get("/healthz")).status_code == 200


async def test_models_are_reloaded_and_open_streams_keep_theirs(running: Any, web: httpx.AsyncClient) -> None:
    async with opened(running.stream) as socket:
        before = running.server.engine.find(None)
        assert (await web.post("/v1/reload")).status_code == 204
        assert running.server.engine.find(None) is not before
        await socket.send(json.dumps({"type": "marker", "id": 1}))
        assert parse_server(await socket.recv()) == Marker(id=1)


async def test_broken_model_is_not_reloaded(serving: Callable[..., Any], tmp_path: Path) -> None:
    model = tmp_path / "model.safetensors"
    model.write_bytes(shipped_path().read_bytes())
    with serving(model=model) as running:
        before = running.server.engine.find(None)
        model.write_bytes(b"broken")
        async with httpx.AsyncClient(base_url=running.http, timeout=60) as web:
            answer = await web.post("/v1/reload")
        assert answer.status_code == 422
        assert str(model) in answer.json()["message"]
        assert running.server.engine.find(None) is before


async def test_clips_and_tickets_live_as_long_as_the_operator_says(serving: Callable[..., Any]) -> None:
    with serving(clip_s=1, ticket_s=7, queue_s=0.1, batch_ms=0) as running:
        async with httpx.AsyncClient(base_url=running.http, timeout=60) as web:
            assert (await web.post("/v1/detect", content=wav(np.zeros(15_000)))).status_code == 200
            assert (await web.post("/v1/detect", content=wav(np.zeros(17_000)))).status_code == 413
            assert (await web.post("/v1/tickets")).json()["expires_s"] == 7
        closed = (await play(running.stream, np.zeros(32_000)))[-1]  # its queue is full at every chunk
        assert isinstance(closed, Closed)
        assert closed.totals.samples == 32_000


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
