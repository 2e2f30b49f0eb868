"""What no client does: clocks that jump, a disk that takes no file. Streams go on, and nothing that was said is lost.

And what ends a server: it says why, instead of standing there for nobody.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.connection import connect
from service import auth, engine
from service.commands.serve import Polite, uvicorn_config
from service.protocol import CloseCode, Closed, Detection, Ready
from service.server import Server
from service.settings import Settings
from tests.servers import chunks, detections, listen, until

HOUR, DAY = 3_600.0, 86_400.0


@pytest.fixture(scope="module")
def captured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("captured")


@pytest.fixture
def faulty(serving: Callable[..., Any], captured: Path, ahead: dict[str, float]) -> Iterator[Any]:
    """A server of the test's own, gone before the clocks are what they were."""
    assert not any(ahead.values())
    with serving(capture=captured) as running:
        yield running


@pytest.fixture
def ahead(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """By how much the server's clocks are ahead of the system's, s, wherever they are looked at."""
    ahead = {"clock": 0.0, "wall_clock": 0.0}

    def shifted(name: str, clock: Callable[[], float]) -> Callable[[], float]:
        return lambda: clock() + ahead[name]

    for name, home in (("clock", engine), ("wall_clock", auth)):
        clock = getattr(home, name)
        for module in [module for key, module in sys.modules.items() if key.startswith("service.")]:
            if getattr(module, name, None) is clock:
                monkeypatch.setattr(module, name, shifted(name, clock))
    return ahead


async def looked_after(running: Any) -> None:
    """Wait until the server has looked after its streams."""
    turns, make_room, loop = asyncio.Semaphore(0), running.server.make_room, asyncio.get_running_loop()

    def turn() -> None:
        make_room()
        loop.call_soon_threadsafe(turns.release)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(running.server, "make_room", turn)
        for _ in range(3):  # the first one may be under way, and the third one begins after the second one's end
            await turns.acquire()


async def test_clocks_jump_and_no_stream_feels_it(faulty: Any, ahead: dict[str, float], spoken: np.ndarray) -> None:
    alone = detections(await listen(faulty.http, spoken, [], {}))
    jumps = {60: ("wall_clock", -DAY), 120: ("clock", HOUR)}
    gates, told = {number: asyncio.Event() for number in jumps}, []
    async with asyncio.timeout(60):
        listening = asyncio.create_task(listen(faulty.http, spoken, told, gates))
        await until(told, Ready)
        for number, (name, seconds) in jumps.items():
            await looked_after(faulty)  # by then all that is not behind the gate has come
            faulty.server.engine._loop.call_soon_threadsafe(ahead.update, {name: seconds})
            if name == "clock":
                await looked_after(faulty)
            gates[number].set()
        assert detections(await listening) == alone != []
    assert isinstance(told[-1], Closed)


async def test_a_stream_that_cannot_be_looked_after_ends_alone(faulty: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async with connect(faulty.http), connect(faulty.http):
        lame, sound = faulty.server.streams
        monkeypatch.setattr(lame, "check", lambda: 1 / 0)
        await looked_after(faulty)
        assert lame.code == CloseCode.INTERNAL
        assert sound in faulty.server.streams
    assert not faulty.server.failed


def unfinished(folder: Path) -> list[Path]:
    return list(folder.glob("*.part"))


async def test_a_file_that_cannot_be_written_costs_an_opinion_and_no_stream(
    faulty: Any, captured: Path, spoken: np.ndarray
) -> None:
    heard, rest = [], asyncio.Event()
    async with asyncio.timeout(60), connect(faulty.http) as spotter:
        spotter.play(chunks(spoken, {120: rest}))
        async for event in spotter:
            if isinstance(event, Detection):
                heard.append(captured / f"{spotter.ready.session}-{event.id}.json")
                if len(heard) == 1:
                    heard[0].mkdir()  # no file takes its place
                if len(heard) <= 2:
                    spotter.feedback(event.id, correct=True)
                if len(heard) == 2:
                    rest.set()
        while not heard[1].exists() or unfinished(captured):  # noqa: ASYNC110 (a file tells nobody)
            await asyncio.sleep(0.01)
    assert spotter.totals is not None
    assert spotter.totals.detections == len(heard) > 2
    assert json.loads(heard[1].read_text())["correct"]
    assert heard[0].is_dir()


def test_server_whose_models_cannot_be_made_ready_says_why_and_ends(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(_server: Server) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(Server, "_load", broken)
    server = Server(Settings(port=0))
    web = Polite(uvicorn_config(server))
    web.server, server.on_failure = server, web.give_up
    thread = threading.Thread(target=web.run, daemon=True)
    thread.start()
    thread.join(60)
    assert not thread.is_alive()
    assert web.failed
    assert "the server cannot go on" in caplog.text
    assert "ZeroDivisionError" in caplog.text
