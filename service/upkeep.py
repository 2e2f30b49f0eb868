"""What a server does beside its streams' work: look after them, check its models, give memory back. Endless tasks.

Knows no doors.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import TYPE_CHECKING

from service import heap
from service.engine import clock
from service.protocol import WarningCode

if TYPE_CHECKING:
    from service.server import Server
    from service.stream import Stream

CHECK_S, PARTS = 1.0, 10
COUNTED = 5
"""Streams are looked after every `CHECK_S`, in so many parts, since everybody waits meanwhile; the metrics are told of
one in `COUNTED` of them each time."""
TRIM_S = 10.0
"""Time between two looks whether a crowd is gone, whose memory is given back; while it is there, that would slow it."""


async def watch(server: Server) -> None:
    """Look after all streams now and then, at the cost of one timer."""
    before, at = server.engine.usage, clock()
    lagging: set[Stream] = set()
    for turn in itertools.count():
        streams = list(server.streams)
        for part in range(PARTS):
            await _sleep(server, CHECK_S / PARTS)
            _look_after(server, streams[part::PARTS], turn)
        usage, now = server.engine.usage, clock()
        server.headroom.observe(usage - before, now - at, shedding=server.engine.shedding.scale > 1.0)
        before, at = usage, now
        server.make_room()
        server.metrics.ready(server.ready)
        lagging = _tell_lagging(server, lagging)


async def _sleep(server: Server, seconds: float) -> None:
    """Sleep; if that takes longer, this process did nothing meanwhile, and nobody was silent."""
    began = clock()
    await asyncio.sleep(seconds)
    stood_still = max(0.0, clock() - began - seconds)
    for stream in server.streams:
        stream.last_heard += stood_still


def _look_after(server: Server, streams: list[Stream], turn: int) -> None:
    """Check those of some streams that are still open, and tell the metrics of a few."""
    for number, stream in enumerate(streams, turn):
        if stream in server.streams:
            try:
                stream.check()
                if number % COUNTED == 0:
                    stream.count()
            except Exception as error:  # noqa: BLE001 (whatever it is, it ends this stream and no other)
                stream.blame(error)


def _tell_lagging(server: Server, told: set[Stream]) -> set[Stream]:
    """Warn streams that have fallen behind and were not told so; return all that are behind."""
    limit = server.settings.lag_s
    lagging = {stream for stream in server.streams if stream.slot.lag_s > limit}
    for stream in lagging - told:
        stream.warn(WarningCode.LAGGING, f"audio waits for more than {limit:g} s to be judged")
    return lagging


async def check_models(server: Server) -> None:
    """Judge again what the models' checks took notes of, beside the event loop."""
    while True:
        await asyncio.sleep(CHECK_S)
        for hosted in list(server.engine.hosted.values()):
            for errors in await asyncio.to_thread(hosted.check.recompute):
                for error in errors.tolist():
                    server.metrics.self_checked(error)


async def tidy(server: Server) -> None:
    """Give back what a crowd left, once half of it is gone."""
    while True:
        await asyncio.sleep(TRIM_S)
        if len(server.streams) < server.crowd / 2:
            server.crowd = len(server.streams)
            server.engine.give_back()
            await asyncio.to_thread(heap.trim)
