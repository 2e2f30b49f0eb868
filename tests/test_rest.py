"""The REST half, over real sockets: clips, probes, documents and reloads, and what is refused."""

from __future__ import annotations

import asyncio
import gc
import json
import re
import socket
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pyarrow as pa
import pytest

from client.errors import CannotConnect
from client.rest import post
from models.checkpoint import load_checkpoint, save, shipped_path
from models.config import KEYWORDS
from service import clips, layers
from service.bodies import AT_A_TIME
from service.commands.demo import script
from service.engine import Engine
from service.errors import Internal
from service.layers import POLICY
from service.protocol import Closed, Failed, Marker, parse_server
from service.scan import Scanner
from service.server import Server
from service.settings import Settings
from service.shedding import COARSEST
from tests.talk import opened, play, wav, words


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
    told = json.dumps({name: answer[name] for name in ("detections", "top", "macs", "time_ms")})
    assert not re.search(r"\.\d{5}", told), "more digits than anybody has heard"
    bare = await web.post("/v1/detect?encoding=s16le", content=spoken.astype("<i2").tobytes())
    assert bare.json()["detections"] == answer["detections"]


async def test_clip_is_heard_alike_while_precision_is_shed(
    running: Any, web: httpx.AsyncClient, spoken: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiet = (await web.post("/v1/detect", content=wav(spoken))).json()
    monkeypatch.setattr(running.server.engine, "_shed", lambda: None)
    monkeypatch.setattr(running.server.engine.shedding, "scale", COARSEST)
    busy = (await web.post("/v1/detect", content=wav(spoken))).json()
    assert (busy["top"], busy["macs"]) == (quiet["top"], quiet["macs"])


@pytest.mark.parametrize("before_s", [0.05, 0.6])
async def test_words_at_the_very_end_of_a_recording_are_heard_where_they_are(
    running: Any, web: httpx.AsyncClient, spoken: np.ndarray, tmp_path: Path, before_s: float
) -> None:
    said, cuts = [word for word in script() if word.text in KEYWORDS], {}
    for word in said:
        cut = spoken[round(16_000 * (word.start_s - before_s)) : round(16_000 * word.end_s)]
        cuts[tmp_path / f"{word.text}.wav"] = (cut, word)
        (tmp_path / f"{word.text}.wav").write_bytes(wav(cut))
    rows = Scanner(str(shipped_path()), "shipped")(pa.table({"path": list(map(str, cuts))})).to_pylist()
    streamed = 0
    for row, (cut, word) in zip(rows, cuts.values(), strict=True):
        (found,) = (await web.post("/v1/detect", content=wav(cut))).json()["detections"]
        assert found["keyword"] == row["keyword"] == word.text
        assert 0 <= found["start_s"] < found["end_s"] <= len(cut) / 16_000
        assert (row["start_s"], row["end_s"]) == pytest.approx((found["start_s"], found["end_s"]), abs=0.031)
        assert found["start_s"] == pytest.approx(before_s, abs=0.25)
        streamed += [text for text, _ in words(await play(running.stream, cut))] == [word.text]
    assert streamed >= len(said) - 1


async def test_the_highest_label_of_a_longer_recording_is_not_its_pauses(
    web: httpx.AsyncClient, spoken: np.ndarray
) -> None:
    yes = script()[0]
    cut = spoken[round(16_000 * (yes.start_s - 0.6)) : round(16_000 * (yes.end_s + 0.6))]
    top = (await web.post("/v1/detect", content=wav(cut))).json()["top"]
    assert top[0]["label"] == yes.text
    silent = (await web.post("/v1/detect", content=wav(np.zeros(32_000)))).json()["top"]
    assert silent[0]["label"] == "_silence_"


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
        (wav(np.zeros(9)), "?piont=dense", 422),
    ],
)
async def test_bad_clip_is_refused(
    running: Any, web: httpx.AsyncClient, content: bytes, query: str, status: int
) -> None:
    answer = await web.post(f"/v1/detect{query}", content=content)
    assert answer.status_code == status
    assert Failed.model_validate(answer.json()).message
    assert running.server.engine.places.reserved == 0


async def test_every_clip_has_its_line(
    running: Any, web: httpx.AsyncClient, lines: Callable[[], list[dict[str, Any]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        running.server.engine.places.cancel()
        raise ZeroDivisionError

    await web.post("/v1/detect", content=wav(np.zeros(16_000)))
    await web.post("/v1/detect", content=b"not audio")
    monkeypatch.setattr(clips, "judge", broken)
    answer = await web.post("/v1/detect", content=b"x")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    judged, refused, failed = (line for line in lines() if line["event"] == "clip")
    assert (judged["outcome"], judged["seconds"], judged["detections"]) == ("judged", 1, 0)
    assert (refused["outcome"], failed["outcome"]) == ("refused", "failed")
    why, ours = (line for line in lines() if line["event"] == "refused")
    assert (ours["reason"], ours["request_id"]) == ("internal", answer.headers["x-request-id"])
    assert (why["caller"], ours["caller"]) == ("anyone", "anyone")
    assert (why["reason"], why["path"], why["request_id"]) == ("unsupported_audio", "/v1/detect", refused["request_id"])
    assert "not an audio file" in why["message"]


async def test_clip_that_our_own_mistake_ends_has_failed(
    running: Any, web: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        running.server.engine.places.cancel()
        raise Internal("the model failed")

    monkeypatch.setattr(clips, "judge", broken)
    value = partial(running.server.metrics.registry.get_sample_value, "deltaspot_clips_total", {"outcome": "failed"})
    before = value()
    assert (await web.post("/v1/detect", content=b"x")).status_code == 500
    assert value() == before + 1


@pytest.mark.parametrize(
    ("method", "path", "status", "field"),
    [
        ("POST", "/v1/detect?sample_rate=7", 422, "sample_rate"),
        ("POST", "/v1/detect?encoding=mp3", 422, "encoding"),
        ("POST", f"/v1/detect?point={'x' * 40}", 422, "point"),
        ("POST", f"/v1/detect?keywords={','.join(map(str, range(65)))}", 422, "keywords"),
        ("GET", "/v1/detect", 405, None),
        ("DELETE", "/", 405, None),
        ("GET", "/nowhere", 404, None),
        ("GET", "/v1/nowhere", 404, None),
        ("POST", "/v1/stream", 405, None),
    ],
)
async def test_whatever_is_refused_is_refused_in_one_form(
    web: httpx.AsyncClient, method: str, path: str, status: int, field: str | None
) -> None:
    answer = await web.request(method, path)
    assert answer.status_code == status
    assert Failed.model_validate(answer.json()).field == field
    assert ("Allow" in answer.headers) is (status == 405)


async def test_stream_without_an_upgrade_is_told_what_is_missing(web: httpx.AsyncClient) -> None:
    answer = await web.get("/v1/stream")
    assert (answer.status_code, answer.headers["Upgrade"]) == (426, "websocket")
    assert "proxy" in Failed.model_validate(answer.json()).message


async def test_file_of_another_format_is_told_which_are_read(web: httpx.AsyncClient) -> None:
    answer = await web.post("/v1/detect", content=bytes.fromhex("1a45dfa3") + b"webm" * 100)
    assert (answer.status_code, answer.json()["code"]) == (415, "unsupported_audio")
    assert all(word in answer.json()["message"] for word in ("FLAC", "MP3", "ffmpeg", "encoding="))


async def test_form_in_the_place_of_a_clip_is_told_how(running: Any, web: httpx.AsyncClient) -> None:
    answer = await web.post("/v1/detect", files={"file": wav(np.zeros(16_000))})
    assert (answer.status_code, answer.json()["code"]) == (422, "bad_message")
    assert "--data-binary" in answer.json()["message"]
    assert running.server.engine.places.reserved == 0


@pytest.mark.parametrize("path", ["/v1/detect", "/v1/detect?encoding=s16le", "/v1/enroll"])
async def test_body_in_which_nothing_is_says_so(running: Any, web: httpx.AsyncClient, path: str) -> None:
    answer = await web.post(path)
    assert (answer.status_code, answer.json()["message"]) == (415, "the body is empty")
    assert running.server.engine.places.reserved == 0


async def test_bodies_in_memory_are_bounded(serving: Callable[..., Any]) -> None:
    """Uploads that never end are held up to a limit; who comes then is told to come again, and later is heard."""
    clip, patience = 64 << 10, 5.0

    async def endless(socket: tuple[asyncio.StreamReader, asyncio.StreamWriter]) -> None:
        head = f"POST /v1/detect?encoding=s16le HTTP/1.1\r\nHost: x\r\nContent-Length: {clip}\r\n\r\n".encode()
        socket[1].write(head + bytes(clip - 1))
        await socket[1].drain()

    with serving(clip_bytes=clip, idle_s=patience) as running:
        bodies, full = running.server.bodies, AT_A_TIME * (clip - 1)
        sockets = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(AT_A_TIME)]
        async with asyncio.timeout(60), httpx.AsyncClient(base_url=running.http) as web:
            for socket in sockets:
                await endless(socket)
            while bodies.held < full:  # noqa: ASYNC110 (nobody is told)
                await asyncio.sleep(0.01)
            refused = await web.post("/v1/detect?encoding=s16le", content=bytes(1_000))
            assert (refused.status_code, refused.json()["code"]) == (503, "capacity")
            assert int(refused.headers["Retry-After"]) > 0
            counted = running.server.metrics.registry.get_sample_value
            assert counted("deltaspot_refusals_total", {"reason": "capacity"}) == 1
            for _, writer in sockets:
                writer.close()
            while bodies.held:  # noqa: ASYNC110 (as above)
                await asyncio.sleep(0.01)
            assert (await web.post("/v1/detect?encoding=s16le", content=bytes(1_000))).status_code == 200


async def test_uploads_take_no_place_before_they_are_here(serving: Callable[..., Any]) -> None:
    head = b"POST /v1/%s HTTP/1.1\r\nHost: x\r\nContent-Length: 9999\r\n\r\nRIFF"
    with serving(sessions=2) as running:
        counted = running.server.metrics.registry.get_sample_value
        sockets = [await asyncio.open_connection("127.0.0.1", running.port) for _ in range(4)]
        for number, (_, writer) in enumerate(sockets):
            writer.write(head % (b"detect", b"enroll")[number % 2])
        async with asyncio.timeout(60):
            while running.server.bodies.held < 4 * len(b"RIFF"):  # noqa: ASYNC110 (nobody is told)
                await asyncio.sleep(0.01)
            async with opened(running.stream), opened(running.stream):
                assert running.server.engine.places.used == 2
            for _, writer in sockets:
                writer.close()
            while running.server.bodies.held:  # noqa: ASYNC110 (as above)
                await asyncio.sleep(0.01)
            while counted("deltaspot_clips_total", {"outcome": "vanished"}) != 2:  # noqa: ASYNC110 (as above)
                await asyncio.sleep(0.01)
        assert counted("deltaspot_clips_total", {"outcome": "failed"}) == 0


async def test_who_sends_on_after_an_early_answer_hears_it(serving: Callable[..., Any]) -> None:
    with serving(clip_bytes=64 << 10) as running, pytest.raises(CannotConnect, match=r"65536 bytes \(413\)"):
        await asyncio.to_thread(post, running.http, "/v1/detect", bytes(40 << 20))


async def test_who_never_ends_after_an_early_answer_is_left(running: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layers, "LINGER_S", 0.1)
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", running.port)
        writer.write(b"POST /healthz HTTP/1.0\r\nContent-Length: 99999\r\n\r\n" + bytes(9))
        assert (await reader.read()).startswith(b"HTTP/1.1 405 ")
        writer.close()


async def test_connection_that_ends_while_a_recording_is_sent_is_told_from_none_at_all() -> None:
    async def reset(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    async with await asyncio.start_server(reset, "127.0.0.1", 0) as stranger:
        port = stranger.sockets[0].getsockname()[1]
        with pytest.raises(CannotConnect, match="while the recording was being sent; it may be longer"):
            await asyncio.to_thread(post, f"127.0.0.1:{port}", "/v1/detect", bytes(40 << 20))


async def test_probes_documents_and_metrics(running: Any, web: httpx.AsyncClient) -> None:
    assert (await web.get("/healthz")).json()["status"] == "ok"
    assert (await web.get("/readyz")).json()["status"] == "ready"
    assert [(await web.head(path)).status_code for path in ("/healthz", "/readyz")] == [200, 200]  # wget --spider
    assert (await web.get("/asyncapi.json")).json()["servers"]["here"]["host"] == f"127.0.0.1:{running.port}"
    assert "deltaspot_sessions_open" in (await web.get("/metrics")).text
    models = (await web.get("/v1/models")).json()
    assert models[0]["fingerprint"] == running.server.engine.find(None).spec.fingerprint
    async with opened(running.stream):
        (session,) = (await web.get("/v1/sessions")).json()
        assert session["model"] == "default"


async def test_every_answer_carries_the_security_headers(web: httpx.AsyncClient) -> None:
    for path in ("/healthz", "/nowhere", "/metrics"):
        assert POLICY.items() <= {name.title(): value for name, value in (await web.get(path)).headers.items()}.items()


async def test_modules_of_the_page_are_asked_for_anew_and_sent_when_they_changed(web: httpx.AsyncClient) -> None:
    module = await web.get("/deltaspot.js")
    assert module.headers["cache-control"] == "no-cache"
    again = await web.get("/deltaspot.js", headers={"If-None-Match": module.headers["etag"]})
    assert (again.status_code, again.headers["cache-control"]) == (304, "no-cache")


async def test_reloads_take_turns_and_wait_for_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = []

    async def load(_server: Server) -> None:
        steps.append("begin")
        await asyncio.sleep(0)
        steps.append("end")

    monkeypatch.setattr(Server, "_load", load)
    server = Server(Settings())
    monkeypatch.setattr(server.engine, "start", lambda _loop: steps.append("start") or 1 / 0)
    await asyncio.gather(server.start(), server.reload(), server.reload(), return_exceptions=True)
    assert steps == ["begin", "end", "start"] + ["begin", "end"] * 2


async def test_nothing_of_the_rehearsal_stays_once_a_server_is_ready() -> None:
    def engines() -> set[int]:
        gc.unfreeze()  # what is frozen is kept for ever, and not shown
        return {id(thing) for thing in gc.get_objects() if type(thing) is Engine}  # isinstance would wake lazy ones

    before, server = engines(), Server(Settings())
    await server.start()
    try:
        assert engines() - before == {id(server.engine)}, "a rehearsal's cache is that of 64 streams"
    finally:
        await server.stop()


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
    model, shipped = tmp_path / "model.safetensors", load_checkpoint(shipped_path())
    save(shipped, model)
    with serving(model=model) as running:
        before = running.server.engine.find(None)
        async with httpx.AsyncClient(base_url=running.http, timeout=60) as web:
            model.write_bytes(b"broken")
            answer = await web.post("/v1/reload")
            assert answer.status_code == 422
            assert str(model) in answer.json()["message"]
            save(replace(shipped, config=replace(shipped.config, span=15)), model)
            answer = await web.post("/v1/reload")
            assert answer.status_code == 422
            assert "span" in answer.json()["message"]
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
