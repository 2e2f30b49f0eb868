"""Admission by what streams cost: as many as the machine keeps up with, and those lose nothing."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from client.load import Run, load
from models.network import Network
from service import rehearsal
from service.errors import HTTP_STATUS
from service.headroom import DEAREST, LIMIT, Headroom, Usage, processors
from service.protocol import CloseCode, Configure, Failed
from service.shedding import COARSEST

TOKEN_S = 0.0005
"""What a token costs on the slow machine of these tests; a second of audio is 33 of them."""


def test_busier_thread_decides_or_both_where_cores_are_scarce() -> None:
    spent = Usage(engine=0.6, loop=0.3, audio=100.0)
    assert spent.share(1.0, cores=2) == pytest.approx(0.6)
    assert spent.share(1.0, cores=1) == pytest.approx(0.9)
    assert Headroom(spent, cores=2).streams == int(LIMIT / 0.006)


@pytest.mark.parametrize(
    ("quota", "left"), [("50000 100000", 0.5), ("max 100000", 3), ("900000 100000", 3), ("", 3), (None, 3)]
)
def test_container_has_what_its_quota_leaves_of_the_processors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, left: float
) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")  # as on macOS
    monkeypatch.setattr(os, "cpu_count", lambda: 3)
    if quota is not None:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert processors(tmp_path / "cpu.max") == left


def test_estimate_follows_what_streams_cost_under_load_and_forgets() -> None:
    headroom = Headroom(Usage(engine=0.1, loop=0.0, audio=100.0), cores=2)
    rehearsed = headroom.streams
    headroom.observe(Usage(engine=0.3, loop=0.0, audio=1.0), 1.0)  # small batches of an idle process
    assert headroom.streams == rehearsed
    for _ in range(50):
        headroom.observe(Usage(engine=0.8, loop=0.0, audio=100.0), 1.0)
    assert headroom.streams == int(LIMIT / 0.008)
    for _ in range(50):
        headroom.observe(Usage(engine=0.0, loop=0.0, audio=0.0), 1.0)
    assert headroom.streams == rehearsed


def test_streams_that_come_and_go_say_little_of_what_audio_costs() -> None:
    headroom = Headroom(Usage(engine=0.1, loop=0.0, audio=200.0), cores=2)
    for _ in range(50):  # 300 streams in a second, each with a tenth of a second of audio
        headroom.observe(Usage(engine=0.1, loop=0.9, audio=30.0), 1.0)
    assert headroom.streams == int(LIMIT / (DEAREST * 0.0005))


def test_one_stream_fits_any_machine() -> None:
    assert Headroom(Usage(engine=3.0, loop=0.0, audio=1.0)).streams == 1


def test_precision_counts_as_shed_before_it_is_and_tells_nothing_while_it_is() -> None:
    headroom = Headroom(Usage(engine=1.0, loop=0.0, audio=100.0), shed=0.5, cores=2)
    assert headroom.streams == int(LIMIT / 0.005)
    headroom.observe(Usage(engine=1.0, loop=0.0, audio=1.0), 1.0, shedding=True)
    assert headroom.streams == int(LIMIT / 0.005)
    for _ in range(50):
        headroom.observe(Usage(engine=0.8, loop=0.0, audio=100.0), 1.0)
    assert headroom.streams == int(LIMIT / 0.004)


async def test_rehearsal_is_held_with_all_precision_and_with_what_is_left(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    scales, chunk = [], rehearsal._chunk

    async def noted(engine: Any, streams: Any, data: Any) -> Usage:
        slot = streams[0].slot
        scales.append(float(slot.hosted.cache.scale[slot.row]))
        return await chunk(engine, streams, data)

    monkeypatch.setattr(rehearsal, "CHUNKS", 4)
    monkeypatch.setattr(rehearsal, "_chunk", noted)
    spent, left = await rehearsal.rehearse(network)
    assert scales == pytest.approx([1.0] * 4 + [COARSEST] * 4)
    assert 0.0 < left <= 1.0
    assert min(spent.engine, spent.loop, spent.audio) > 0.0


@pytest.fixture
def slow_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    embed = Network.embed

    def slow(self: Network, *arguments: Any) -> Any:
        time.sleep(TOKEN_S * len(arguments[2]))
        return embed(self, *arguments)

    monkeypatch.setattr(Network, "embed", slow)
    monkeypatch.setattr(rehearsal, "CHUNKS", 4)
    monkeypatch.setattr(rehearsal, "thread_clock", time.monotonic)  # this machine sleeps where others compute


@pytest.mark.usefixtures("slow_machine")
async def test_as_many_streams_as_fit_are_admitted_and_lose_nothing(serving: Callable[..., Any]) -> None:
    with serving(self_check_share=0.0) as running:
        room = running.server.engine.places.room
        assert 0 < room <= LIMIT / (33 * TOKEN_S)
        run = Run(100, 1.0, bytes(320_000), Configure())
        report = await load(running.stream, room + 10, 1.0, run)
        assert (report.opened, report.refused, report.lost) == (room, 10, 0)
        refusals = running.server.metrics.registry.get_sample_value
        assert refusals("deltaspot_refusals_total", {"reason": "capacity"}) == 10


def machine_for(server: Any, streams: int) -> None:
    server.headroom = Headroom(Usage(engine=LIMIT / (streams + 0.5), loop=0.0, audio=1.0), cores=2)
    server.make_room()


async def test_refusal_says_when_to_come_back_and_place_is_there_again(serving: Callable[..., Any]) -> None:
    with serving() as running:
        server = running.server
        machine_for(server, 1)
        async with connect(running.stream), httpx.AsyncClient(base_url=running.http) as web:
            with pytest.raises(InvalidStatus) as refused:
                await connect(running.stream)
            response = refused.value.response
            assert response.status_code == HTTP_STATUS[CloseCode.CAPACITY] == 503
            assert int(response.headers["Retry-After"]) > 0
            assert "keeps up with 1 stream" in Failed.model_validate_json(response.body).message
            assert (await web.post("/v1/detect", content=b"")).status_code == 503
            machine_for(server, 2)
            async with connect(running.stream):
                assert server.engine.places.used == 2
