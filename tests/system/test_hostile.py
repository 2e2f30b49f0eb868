"""Connections that say nothing, half a thing or nonsense, by the thousand: the server lets go of them by itself."""

from __future__ import annotations

import asyncio
import os
import re
import urllib.request
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from client.frames import BINARY, TEXT, client_frame, upgrade
from service.commands.demo import free_port
from tests.system.test_lifecycle import detections, listen, process

pytestmark = pytest.mark.system

HOSTILE = int(os.environ.get("HOSTILE", "2000"))
CROWD = 500
"""Of them at the same time."""
OPENING = 64
"""Connections being opened at the same time."""
PATIENCE_S = 120
KEPT = 8 << 10
"""Memory that later crowds may add to what the first one took, bytes a connection; open ones take thrice that."""
UPGRADE = upgrade("h", "/v1/stream")
CONFIGURE = client_frame(TEXT, b'{"type":"configure"}')
GET = b"GET /healthz HTTP/1.1\r\nHost: h\r\n\r\n"
KINDS = {
    "silent": b"",
    "half a handshake": UPGRADE[:-2],
    "rubbish": bytes(range(128, 256)),
    "a handshake, then silence": UPGRADE,
    "a handshake, then rubbish": UPGRADE + b"\xff" * 99,
    "half of its first frame": UPGRADE + CONFIGURE[:9],
    "a stream without audio": UPGRADE + CONFIGURE,
    "half a frame of audio": UPGRADE + CONFIGURE + client_frame(BINARY, bytes(3_200))[:99],
    "half of a second request": GET + GET[:-2],
    "half a clip": b"POST /v1/detect HTTP/1.1\r\nHost: h\r\nContent-Length: 99999\r\n\r\n" + bytes(99),
}
LIMITS = {"DELTASPOT_CONFIGURE_S": "1", "DELTASPOT_IDLE_S": "1", "DELTASPOT_LAG_S": "60"}


class Hostile(asyncio.Protocol):
    """Says its piece, then waits for the server to end it, whatever that says."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        transport.write(KINDS[self.kind])

    def connection_lost(self, _error: Exception | None) -> None:
        self.ended.set_result(None)


async def attack(port: int, opened: asyncio.Event) -> None:
    """Open connections of every kind in turn; tell when all of them are open; wait for their ends."""
    gate, kinds = asyncio.Semaphore(OPENING), list(KINDS)

    async def one(number: int) -> Hostile:
        async with gate:
            loop = asyncio.get_running_loop()
            _, hostile = await loop.create_connection(lambda: Hostile(kinds[number % len(kinds)]), "127.0.0.1", port)
        return hostile

    crowd = await asyncio.gather(*(one(number) for number in range(CROWD)))
    opened.set()
    await asyncio.wait([hostile.ended for hostile in crowd], timeout=PATIENCE_S)
    stuck = Counter(hostile.kind for hostile in crowd if not hostile.ended.done())
    assert not stuck, f"of {CROWD} connections the server keeps {dict(stuck)}"


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
    with process(port, **LIMITS) as server:
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
