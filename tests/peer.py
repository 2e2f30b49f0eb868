"""A server on a real socket that does what a test says, connection by connection."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from websockets.asyncio.server import ServerConnection, serve

from service.protocol import (
    Checkpoint,
    Close,
    Closed,
    Configure,
    Detection,
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
        await self.end()

    async def end(self) -> None:
        """Say that everything was judged."""
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


async def of_another_version(peer: Peer) -> None:
    """Acknowledge 50,000 samples with a token that no real server can read, and break 30,000 later."""
    await peer.say(ready().model_copy(update={"replay_samples": 40_000}))
    await peer.until(2 * 60_000)
    await peer.say(heartbeat(50_000))
    await peer.until(2 * 80_000)  # which goes once that is known
    peer.socket.transport.abort()
