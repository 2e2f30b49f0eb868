"""Before a server is ready: streams of its own, from bytes to messages, so that the first client finds everything warm.

What they cost on this machine is the first estimate of how many it keeps up with. Knows no socket.
"""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
from prometheus_client import CollectorRegistry

from service.audio import SAMPLE_RATE
from service.engine import Engine, thread_clock
from service.headroom import Usage
from service.metrics import Metrics
from service.protocol import Configure, Marker, encode
from service.settings import Settings, limits
from service.shedding import COARSEST
from service.stream import Stream

if TYPE_CHECKING:
    from collections.abc import Iterator

    from models.engines import AnyNetwork

STREAMS = 64
"""Enough for batches as large as those of a full server."""
CHUNKS, LEAST, LONGEST_S = 20, 3, 2.0
"""Of 100 ms, fewer when a large model takes long: the first ones warm up, and the cheapest one counts. A start may be a
busy moment, so that its costs are those of the processor; what waiting adds shows later, under load."""
SOCKETS = 2.0
"""What the event loop spends on a stream with a socket, over what it spends here, without one."""


async def rehearse(network: AnyNetwork) -> tuple[Usage, float]:
    """Judge noise that swells as speech does, and costs as much.

    Returns:
        What a second of audio took, once warm; and the share of the engine's part that is left of it when all
        precision is shed.
    """
    settings = Settings.model_construct()  # the defaults, whatever the operator's limits are
    metrics = Metrics(CollectorRegistry(), ())
    engine = Engine(metrics, slots=STREAMS, batch_s=0.0, lag_s=settings.behind_s, timer=thread_clock)
    engine.host("rehearsal", network)
    engine.start(asyncio.get_running_loop())
    try:
        streams = [_open(engine, settings, metrics) for _ in range(STREAMS)]
        full = await _cheapest(engine, streams)
        for stream in streams:
            stream.slot.hosted.cache.scale[stream.slot.row] = COARSEST
        shed = await _cheapest(engine, streams)
        left = min(1.0, shed.engine / full.engine)
        return replace(full, loop=SOCKETS * full.loop), left
    finally:
        await asyncio.to_thread(engine.stop)


async def _cheapest(engine: Engine, streams: list[Stream]) -> Usage:
    """What a second of audio took of either thread in the cheapest chunk: all else that goes on makes others dearer."""
    spent: list[Usage] = []
    for chunk in _noise():
        spent.append(await _chunk(engine, streams, chunk))
        if len(spent) >= LEAST and sum(usage.engine for usage in spent) > LONGEST_S:
            break
    return Usage(min(one.engine / one.audio for one in spent), min(one.loop / one.audio for one in spent), 1.0)


def _noise() -> Iterator[list[bytes]]:
    """Chunks for all streams; each is as loud as the others are, for every stream swells at another moment."""
    noise = np.random.default_rng(0).standard_normal((CHUNKS, SAMPLE_RATE // 10))
    for number, chunk in enumerate(noise):
        loudness = 2_000 * np.sin(np.pi * (np.arange(STREAMS) / STREAMS + 0.15 * number)) ** 2
        yield [(chunk * each).astype("<i2").tobytes() for each in loudness]


def _open(engine: Engine, settings: Settings, metrics: Metrics) -> Stream:
    engine.places.reserve()
    return Stream(engine, Configure(), limits(settings), settings, metrics, "rehearsal")


async def _chunk(engine: Engine, streams: list[Stream], chunk: list[bytes]) -> Usage:
    before = engine.usage
    for stream, data in zip(streams, chunk, strict=True):
        stream.take(data)
        stream.tell(Marker(id=0))
    for stream in streams:
        await stream.drained()
        for message in await stream.fetch():
            encode(message)
    return engine.usage - before
