"""A voice satellite, played by the protocol's own Python package, hears a word."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soxr
from wyoming.audio import AudioChunk, AudioStart, AudioStop
from wyoming.client import AsyncTcpClient
from wyoming.event import Event
from wyoming.info import Describe, Info
from wyoming.ping import Ping, Pong
from wyoming.wake import Detect, Detection, NotDetected

from client.connection import connect
from client.hostile import SATELLITES, intrude
from client.keywords import write_keyword
from models.enroll import EnrolledKeyword
from service import protocol, wyoming
from service.engine import clock
from service.protocol import Enrolled
from tests.test_enroll import seven  # noqa: F401 (a fixture)


@pytest.fixture(scope="module")
def door(serving: Callable[..., Any]) -> Any:
    with serving(wyoming_port=0, sessions=2) as running:
        yield running.app.state.wyoming.sockets[0].getsockname()[1], running.server


@asynccontextmanager
async def satellite(port: int) -> AsyncIterator[AsyncTcpClient]:
    async with asyncio.timeout(60), AsyncTcpClient("127.0.0.1", port) as client:
        yield client


async def speak(client: AsyncTcpClient, samples: np.ndarray, rate: int = 16_000, width: int = 2) -> list[Event]:
    """One utterance; return everything the server said of it."""
    await client.write_event(AudioStart(rate, width, 1).event())
    audio = (samples.astype(f"<i{width}") << 8 * (width - 2)).tobytes()
    for at in range(0, len(audio), 2_047):
        await client.write_event(AudioChunk(rate, width, 1, audio[at : at + 2_047]).event())
    await client.write_event(AudioStop().event())
    await client.write_event(Ping("end").event())
    events = []
    while not Pong.is_type((event := await client.read_event()).type):
        events.append(event)
    return events


async def test_satellite_hears_what_it_asked_for(door: Any, spoken: np.ndarray) -> None:
    async with satellite(door[0]) as client:
        heard = [Detection.from_event(event) for event in await speak(client, spoken)]
        assert len(heard) >= 3
        word = heard[0].name
        await client.write_event(Detect([word]).event())
        again = [Detection.from_event(event) for event in await speak(client, spoken)]
        assert {detection.name for detection in again} == {word}
        assert 0 < again[0].timestamp < len(spoken) / 16


async def test_satellite_at_another_rate_hears_too(door: Any, spoken: np.ndarray) -> None:
    faster = soxr.resample(spoken, 16_000, 48_000)
    async with satellite(door[0]) as client:
        assert any(Detection.is_type(event.type) for event in await speak(client, faster, 48_000))


async def test_wide_samples_are_whole_numbers_too(door: Any, spoken: np.ndarray) -> None:
    async with satellite(door[0]) as client:
        events = [await speak(client, spoken, width=width) for width in (2, 4)]
    assert [event.data for event in events[0]] == [event.data for event in events[1]]


async def test_satellite_that_pings_is_there(door: Any) -> None:
    async with satellite(door[0]) as client:

        async def ping() -> None:
            await client.write_event(Ping().event())
            assert Pong.is_type((await client.read_event()).type)

        await client.write_event(AudioStart(16_000, 2, 1).event())
        await ping()
        (stream,) = door[1].streams
        stream.last_heard -= door[1].limits.idle_s / 2
        await ping()
        assert clock() - stream.last_heard < door[1].limits.idle_s / 2


async def ended(running: Any, outcome: str, times: int) -> None:
    """Wait until as many streams of a server have ended so."""
    value = running.server.metrics.registry.get_sample_value
    async with asyncio.timeout(60):
        while value("deltaspot_sessions_total", {"outcome": outcome}) != times:  # noqa: ASYNC110 (as in test_app.py)
            await asyncio.sleep(0.01)


async def test_satellite_that_goes_in_the_midst_has_vanished_unless_it_was_told_of_a_word(
    serving: Callable[..., Any], spoken: np.ndarray
) -> None:
    start = AudioStart(16_000, 2, 1).event()
    with serving(wyoming_port=0) as running:
        port = running.app.state.wyoming.sockets[0].getsockname()[1]
        async with satellite(port) as client:
            await client.write_event(start)
            await client.write_event(start)  # in the place of the first
            await client.write_event(Ping().event())
            await client.read_event()
        await ended(running, "vanished", 1)
        await ended(running, "normal", 1)
        async with satellite(port) as client:
            await client.write_event(start)
            await client.write_event(AudioChunk(16_000, 2, 1, spoken.astype("<i2").tobytes()).event())
            assert Detection.is_type((await client.read_event()).type)
        await ended(running, "normal", 2)


async def test_mistake_of_the_server_is_counted_as_one(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wyoming.Satellite, "_samples", lambda *_: 1 / 0)
    with serving(wyoming_port=0) as running:
        async with satellite(running.app.state.wyoming.sockets[0].getsockname()[1]) as client:
            await client.write_event(AudioChunk(16_000, 2, 1, bytes(320)).event())
            assert await client.read_event() is None
        await ended(running, "internal", 1)


async def test_silence_is_said_to_be_silence(door: Any) -> None:
    async with satellite(door[0]) as client:
        (event,) = await speak(client, np.zeros(32_000))
        assert NotDetected.is_type(event.type)


async def test_service_describes_itself(door: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wyoming, "version", None)  # the event loop has no time to look it up for every event
    async with satellite(door[0]) as client:
        await client.write_event(Describe().event())
        info = Info.from_event(await client.read_event())
        assert info.wake[0].version == wyoming.VERSION
        assert {model.name for model in info.wake[0].models} == {*door[1].engine.find(None).spec.config.keywords}


async def test_kept_keywords_are_offered_and_heard_by_those_who_name_them(
    serving: Callable[..., Any],
    able: Path,
    seven: EnrolledKeyword,  # noqa: F811
    spoken: np.ndarray,
    tmp_path: Path,
) -> None:
    names = [f"word {number}" for number in range(8)]
    for name in (*names, "yes", "_silence_"):  # these two are the model's own
        (tmp_path / f"{name}.json").touch()
    write_keyword(Enrolled(**asdict(seven)), tmp_path / f"{seven.name}.json")
    with serving(model=able, keywords=tmp_path, wyoming_port=0) as running:
        config = running.server.engine.find(None).spec.config
        async with satellite(running.app.state.wyoming.sockets[0].getsockname()[1]) as client:
            await client.write_event(Describe().event())
            offered = [model.name for model in Info.from_event(await client.read_event()).wake[0].models]
            assert offered == [*config.keywords, seven.name, *names]
            for asked in ([seven.name, "yes"], [seven.name]):
                await client.write_event(Detect(asked).event())
                heard = {Detection.from_event(event).name for event in await speak(client, spoken)}
                assert heard == set(asked)
            await client.write_event(Detect(offered[len(config.keywords) :]).event())
            await client.write_event(AudioStart(16_000, 2, 1).event())
            assert "names: " in (await client.read_event()).data["text"]


@pytest.mark.parametrize(
    "garbage",
    [
        b"hello\n", b"[]\n", b'{"type":"x","data_length":-1}\n', b'{"type":"x","payload_length":1e9}\n',
        b'{"type":"audio-start","data_length":99999999}\n', b"x" * 99_999, b'{"type":"x","data":3}\n',
        b'{"type":"audio-start","data":{"width":3}}\n', b'{"type":"audio-start","data":{"width":[2]}}\n',
        b'{"type":"audio-start","data":{"rate":7}}\n',
        b'{"type":"detect","data":{"names":7}}\n',
        b'{"type":"detect","data":{"names":["?"]}}\n{"type":"audio-start"}\n',
    ],
)  # fmt: skip
async def test_garbage_is_answered_and_the_door_stays_open(
    door: Any, garbage: bytes, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    async with asyncio.timeout(60):
        reader, writer = await asyncio.open_connection("127.0.0.1", door[0])
        writer.write(garbage)
        assert b'"type": "error"' in await reader.read()
        writer.close()
    assert door[1].engine.places.reserved == 0
    (line,) = (line for line in lines() if line["event"] == "refused")
    assert (line["path"], line["peer"]) == ("wyoming", "127.0.0.1")
    async with satellite(door[0]) as client:
        await client.write_event(Ping("there?").event())
        assert Pong.is_type((await client.read_event()).type)


async def test_server_that_stops_during_a_satellites_last_words_does_so_quietly(
    serving: Callable[..., Any], caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wyoming, "LINGER_S", 60.0)
    with serving(wyoming_port=0) as running:
        port = running.app.state.wyoming.sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"hello\n")
        assert b'"type": "error"' in await reader.read()
    writer.close()
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


async def test_hostile_satellites_are_thrown_out_and_honest_ones_hear_on(
    serving: Callable[..., Any], spoken: np.ndarray
) -> None:
    with serving(wyoming_port=0, idle_s=1, sessions=50) as running:
        port = running.app.state.wyoming.sockets[0].getsockname()[1]

        async def heard() -> tuple[list[str], list[str]]:
            async with satellite(port) as client, connect(running.http) as spotter:
                events = await speak(client, spoken)
                await spotter.send(spoken.astype("<i2").tobytes())
                await spotter.finish()
                words = [event.keyword async for event in spotter if isinstance(event, protocol.Detection)]
            return [Detection.from_event(event).name for event in events], words

        alone = await heard()
        crowd = await asyncio.gather(*(intrude(port, number, SATELLITES) for number in range(5 * len(SATELLITES))))
        assert await heard() == alone
        await asyncio.wait([hostile.ended for hostile in crowd], timeout=60)
        stayed = {hostile.kind for hostile in crowd if not hostile.ended.done()}
        for hostile in crowd:
            hostile.leave()
        assert await heard() == alone
        assert stayed == set()
        assert alone[0] == alone[1] != []
        assert (running.server.streams, running.server.engine.places.reserved) == (set(), 0)
