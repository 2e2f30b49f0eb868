"""Servers as processes: one is killed in mid-word, one is asked to stop, one is given its models anew."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import signal
import subprocess
from pathlib import Path

import numpy as np
import pytest

from client.connection import Interrupted, connect
from service.commands.own_server import answers, free_port
from service.protocol import Closed, Detection, Ready, Warned, WarningCode
from tests.conftest import Running
from tests.servers import START_S, detections, listen, process, until

pytestmark = pytest.mark.system


def test_killed_server_is_replaced_and_nothing_is_lost_or_repeated(spoken: np.ndarray) -> None:
    port = free_port(0)
    url = f"ws://127.0.0.1:{port}"
    told: list[object] = []

    async def killed(server: subprocess.Popen[bytes], listening: list[asyncio.Task[list[object]]]) -> None:
        gate = asyncio.Event()
        listening.append(asyncio.create_task(listen(url, spoken, told, {80: gate})))
        await until(told, Detection)
        server.send_signal(signal.SIGKILL)
        gate.set()
        await until(told, Interrupted)

    async def story() -> tuple[list[object], list[object]]:
        listening: list[asyncio.Task[list[object]]] = []
        first = process(port)
        await killed(await asyncio.to_thread(first.__enter__), listening)
        await asyncio.to_thread(first.__exit__, None, None, None)
        second = process(port)
        await asyncio.to_thread(second.__enter__)
        broken = await listening[0]
        whole = await listen(url, spoken, [], {})
        await asyncio.to_thread(second.__exit__, None, None, None)
        return broken, whole

    broken, whole = asyncio.run(story())
    assert len({event.session for event in broken if isinstance(event, Ready)}) == 1
    assert len(detections(broken)) >= 3
    assert [(i, word) for i, word, _ in detections(broken)] == [(i, word) for i, word, _ in detections(whole)]


def events(log: str) -> list[str]:
    """What the lines of a server's log are about."""
    return [json.loads(line)["event"] for line in log.splitlines()]


def test_server_that_is_asked_to_stop_says_so_and_exits_well(spoken: np.ndarray, tmp_path: Path) -> None:
    port, log = free_port(0), tmp_path / "log"
    with process(port, log=log, DELTASPOT_DRAIN_S="20") as server:

        async def story() -> list[object]:
            gate, told = asyncio.Event(), []
            listening = asyncio.create_task(listen(f"ws://127.0.0.1:{port}", spoken, told, {80: gate}))
            await until(told, Ready)
            server.send_signal(signal.SIGTERM)
            await until(told, Warned)
            assert not await asyncio.to_thread(answers, f"http://127.0.0.1:{port}/readyz")
            gate.set()
            return await listening

        told = asyncio.run(story())
        assert next(event.code for event in told if isinstance(event, Warned)) == WarningCode.DRAINING
        assert isinstance(told[-1], Closed)
        assert detections(told)
        assert server.wait(60) == 0
    told = events(log.read_text())
    assert "no keys: everybody on this machine may do everything" in told
    assert told.count("draining") == 1
    assert "\\u001b" not in log.read_text(), "colours"


def test_second_signal_ends_a_server_at_once(tmp_path: Path) -> None:
    port, log = free_port(0), tmp_path / "log"

    async def story() -> int:
        async with connect(f"ws://127.0.0.1:{port}") as spotter:
            server.send_signal(signal.SIGTERM)
            while not isinstance(await anext(spotter), Warned):
                pass
            server.send_signal(signal.SIGTERM)
            return await asyncio.to_thread(server.wait, START_S)

    with process(port, log=log, DELTASPOT_DRAIN_S=str(2 * START_S)) as server:
        assert asyncio.run(story()) == 0
    assert events(log.read_text())[-2:] == ["draining", "stopped at once"]


def test_server_that_still_compiles_is_ended_at_once(tmp_path: Path) -> None:
    port, log = free_port(0), tmp_path / "log"
    with process(port, log=log, path="/healthz", NUMBA_CACHE_DIR=str(tmp_path)) as server:
        server.send_signal(signal.SIGINT)
        assert server.wait(START_S) == 0
    told = events(log.read_text())
    assert "compiling or loading kernels; the first start takes up to a minute" in told
    assert "model ready" not in told
    assert told[-1] == "stopped at once"


def await_reload(log: Path) -> None:
    def times() -> int:
        return events(log.read_text()).count("model ready")

    async def reloaded() -> None:
        async with asyncio.timeout(START_S):
            while times() < 2:  # noqa: ASYNC110 (another process tells nobody)
                await asyncio.sleep(0.05)

    asyncio.run(reloaded())


def test_models_are_reloaded_on_hangup(spoken: np.ndarray, tmp_path: Path) -> None:
    port, log = free_port(0), tmp_path / "log"
    with process(port, log=log, stdin=subprocess.DEVNULL) as server:
        server.send_signal(signal.SIGHUP)
        await_reload(log)
        assert detections(asyncio.run(listen(f"ws://127.0.0.1:{port}", spoken, [], {})))
        assert server.poll() is None


def test_server_on_a_terminal_is_reloaded_while_that_is_there_and_ends_with_it(tmp_path: Path) -> None:
    port, log, (terminal, inside) = free_port(0), tmp_path / "log", pty.openpty()
    with process(port, log=log, stdin=inside) as server:
        os.close(inside)
        server.send_signal(signal.SIGHUP)
        await_reload(log)
        os.close(terminal)
        server.send_signal(signal.SIGHUP)  # the system does so where it is the terminal that the process belongs to
        assert server.wait(START_S) == 0


def test_torch_engine_hears_what_the_kernels_hear(running: Running, spoken: np.ndarray) -> None:
    pytest.importorskip("torch", reason="an engine of its own")
    port = free_port(0)
    heard = []
    with process(port, "--engine", "torch", "--device", "cpu", "--sessions", "8"):
        for url in (running.stream, f"ws://127.0.0.1:{port}"):
            told = asyncio.run(listen(url, spoken, [], {}, "shipped"))
            heard.append(detections(told))
            assert isinstance(told[-1], Closed)
            assert 0 < told[-1].totals.macs_skipped_vs_causal < told[-1].totals.macs_skipped_vs_window
    kernels, torch = heard
    assert len(kernels) >= 10
    assert [(i, word) for i, word, _ in torch] == [(i, word) for i, word, _ in kernels]
    for (_, _, at), (_, _, other) in zip(torch, kernels, strict=True):
        assert at == pytest.approx(other, abs=0.1)  # rounding decides at a threshold, and a token comes late
