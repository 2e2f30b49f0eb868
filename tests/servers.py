"""A server as a process, and one who listens to it through the Python client."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from client.connection import connect
from service.commands.own_server import answers
from service.protocol import Detection

START_S = 240


@contextmanager
def process(
    port: int,
    *options: str,
    log: Path = Path(os.devnull),
    path: str = "/readyz",
    stdin: int | None = None,
    **environment: str,
) -> Iterator[subprocess.Popen[bytes]]:
    """`deltaspot serve`, once it answers at `path`."""
    command = [sys.executable, "-m", "service.cli", "serve", "--port", str(port), *options]
    environment |= {"PATH": ""}
    with log.open("wb") as lines, subprocess.Popen(command, env=environment, stdin=stdin, stderr=lines) as server:
        try:
            waited = asyncio.run(_answers(f"http://127.0.0.1:{port}{path}", server))
            assert waited, "the server did not start"
            yield server
        finally:
            server.kill()


async def _answers(url: str, server: subprocess.Popen[bytes]) -> bool:
    async with asyncio.timeout(START_S):
        while not await asyncio.to_thread(answers, url):
            if server.poll() is not None:
                return False
            await asyncio.sleep(0.05)
    return True


async def chunks(samples: np.ndarray, before: dict[int, asyncio.Event]) -> AsyncIterator[bytes]:
    """A recording in chunks of 100 ms; at some of them the source waits for something."""
    for number, at in enumerate(range(0, len(samples), 1_600)):
        if number in before:
            await before[number].wait()
        yield samples[at : at + 1_600].astype("<i2").tobytes()


async def listen(
    url: str, samples: np.ndarray, told: list[object], before: dict[int, asyncio.Event], point: str = "dense"
) -> list[object]:
    async with asyncio.timeout(START_S), connect(url, point=point) as spotter:
        spotter.play(chunks(samples, before))
        async for event in spotter:
            told.append(event)  # noqa: PERF401 (others watch it grow)
    return told


def detections(told: list[object]) -> list[tuple[int, str, float]]:
    return [(event.id, event.keyword, event.at_s) for event in told if isinstance(event, Detection)]


async def until(told: list[object], kind: type) -> None:
    while not any(isinstance(event, kind) for event in told):  # noqa: ASYNC110 (a list tells nobody)
        await asyncio.sleep(0.01)
