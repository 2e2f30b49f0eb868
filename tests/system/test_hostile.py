"""Connections that say nothing, half a thing or nonsense, by the thousand: the server lets go of them by itself."""

from __future__ import annotations

import asyncio
import os
import re
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.hostile import Hostile, intrude
from service.commands.own_server import free_port
from tests.servers import detections, listen, process

pytestmark = pytest.mark.system

HOSTILE = int(os.environ.get("HOSTILE", "1500"))
CROWD = 500
"""Of them at the same time."""
OPENING = 64
"""Connections being opened at the same time."""
PATIENCE_S = 120
FEW = 90
"""Five of each kind."""
KEPT = 48 << 10
"""Memory that later crowds may add to what the first one took, bytes a connection: garbage in cycles waits for long."""
LIMITS = {"sessions": 100, "configure_s": 1, "idle_s": 1, "stream_s": 20, "lag_s": 60}
"""Short patience, and fewer places than a crowd wants, so that the first crowd takes them all."""


async def attack(port: int, opened: asyncio.Event, size: int = CROWD) -> None:
    """Open connections of every kind in turn; tell when all of them are open; wait for their ends."""
    gate = asyncio.Semaphore(OPENING)

    async def one(number: int) -> Hostile:
        async with gate:
            return await intrude(port, number)

    crowd = await asyncio.gather(*(one(number) for number in range(size)))
    opened.set()
    await asyncio.wait([hostile.ended for hostile in crowd], timeout=PATIENCE_S)
    stuck = Counter(hostile.kind for hostile in crowd if not hostile.ended.done())
    assert not stuck, f"of {size} connections the server keeps {dict(stuck)}"


async def besieged(port: int, spoken: np.ndarray) -> list[object]:
    """What a stream hears that sends a part of its audio in the midst of each crowd."""
    crowds = HOSTILE // CROWD - 1
    opened = [asyncio.Event() for _ in range(crowds)]
    before = {number * 148 // crowds: event for number, event in enumerate(opened)}
    listening = asyncio.create_task(listen(f"ws://127.0.0.1:{port}", spoken, [], before))
    for event in opened:
        await attack(port, event)
    return await listening


def descriptors(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def state(port: int) -> dict[str, float]:
    """The server's own account of itself."""
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        found = re.findall(r"^(\w+)(?:{[^}]*})? (\S+)$", answer.read().decode(), re.MULTILINE)
    return {name: float(value) for name, value in found}


async def becomes(check: Callable[[], bool]) -> bool:
    async with asyncio.timeout(PATIENCE_S):
        while not check():  # noqa: ASYNC110 (another process tells nobody)
            await asyncio.sleep(0.05)
    return True


def test_thousands_of_hostile_connections_cost_an_honest_stream_nothing(spoken: np.ndarray) -> None:
    port = free_port(0)
    with process(port, **{f"DELTASPOT_{name.upper()}": str(value) for name, value in LIMITS.items()}) as server:
        alone = asyncio.run(listen(f"ws://127.0.0.1:{port}", spoken, [], {}))
        held = descriptors(server.pid)
        asyncio.run(attack(port, asyncio.Event()))
        memory = state(port)["process_resident_memory_bytes"]
        among = asyncio.run(besieged(port, spoken))
        assert asyncio.run(becomes(lambda: descriptors(server.pid) <= held))
        after = state(port)
    assert after["process_resident_memory_bytes"] < memory + KEPT * (HOSTILE - CROWD)
    assert after["deltaspot_sessions_open"] == 0
    assert len(detections(alone)) == 10
    assert detections(among) == detections(alone)


def test_nothing_is_left_of_them(serving: Callable[..., Any]) -> None:
    with serving(**LIMITS) as running:
        before = live_objects(running)
        asyncio.run(attack(running.port, asyncio.Event(), FEW))
        assert asyncio.run(becomes(lambda: live_objects(running) <= before))
        assert running.server.engine.places.reserved == 0


def live_objects(running: Any) -> int:
    """Streams, slots and connections that something still holds."""
    import gc

    from service.session import Session
    from service.slots import Slot
    from service.sockets import Door, Socket
    from service.stream import Stream

    gc.collect()
    assert running
    ours = (Door, Session, Slot, Socket, Stream)  # by type: `isinstance` would wake up other libraries' lazy objects
    return sum(issubclass(type(thing), ours) for thing in gc.get_objects())
