"""A stream outlives its connection: nothing is lost, nothing is told twice, nothing grows without bound."""

from __future__ import annotations

import asyncio
import re
import threading

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from client import blocking, connection, handshake, memory
from client.address import rest_url, stream_url
from client.connection import Interrupted, connect
from client.errors import CannotConnect, SettingError, SourceError, StreamFinished
from client.outbox import Outbox
from client.rest import post
from service.protocol import (
    CloseCode,
    Closed,
    Configure,
    Detection,
    Encoding,
    Failed,
    KeywordSettings,
    Marker,
    Ready,
)
from tests.peer import PCM, REPLAY, Peer, detection, greet, heartbeat, of_another_version, ready, server


@given(st.lists(st.binary(max_size=40), max_size=20), st.integers(1, 3), st.integers(1, 30), st.data())
def test_outbox_repeats_all_that_may_be_needed(chunks, frame, piece, data):
    outbox = Outbox(frame, piece)
    sent = b""
    for chunk in chunks:
        outbox.add_audio(chunk)
        sent += b"".join(outbox.take(1 << 30))
    whole = b"".join(chunks)
    whole = whole[: len(whole) // frame * frame]
    assert sent == whole
    acknowledged, replay = data.draw(st.integers(0, len(whole) // frame)), data.draw(st.integers(0, 20))
    outbox.acknowledge(acknowledged, replay)
    start = outbox.rewind()
    assert start <= max(0, acknowledged - replay)
    assert b"".join(outbox.take(1 << 30)) == whole[start * frame :]
    assert max(0, acknowledged - replay) - start <= max(piece // frame, 1), "kept more than it must"


@pytest.mark.parametrize(
    ("given", "stream", "rest"),
    [
        *((name, "ws://h:1/v1/stream", "http://h:1") for name in ("ws://h:1/v1/stream", "http://h:1", "h:1", "h:1/")),
        ("http://h/deltaspot/", "ws://h/deltaspot/v1/stream", "http://h/deltaspot"),
        ("wss://h/deltaspot/v1/stream?x=1", "wss://h/deltaspot/v1/stream?x=1", "https://h/deltaspot"),
        ("https://h/own/path?x=1", "wss://h/own/path?x=1", "https://h"),
    ],
)
def test_a_server_can_be_named_in_many_ways(given, stream, rest):
    assert stream_url(given) == stream
    assert rest_url(given, "/v1/detect?point=dense") == f"{rest}/v1/detect?point=dense"


@pytest.mark.parametrize("name", ["127.0.0.1:99999", "http://[::1", "h:port", f"{'a' * 70}.org", "h..org"])
def test_what_can_be_no_servers_name_is_said(name):
    for ask in (connect, lambda url: rest_url(url, "/v1/detect")):
        with pytest.raises(SettingError, match=re.escape(f"{name} is no server's address: ")):
            ask(name)


async def test_proxy_of_the_environment_is_asked_for_servers_elsewhere_only(monkeypatch):
    asked = []

    async def proxy(reader, writer):
        asked.append((await reader.readline()).decode().rstrip())
        writer.close()

    async with await asyncio.start_server(proxy, "127.0.0.1", 0) as listening:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        for name in ("no_proxy", "NO_PROXY"):
            monkeypatch.delenv(name, raising=False)
        for url in ("127.0.0.1:9", "[::1]:9", "localhost:9", "h.example:9"):
            with pytest.raises(CannotConnect):
                async with connect(url):
                    pass
            with pytest.raises(CannotConnect):
                await asyncio.to_thread(post, url, "/v1/detect", b"")
    assert asked == ["CONNECT h.example:9 HTTP/1.1", "POST http://h.example:9/v1/detect HTTP/1.1"]


async def test_settings_are_taken_as_python_has_them():
    async def act(peer: Peer) -> None:
        await greet(peer)
        await peer.close()

    wishes = {"stored": ["jarvis"], "encoding": "f32le", "keywords": {"yes": {"threshold": 0.3}}}
    wishes["sample_rate"] = np.int64(16_000)
    async with server(act) as (url, peers), connect(url, **wishes) as spotter:
        await spotter.finish()
    assert peers[0].hello == Configure(
        stored=("jarvis",), encoding=Encoding.F32LE, keywords={"yes": KeywordSettings(threshold=0.3)}
    )


@pytest.mark.parametrize(
    ("wish", "complaint"),
    [
        ({"keywords": "yes"}, r"keywords: 'yes' is no list; keywords=\['yes'\] is one"),
        ({"keywords": 5}, r"keywords: 5 is no list"),
        ({"keywords": [b"yes"]}, "names must be text: .*"),
        ({"enrolled": "jarvis.json"}, r"enrolled: 'jarvis\.json' is no list"),
        ({"keywords": {"yes": {"threshold": 2.0}}}, r"keywords\.yes\.threshold: .* less than or equal to 1"),
        ({"encoding": "mp3"}, "encoding: .*'s16le'"),
        ({"stored": "jarvis"}, "stored: .*"),
        ({"coarsest": float("nan")}, "coarsest: .*"),
        ({"sample_rate": object()}, "sample_rate: .*"),
        ({"loudness": 11}, "loudness: .*"),
    ],
)
def test_argument_that_no_server_would_take_is_named(wish, complaint):
    with pytest.raises(SettingError, match=f"^{complaint}"):
        connect("h:1", **wish)


async def test_events_are_typed_and_end():
    async def act(peer: Peer) -> None:
        await greet(peer)
        await peer.until(len(PCM))
        await peer.say(detection(0, 10))
        await peer.close()

    async with server(act) as (url, peers), connect(url, keywords=["yes"], scores=True) as spotter:
        await spotter.send(PCM[:33])
        await spotter.send(PCM[33:])
        spotter.marker("here")
        totals = await spotter.finish()
        events = [event async for event in spotter]
    assert [type(event) for event in events] == [Ready, Detection, Marker, Closed]
    assert totals is not None
    assert totals.samples == len(PCM) // 2
    assert peers[0].audio == PCM
    assert list(peers[0].hello.keywords or ()) == ["yes"]


async def test_nothing_follows_the_end():
    async def act(peer: Peer) -> None:
        await greet(peer)
        await peer.until(len(PCM))
        await peer.close()

    async with server(act) as (url, peers), connect(url) as spotter:
        await spotter.send(PCM)
        totals = await spotter.finish()
        assert await spotter.finish() == totals
        for say in (spotter.flush, spotter.reset, lambda: spotter.marker(1), lambda: spotter.adjust({})):
            with pytest.raises(StreamFinished, match="connect"):
                say()
        with pytest.raises(StreamFinished):
            await spotter.send(PCM)
    assert peers[0].audio == PCM


async def test_playing_ends_when_somebody_has_heard_enough():
    async def forever():
        while True:
            yield PCM
            await asyncio.sleep(0.01)

    async def act(peer: Peer) -> None:
        await greet(peer)
        await peer.close()

    async with server(act) as (url, _peers), connect(url) as spotter:
        spotter.play(forever())
        await asyncio.sleep(0.05)
        await spotter.finish()
        assert [type(event) async for event in spotter] == [Ready, Closed]


async def test_broken_connection_goes_on_where_the_server_was():
    async def first(peer: Peer) -> None:
        await greet(peer)
        await peer.until(len(PCM))
        await peer.say(detection(0, 600))
        peer.socket.transport.abort()

    async def second(peer: Peer) -> None:
        await greet(peer)
        await peer.until(2 * len(PCM))
        await peer.close()

    async with server(first, second) as (url, peers), connect(url) as spotter:
        for start in range(0, len(PCM), 64):
            await spotter.send(PCM[start : start + 64])
        while not isinstance(await anext(spotter), Interrupted):
            pass
        await spotter.send(PCM)
        await spotter.finish()
        events = [event async for event in spotter]
    again = peers[1].hello.resume
    assert again is not None
    assert again.token.endswith("600")
    assert 600 - REPLAY - 32 <= again.sample <= 600 - REPLAY
    assert peers[1].audio == (PCM + PCM)[again.sample * 2 :]
    assert [type(event) for event in events] == [Ready, Closed]
    assert spotter.connections == 2


async def test_draining_server_is_left_for_the_next():
    async def first(peer: Peer) -> None:
        await greet(peer)
        await peer.say(Failed(code="draining", message="the server is stopping"))
        await peer.socket.close(CloseCode.DRAINING)

    async def second(peer: Peer) -> None:
        await greet(peer)
        await peer.close()

    async with server(first, second) as (url, peers), connect(url) as spotter:
        await spotter.send(PCM)
        await spotter.finish()
        events = [event async for event in spotter]
    assert [event.reason for event in events if isinstance(event, Interrupted)] == ["the server is stopping"]
    assert peers[1].audio == PCM
    assert peers[1].hello.resume is None, "nothing was acknowledged, so the stream begins again"


async def test_server_of_another_version_begins_with_what_is_kept(running, spoken):
    pcm = spoken.tobytes()
    async with connect(running.http, point="dense") as whole:
        whole.play(in_blocks(pcm))
        wanted = [(event.keyword, event.at_s) async for event in whole if isinstance(event, Detection)]
    async with server(of_another_version) as (url, _peers), connect(url, point="dense") as spotter:
        spotter.url = running.stream
        spotter.play(in_blocks(pcm))
        events = [event async for event in spotter]
    told = [(event.keyword, event.at_s) for event in events if isinstance(event, Detection)]
    reasons = [event.reason for event in events if isinstance(event, Interrupted)]
    assert reasons[0] == "the connection broke"
    assert "not made by a server of this version" in reasons[1]
    assert told == [(word, pytest.approx(at_s, abs=0.25)) for word, at_s in wanted if at_s * 16_000 > 50_000] != []
    assert spotter.totals.samples < len(spoken) - 5_000, "what was judged is forgotten"


async def in_blocks(pcm: bytes):
    for start in range(0, len(pcm), 16_000):
        yield pcm[start : start + 16_000]


async def test_server_that_accepts_and_says_nothing_is_left_for_the_next(monkeypatch):
    async def first(peer: Peer) -> None:
        await greet(peer)
        monkeypatch.setattr(handshake, "PATIENCE_S", 0.2)
        peer.socket.transport.abort()

    async def second(peer: Peer) -> None:
        monkeypatch.undo()
        await peer.socket.wait_closed()

    async def third(peer: Peer) -> None:
        await greet(peer)
        await peer.close()

    async with asyncio.timeout(60), server(first, second, third) as (url, _peers), connect(url) as spotter:
        await spotter.send(PCM)
        await spotter.finish()
        events = [event async for event in spotter]
    reasons = [event.reason for event in events if isinstance(event, Interrupted)]
    assert reasons == ["the connection broke", "the server says nothing"]
    assert spotter.totals.samples == len(PCM) // 2


async def test_first_server_that_says_nothing_cannot_be_connected_to(monkeypatch):
    async def silent(peer: Peer) -> None:
        await peer.socket.wait_closed()

    monkeypatch.setattr(handshake, "PATIENCE_S", 0.2)
    async with asyncio.timeout(60), server(silent) as (url, _peers):
        with pytest.raises(CannotConnect, match="the server says nothing"):
            async with connect(url):
                pass


async def test_sending_waits_while_nothing_is_acknowledged(monkeypatch):
    monkeypatch.setattr(memory, "BACKLOG_S", 0.0)  # which leaves two heartbeats, 3,200 bytes
    received, acknowledge = asyncio.Event(), asyncio.Event()

    async def act(peer: Peer) -> None:
        await greet(peer)
        await peer.until(2 * len(PCM))
        received.set()
        await acknowledge.wait()
        await peer.say(heartbeat(len(PCM)))
        await peer.close()

    async with server(act) as (url, _peers), connect(url, sample_rate=8_000, heartbeat_ms=100) as spotter:
        await spotter.send(PCM)
        waiting = asyncio.create_task(spotter.send(PCM))
        await received.wait()
        returned = waiting.done()
        acknowledge.set()
        await waiting
        await spotter.finish()
    assert not returned, "the server had everything, but had not judged it"


async def test_stream_without_sound_does_not_add_up_its_breaks(monkeypatch):
    clock, hours = asyncio.get_running_loop().time, []
    monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: clock() + 3_600 * len(hours))

    async def breaks(peer: Peer) -> None:
        await greet(peer)
        await peer.socket.recv()
        hours.append("later")
        peer.socket.transport.abort()

    async def last(peer: Peer) -> None:
        await greet(peer)
        await peer.close()

    async with server(breaks, breaks, last) as (url, _peers), connect(url) as spotter:
        await spotter.finish()
        events = [event async for event in spotter]
    assert [type(event) for event in events] == [Ready, Interrupted, Ready, Interrupted, Ready, Closed]


async def test_break_after_the_last_message_is_no_failure():
    async def act(peer: Peer) -> None:
        await greet(peer)
        await peer.close()
        peer.socket.transport.close()  # what was said still goes, and no close frame
        peer.socket.server.close()

    async with server(act) as (url, _peers), connect(url, retry_s=0.1) as spotter:
        await spotter.send(PCM)
        assert (await spotter.finish()).samples == len(PCM) // 2
        assert [type(event) async for event in spotter] == [Ready, Closed]


async def test_silent_microphone_keeps_the_stream_alive():
    heard = asyncio.Event()

    async def act(peer: Peer) -> None:
        await peer.say(ready(idle_s=0.03))
        assert '"keepalive"' in await peer.socket.recv()
        heard.set()
        await peer.close()

    async with server(act) as (url, _peers), connect(url) as spotter:
        await heard.wait()
        await spotter.finish()


@pytest.mark.parametrize("error", [SourceError("the microphone burnt"), ValueError("the microphone burnt")])
async def test_played_source_raises_where_events_are_awaited(error):
    async def broken():
        yield PCM
        raise error

    async def act(peer: Peer) -> None:
        await greet(peer)
        await peer.socket.wait_closed()

    async with server(act) as (url, peers), connect(url) as spotter:
        spotter.play(broken())
        with pytest.raises(type(error), match="burnt"):
            async for _event in spotter:
                pass
    assert peers


def test_blocking_face_opens_nothing_before_it_is_entered():
    before = threading.active_count()
    spotter = blocking.connect("127.0.0.1:9")
    assert vars(spotter).keys() == {"_url", "_settings"}
    assert threading.active_count() == before


def test_blocking_face_has_all_that_the_other_has():
    spotters = (connection.Spotter, blocking.BlockingSpotter)
    names, face = ({name for name in vars(spotter) if not name.startswith("_")} for spotter in spotters)
    assert names - face == {"play"}, "whose sources are asyncio's"


def test_blocking_face_streams_without_asyncio():
    async def act(peer: Peer) -> None:
        await greet(peer)
        await peer.until(len(PCM))
        await peer.say(detection(0, 10))
        await peer.close()

    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    context = server(act)
    url, peers = asyncio.run_coroutine_threadsafe(context.__aenter__(), loop).result()
    with blocking.connect(url) as spotter:
        spotter.send(PCM)
        spotter.marker("here")
        spotter.feedback(0, correct=True)
        assert [type(event) for event in spotter.finish()] == [Ready, Detection, Marker, Closed]
        assert (spotter.ready.model, spotter.totals.samples) == ("m", len(PCM) // 2)
        for say in (spotter.flush, spotter.reset, lambda: spotter.adjust({})):
            with pytest.raises(StreamFinished):
                say()
    assert peers[0].audio == PCM
    asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
