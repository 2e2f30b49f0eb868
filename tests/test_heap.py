"""What the process's heap gives back, in a process of its own, since a heap remembers; and when that happens."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from models.pages import GIVES_BACK
from service import heap, upkeep
from service.protocol import Configure

linux = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc, which is Linux's")

LOOK = """
import resource
from pathlib import Path
from service import heap

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

"""


def measured(code: str) -> list[float]:
    """Run a script after `LOOK`; return the numbers that it prints."""
    done = subprocess.run([sys.executable, "-c", LOOK + code], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


@linux
def test_trimming_gives_back_what_lies_between_blocks_that_stay() -> None:
    burst = """
before = resident()
kept = [(bytearray(32 * 1024), bytearray(600)) for _ in range(2000)]
kept = [small for _, small in kept]
full = resident()
heap.trim()
print(full - before, resident() - before)
"""
    kept, left = measured(burst)
    assert kept > 40, "glibc gave it back by itself: trimming is not needed any more"
    assert left < 20


async def test_memory_goes_back_once_half_of_a_crowd_is_gone(
    serving: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    left: list[int] = []
    trimmed: list[bool] = []
    monkeypatch.setattr(heap, "trim", lambda: trimmed.append(True))
    monkeypatch.setattr(upkeep, "TRIM_S", 0.01)
    with serving() as running:
        engine, streams = running.server.engine, running.server.streams
        give_back = engine.give_back  # this server's own: others are being tidied, too
        monkeypatch.setattr(engine, "give_back", lambda: (left.append(len(streams)), give_back()))
        async with AsyncExitStack() as crowd:
            for _ in range(4):
                socket = await crowd.enter_async_context(connect(running.stream))
                await socket.send(Configure().model_dump_json())
                await socket.recv()
            assert not left
            unused = running.server.engine.find(None).cache.state[-1]
            unused[:] = 1.0
        async with asyncio.timeout(60):
            while not (left and trimmed):  # noqa: ASYNC110 (nobody is told)
                await asyncio.sleep(0.01)
    assert left[0] < 2
    assert not (GIVES_BACK and unused.any())
