"""The engine: a batch is as good as being alone, everybody gets a turn, and refusals come early."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest

from models.features import FrameStream, Tokens, log_mel
from models.network import Network
from models.offline import judge
from models.pages import GIVES_BACK
from service.engine import Engine
from service.errors import Capacity, Draining, UnknownModel
from service.shedding import COARSEST
from service.slots import Slot
from service.vitals import Vitals


class Watcher:
    """Remembers what the engine tells of itself."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.scales: list[float] = []

    def stepped(self, rows: int, _seconds: float) -> None:
        self.rows.append(rows)

    def waited(self, seconds: float) -> None: ...

    def lag(self, seconds: float) -> None: ...

    def delta_scale(self, scale: float) -> None:
        self.scales.append(scale)


class Listener:
    """Collects posteriors and wakes whoever waits for enough of them."""

    def __init__(self) -> None:
        self.parts: list[np.ndarray] = []
        self.is_broken = False
        self._changed = asyncio.Event()

    def judged(self, posteriors: np.ndarray, _arrival: float) -> None:
        self.parts.append(posteriors)
        self._changed.set()

    def broken(self) -> None:
        self.is_broken = True
        self._changed.set()

    @property
    def count(self) -> int:
        return sum(map(len, self.parts))

    async def wait(self, tokens: int) -> np.ndarray:
        async with asyncio.timeout(30):
            while self.count < tokens and not self.is_broken:
                self._changed.clear()
                await self._changed.wait()
        return np.concatenate(self.parts)


@asynccontextmanager
async def running(
    network: Network, slots: int = 8, lag_s: float = 30.0, *, begun: bool = True
) -> AsyncIterator[Engine]:
    engine = Engine(Watcher(), slots=slots, batch_s=0.0, lag_s=lag_s)
    engine.host("default", network)
    if begun:
        engine.start(asyncio.get_running_loop())
    try:
        yield engine
    finally:
        await asyncio.to_thread(engine.stop)


def admitted(engine: Engine, point: str = "dense", coarsest: float = 1.0) -> tuple[Slot, Listener]:
    engine.places.reserve()
    listener = Listener()
    slot = engine.open(engine.find(None), listener)
    slot.configure(point, coarsest)
    return slot, listener


def tokens_in(network: Network, samples: np.ndarray) -> Tokens:
    return FrameStream(network.config).feed(samples.astype(np.float32))


async def test_strangers_in_one_batch_hear_what_they_would_hear_alone(network: Network, spoken: np.ndarray) -> None:
    voices = [spoken[8_000 * i : 8_000 * i + 24_000] for i in range(6)]
    async with running(network) as engine:
        streams = [admitted(engine) for _ in voices]
        for begin in range(0, 49, 7):
            for (slot, _), voice in zip(streams, voices, strict=True):
                slot.submit(tokens_in(network, voice)[begin : begin + 7])
        heard = [await listener.wait(49) for _, listener in streams]
        assert max(engine._watcher.rows) > 1
    alone = judge(network, [voice.astype(np.float32) for voice in voices], point="dense", flush=False)
    for got, (expected, _) in zip(heard, alone, strict=True):
        np.testing.assert_allclose(got, expected[: len(got)], atol=1e-4)


async def test_reset_and_reuse_leave_nothing_behind(network: Network, spoken: np.ndarray) -> None:
    async with running(network, slots=1) as engine:
        slot, listener = admitted(engine)
        tokens = tokens_in(network, spoken[:32_000])
        slot.submit(tokens)
        slot.reset()
        slot.submit(tokens)
        twice = await listener.wait(2 * len(tokens))
        np.testing.assert_allclose(twice[: len(tokens)], twice[len(tokens) :], atol=1e-6)
        assert slot.count.tokens == 2 * len(tokens)
        slot.close()
        await cleared(engine)
        other, fresh = admitted(engine)
        other.submit(tokens)
        np.testing.assert_allclose(await fresh.wait(len(tokens)), twice[: len(tokens)], atol=1e-6)


async def test_work_is_never_counted_twice_while_a_stream_is_reset(
    network: Network, spoken: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    resetting = threading.Event()

    def slowly(row: int) -> None:
        resetting.set()
        time.sleep(0.2)  # in which whoever counts has to wait
        type(cache).reset(cache, row)

    async with running(network, slots=1) as engine:
        slot, listener = admitted(engine)
        cache = slot.hosted.cache
        tokens = tokens_in(network, spoken[:16_000])
        slot.submit(tokens)
        await listener.wait(len(tokens))
        before = slot.count.total
        monkeypatch.setattr(cache, "reset", slowly)
        slot.reset()
        await asyncio.to_thread(resetting.wait)
        assert slot.count.total == before > 0


@pytest.mark.skipif(not GIVES_BACK, reason="this system takes no pages back")
async def test_shares_of_work_are_of_whole_tokens_while_the_next_batch_is_judged(
    network: Network, spoken: np.ndarray
) -> None:
    async with running(network, begun=False) as engine:
        slot, _ = admitted(engine)
        vitals, frames = Vitals(slot), log_mel([tokens_in(network, spoken[:16_000])], network.config)
        rows = np.array([slot.row])
        network.step(slot.hosted.cache, rows, frames[:20], np.array([20]))
        shares = vitals.work()
        assert all(0 < share <= 1 for share in shares)
        slot.hosted.cache.macs[slot.row] += 1_000  # what a step has done of tokens that it has not finished
        assert vitals.work() == shares, "two messages tell of what was judged before the first of them"
        slot.hosted.cache.macs[slot.row] -= 1_000
        network.step(slot.hosted.cache, rows, frames[20:], np.array([len(frames) - 20]))
        assert vitals.work() != shares


async def test_memory_of_a_closed_stream_goes_back(network: Network, spoken: np.ndarray) -> None:
    async with running(network, slots=1) as engine:
        slot, listener = admitted(engine)
        slot.submit(tokens_in(network, spoken[:16_000])[:3])
        await listener.wait(3)
        assert slot.hosted.cache.state[slot.row].any()
        slot.close()
        await cleared(engine)
        assert not slot.hosted.cache.state[slot.row].any()


async def test_streams_live_side_by_side_in_the_lowest_rows(network: Network) -> None:
    async with running(network) as engine:
        slots = [admitted(engine)[0] for _ in range(4)]
        assert [slot.row for slot in slots] == [0, 1, 2, 3]
        for slot in (slots[2], slots[0]):
            slot.close()
        await until(lambda: engine.places.used == 2)
        assert [admitted(engine)[0].row for _ in range(3)] == [0, 2, 4]


@pytest.mark.skipif(not GIVES_BACK, reason="this system takes no pages back")
async def test_rows_that_nobody_has_go_back_and_no_others(network: Network) -> None:
    async with running(network, slots=4) as engine:
        slot, _ = admitted(engine)
        state = slot.hosted.cache.state
        state[:] = 1.0  # as when a large page came for one row alone
        engine.give_back()
        assert state.any(axis=1).tolist() == [True, False, False, False]


async def cleared(engine: Engine) -> None:
    """A row comes back when the engine's thread has seen that its stream is closed."""
    await until(lambda: engine.places.used == 0)


async def until(condition: Callable[[], bool]) -> None:
    """Let the other thread run until something is so."""
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110 (the other side is a thread)
            await asyncio.sleep(0)


async def test_a_client_that_pushes_an_hour_does_not_hold_up_a_microphone(network: Network, spoken: np.ndarray) -> None:
    async with running(network) as engine:
        tokens = tokens_in(network, spoken)
        greedy, long = admitted(engine)
        for _ in range(20):
            greedy.submit(tokens)
        await long.wait(1)
        modest, short = admitted(engine)
        modest.submit(tokens[:3])
        await short.wait(3)
        assert long.count < 20 * len(tokens)
        await long.wait(20 * len(tokens))


async def test_whoever_is_ahead_of_time_comes_after_a_microphone(network: Network, spoken: np.ndarray) -> None:
    tokens = tokens_in(network, spoken)
    async with running(network, begun=False) as engine:
        (greedy, _), (modest, _) = admitted(engine), admitted(engine)
        greedy.submit(tokens)
        engine._take()
        modest.submit(tokens[:3])
        assert [turn.slot for turn in engine._take()] == [modest, greedy]


async def test_a_batch_is_bounded_and_who_found_no_room_comes_next(
    network: Network, spoken: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.line.BATCH_STREAMS", 3)
    tokens = tokens_in(network, spoken[:16_000])
    async with running(network, begun=False) as engine:
        streams = [admitted(engine) for _ in range(8)]
        for slot, _ in streams:
            slot.submit(tokens[:3])
        engine.start(asyncio.get_running_loop())
        heard = [await listener.wait(3) for _, listener in streams]
    assert engine._watcher.rows == [3, 3, 2]
    for one in heard:
        np.testing.assert_allclose(one, heard[0], atol=1e-6)


async def test_places_are_counted_before_they_are_used(network: Network) -> None:
    async with running(network, slots=2) as engine:
        engine.places.reserve()
        admitted(engine)
        with pytest.raises(Capacity, match="2 places"):
            engine.places.reserve()
        engine.places.cancel()
        engine.places.admit()


async def test_draining_engine_admits_nobody(network: Network) -> None:
    async with running(network) as engine:
        engine.places.draining = True
        with pytest.raises(Draining):
            engine.places.admit()


async def test_engine_that_is_behind_refuses(network: Network) -> None:
    engine = Engine(Watcher(), slots=8, batch_s=0.0, lag_s=0.0)  # not started: whoever waits, waits
    engine.host("default", network)
    slot, _ = admitted(engine)
    slot.submit(tokens_in(network, np.zeros(1_000)))
    with pytest.raises(Capacity, match="behind") as refused:
        engine.places.admit()
    assert refused.value.retry_after > 0


async def test_precision_is_shed_within_each_streams_allowance_and_comes_back(network: Network) -> None:
    async with running(network) as engine:
        strict, _ = admitted(engine, coarsest=1.0)
        lenient, listener = admitted(engine, coarsest=1.3)
        lenient.submit(tokens_in(network, np.zeros(1_000)))
        await listener.wait(1)
        told: list[bool] = []
        engine.on_shed = told.append
        for worst, shedding in ((60.0, True), (0.0, False)):
            for _ in range(30):
                engine.shedding.waited(worst)
                engine.shedding._looked_at = -1.0
                engine._shed()
            assert (engine.shedding.scale > 1) is shedding
            assert engine.shedding.scale <= COARSEST
            assert strict.scale == strict.hosted.cache.scale[strict.row] == 1.0
            assert lenient.hosted.cache.scale[lenient.row] == pytest.approx(1.3 if shedding else 1.0)
        await asyncio.sleep(0)
        assert told == [True, False]


async def test_a_batch_that_fails_is_told_and_the_engine_goes_on(
    network: Network, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running(network) as engine:
        slot, listener = admitted(engine)
        with monkeypatch.context() as broken:
            broken.setattr(network, "embed", lambda *_: 1 / 0)
            slot.submit(tokens_in(network, np.zeros(1_000)))
            await until(lambda: listener.is_broken)
        other, sound = admitted(engine)
        other.submit(tokens_in(network, np.zeros(1_000)))
        assert len(await sound.wait(1)) == 1
        assert engine.alive


async def test_new_model_serves_new_streams_only(network: Network) -> None:
    async with running(network) as engine:
        old, _ = admitted(engine)
        engine.host("default", network)
        new, listener = admitted(engine)
        assert old.hosted is not new.hosted
        new.submit(tokens_in(network, np.zeros(1_000)))
        await listener.wait(1)
        with pytest.raises(UnknownModel, match="default"):
            engine.find("nobody")


async def test_a_share_of_live_audio_is_judged_again_and_damage_shows(network: Network, spoken: np.ndarray) -> None:
    watcher = Watcher()
    engine = Engine(watcher, slots=2, batch_s=0.0, lag_s=30.0, check_share=1.0)
    hosted = engine.host("model", network)
    engine.start(asyncio.get_running_loop())
    tokens = tokens_in(network, np.tile(spoken, 3))
    slot, listener = admitted(engine)
    slot.submit(tokens)
    await listener.wait(len(tokens))
    (healthy, *_) = hosted.check.recompute()
    place = network.net.layout.readout + network.net.layout.pool.sum_head
    size = -(-len(tokens) // 20)
    for part in (tokens[begin : begin + size] for begin in range(0, len(tokens), size)):
        engine.enqueue(slot, lambda: hosted.cache.state[slot.row, place : place + 1].fill(30.0))
        slot.submit(part)
    await listener.wait(2 * len(tokens))
    engine.stop()
    assert healthy.max() < 1e-3
    assert max(error.max() for error in hosted.check.recompute()) > 0.1
