"""A stream outlives its connection: nothing is lost, nothing is told twice, nothing grows without bound."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from http import HTTPStatus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.server import ServerConnection, serve

from client import blocking, memory
from client.connection import Interrupted, connect, stream_url
from client.errors import CannotConnect, SourceError, StreamFailed
from client.handshake import dial
from client.outbox import Outbox
from service.protocol import (
    Checkpoint,
    Close,
    CloseCode,
    Closed,
    Configure,
    Detection,
    Failed,
    Heartbeat,
    KeywordSettings,
    Limits,
    Marker,
    Ready,
    ServerMessage,
    Totals,
    parse_client,
)

REPLAY = 100
PCM = bytes(range(256)) * 8


def ready(sample: int = 0, idle_s: float = 60) -> Ready:
    return Ready(
        session="s",
        model="m",
        fingerprint="f",
        labels=("_silence_", "yes"),
        keywords={"yes": KeywordSettings(threshold=0.5)},
        point="dense",
        points=("dense",),
        hop_samples=480,
        replay_samples=REPLAY,
        sample=sample,
        limits=Limits(frame_bytes=1 << 20, stream_s=10, idle_s=idle_s, speed=10),
    )


def heartbeat(sample: int) -> Heartbeat:
    return Heartbeat(
        at_s=0.0,
        lag_ms=0.0,
        real_time_factor=0.0,
        macs_done=0,
        macs_skipped_vs_window=0.0,
        macs_skipped_vs_causal=0.0,
        delta_scale=1.0,
        cache_bytes=0,
        checkpoint=Checkpoint(sample=sample, token=f"t{sample}"),
    )


def detection(number: int, sample: int) -> Detection:
    return Detection(
        id=number,
        keyword="yes",
        score=0.9,
        start_s=0.0,
        end_s=0.5,
        at_s=0.6,
        latency_ms=1.0,
        checkpoint=Checkpoint(sample=sample, token=f"t{sample}"),
    )


class Peer:
    """One connection as a server sees it."""

    def __init__(self, socket: ServerConnection, hello: Configure) -> None:
        self.socket, self.hello = socket, hello
        self.start = hello.resume.sample if hello.resume else 0
        self.audio = b""

    async def say(self, message: ServerMessage) -> None:
        await self.socket.send(message.model_dump_json(exclude_none=True))

    async def until(self, total: int) -> None:
        """Receive audio until the stream has `total` bytes."""
        while self.start * 2 + len(self.audio) < total:
            message = await self.socket.recv()
            if isinstance(message, bytes):
                self.audio += message

    async def close(self) -> None:
        """Wait for the client's end, and answer it."""
        while not isinstance(message := await self.socket.recv(), str) or not isinstance(parse_client(message), Close):
            if isinstance(message, bytes):
                self.audio += message
            elif isinstance(marker := parse_client(message), Marker):
                await self.say(marker)
        totals = Totals(
            audio_s=0.0, samples=self.start + len(self.audio) // 2, chunks=0, tokens=0, detections=0, macs_done=0
        )
        await self.say(Closed(reason="normal", totals=totals))


Act = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def server(*acts: Act) -> AsyncIterator[tuple[str, list[Peer]]]:
    """A real server on a real socket; connection n follows `acts[n]`."""
    peers: list[Peer] = []

    async def handle(socket: ServerConnection) -> None:
        hello = parse_client(await socket.recv())
        assert isinstance(hello, Configure)
        peers.append(peer := Peer(socket, hello))
        await acts[len(peers) - 1](peer)

    async with serve(handle, "127.0.0.1", 0) as listening:
        yield f"127.0.0.1:{listening.sockets[0].getsockname()[1]}", peers


async def greet(peer: Peer) -> None:
    await peer.say(ready(peer.start))


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


@pytest.mark.parametrize("given", ["ws://h:1/v1/stream", "http://h:1", "h:1", "ws://h:1/"])
def test_a_server_can_be_named_in_many_ways(given):
    assert stream_url(given) == "ws://h:1/v1/stream"
    assert stream_url("https://h/own/path?x=1") == "wss://h/own/path?x=1"


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


async def test_reason_that_stays_is_raised():
    async def act(peer: Peer) -> None:
        await greet(peer)
        await peer.say(Failed(code="bad_message", message="no such word", field="keywords.foo"))
        await peer.socket.close(CloseCode.BAD_MESSAGE)

    async with server(act) as (url, _peers), connect(url) as spotter:
        with pytest.raises(StreamFailed, match="no such word") as caught:
            async for _event in spotter:
                pass
        with pytest.raises(StreamFailed):
            await spotter.send(PCM)
    assert caught.value.code is CloseCode.BAD_MESSAGE
    assert caught.value.field == "keywords.foo"


async def test_refused_settings_are_raised_at_once():
    async def act(peer: Peer) -> None:
        await peer.say(Failed(code="bad_message", message="no such model", field="model"))
        await peer.socket.close(CloseCode.BAD_MESSAGE)

    async with server(act) as (url, _peers):
        with pytest.raises(StreamFailed, match="no such model"):
            async with connect(url, model="other"):
                pass


async def test_nobody_there_is_said_at_once():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    with pytest.raises(CannotConnect, match="no server answers"):
        async with connect(f"127.0.0.1:{port}"):
            pass


@pytest.mark.parametrize(
    ("status", "word"), [(401, "key"), (403, "may not"), (404, "no stream"), (502, "room"), (503, "room")]
)
async def test_refusal_before_the_upgrade_is_explained(status, word):
    def refuse(connection, _request):
        return connection.respond(HTTPStatus(status), "no")

    async with serve(lambda _: asyncio.sleep(0), "127.0.0.1", 0, process_request=refuse) as listening:
        with pytest.raises(CannotConnect, match=word):
            async with connect(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}", key="k"):
                pass


@pytest.mark.parametrize(("told", "wait_s"), [("7", 7.0), ("Wed, 21 Oct 2026 07:28:00 GMT", 1.0), (None, 1.0)])
async def test_when_to_ask_again_may_be_told_in_any_form(told, wait_s):
    def refuse(connection, _request):
        response = connection.respond(HTTPStatus.SERVICE_UNAVAILABLE, "no")
        if told:
            response.headers["Retry-After"] = told
        return response

    async with serve(lambda _: asyncio.sleep(0), "127.0.0.1", 0, process_request=refuse) as listening:
        with pytest.raises(CannotConnect) as refused:
            async with connect(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}"):
                pass
    assert refused.value.retry_after == wait_s


async def test_server_that_stays_away_is_given_up():
    async def act(peer: Peer) -> None:
        await greet(peer)
        listening.close(close_connections=False)
        peer.socket.transport.abort()

    async def handle(socket: ServerConnection) -> None:
        await act(Peer(socket, parse_client(await socket.recv())))

    listening = await serve(handle, "127.0.0.1", 0)
    async with connect(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}", retry_s=0.2) as spotter:
        with pytest.raises(CannotConnect, match="gave up"):
            async for _event in spotter:
                pass
    await listening.wait_closed()


async def test_sending_waits_while_nothing_is_acknowledged(monkeypatch):
    monkeypatch.setattr(memory, "BACKLOG_S", len(PCM) / 32_000)
    received, acknowledge = asyncio.Event(), asyncio.Event()

    async def act(peer: Peer) -> None:
        await greet(peer)
        await peer.until(2 * len(PCM))
        received.set()
        await acknowledge.wait()
        await peer.say(heartbeat(len(PCM)))
        await peer.close()

    async with server(act) as (url, _peers), connect(url) as spotter:
        await spotter.send(PCM)
        waiting = asyncio.create_task(spotter.send(PCM))
        await received.wait()
        returned = waiting.done()
        acknowledge.set()
        await waiting
        await spotter.finish()
    assert not returned, "the server had everything, but had not judged it"


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


async def test_played_source_raises_where_events_are_awaited():
    async def broken():
        yield PCM
        raise CannotConnect("the microphone burnt")

    async def act(peer: Peer) -> None:
        await greet(peer)
        await peer.socket.wait_closed()

    async with server(act) as (url, peers), connect(url) as spotter:
        spotter.play(broken())
        with pytest.raises(CannotConnect, match="burnt"):
            async for _event in spotter:
                pass
    assert peers


@pytest.mark.parametrize(
    ("answer", "error"), [(b"", ConnectionError), (b"HTTP/1.", ConnectionError), (b"SSH-2.0\r\n", CannotConnect)]
)
async def test_server_that_stops_in_the_handshake_is_no_stranger(answer, error):
    async def vanish(reader, writer):
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    async with await asyncio.start_server(vanish, "127.0.0.1", 0) as listening:
        with pytest.raises(error):
            await dial(f"ws://127.0.0.1:{listening.sockets[0].getsockname()[1]}/v1/stream", {})


async def test_source_of_another_rate_is_refused_before_it_is_misheard():
    class Microphone:
        rate = 48_000

        async def __aiter__(self):
            yield PCM

    async def act(peer: Peer) -> None:
        await greet(peer)
        await peer.socket.wait_closed()

    async with server(act) as (url, peers), connect(url) as spotter:
        with pytest.raises(SourceError, match="48000 Hz and the stream 16000"):
            spotter.play(Microphone())
    assert not peers[0].audio


async def test_later_messages_are_ignored_and_nonsense_is_not():
    async def act(peer: Peer) -> None:
        await greet(peer)
        await peer.socket.send('{"type": "of a later version", "x": 1}')
        await peer.socket.send('{"type": "heartbeat"}')
        await peer.socket.wait_closed()

    async with server(act) as (url, _peers), connect(url) as spotter:
        assert isinstance(await anext(spotter), Ready)
        with pytest.raises(StreamFailed, match="cannot read"):
            await anext(spotter)


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
        assert [type(event) for event in spotter.finish()] == [Ready, Detection, Closed]
    assert peers[0].audio == PCM
    asyncio.run_coroutine_threadsafe(context.__aexit__(None, None, None), loop).result()
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
