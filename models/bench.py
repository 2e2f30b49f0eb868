"""The engine's benchmark: every contender in one process on one core, in turns, medians over the turns.

Machines are noisy and differ; contenders that take turns of a second suffer the same noise, so ratios are the
result and absolute times a footnote. Cost is the processor's time; the time of a chunk is the wall's, heard by a
session that is alone.
"""

from __future__ import annotations

import gc
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from models.checkpoint import DENSE, SHIPPED
from models.config import SAMPLE_RATE
from models.contenders import Contender, FrontEnd, OursRecomputed, Recomputed, Streaming, stock_judges
from models.counting import Count
from models.features import Array
from models.network import Network
from models.streams import quantise

HISS = 1.0
"""Root mean square of what a quiet microphone gives, int16 values: silence is never quite zero."""
SILENCE_PERIOD_S = 10.0
CURVES = ("ours, kernels dense", "ours, shipped")
"""Lines that are drawn."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is measured: sessions together, turns of a second each, and how many streams recompute."""

    sessions: int = 200
    repeats: int = 20
    chunk_ms: int = 100
    warm_up_s: int = 2
    stock_sessions: int = 4
    curve_sessions: tuple[int, ...] = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000)
    curve_chunks_ms: tuple[int, ...] = (30, 60, 100, 200, 500, 1000)
    enough_s: int = 4_000
    fewest: int = 3

    def turns(self, sessions: int) -> int:
        """Turns that are measured of so many sessions: fewer where many add up to `enough_s` of audio sooner."""
        return min(self.repeats, max(self.fewest, self.enough_s // sessions))


@dataclass(frozen=True, slots=True)
class Row:
    """A line of the table; None where a figure means nothing."""

    name: str
    cpu_ms_per_audio_s: float
    streams_per_core: float
    chunk_ms_p50: float
    chunk_ms_p99: float
    macs_skipped_vs_window: float | None
    macs_skipped_vs_causal: float | None
    bytes_per_session: int


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """Cost of one line with so many sessions and such chunks."""

    name: str
    sessions: int
    chunk_ms: int
    cpu_ms_per_audio_s: float


@dataclass(frozen=True, slots=True)
class Line:
    """What is measured: how to make it for some sessions, what these hear, and how many there are at once."""

    make: Callable[..., Contender]
    audio: Sequence[Array]
    sessions: int


class Entry:
    """A contender at work; stream i of it begins at a place of its own in the audio.

    cpu_s: per turn, processor time per second of audio. wall_s: time of every chunk.
    """

    def __init__(self, line: Line, sessions: int, chunk: int) -> None:
        self.contender, self.audio, self.sessions, self.chunk = (
            line.make(sessions=sessions),
            line.audio,
            sessions,
            chunk,
        )
        self.position = 0
        self.start()

    def start(self) -> None:
        """Begin to count and to measure."""
        self.cpu_s: list[float] = []
        self.wall_s: list[float] = []
        self._before = self.contender.work()

    def work(self) -> Count | None:
        """Multiply-accumulates since the start."""
        after = self.contender.work()
        return after - self._before if after and self._before else None

    @property
    def cost(self) -> float:
        """Processor seconds per second of audio, the median of the turns."""
        return float(np.median(self.cpu_s))

    def turn(self, seconds: float = 1.0) -> None:
        """Hear the next seconds of all streams, chunk by chunk."""
        chunks = [self._next() for _ in range(max(1, round(seconds * SAMPLE_RATE / self.chunk)))]
        began = time.process_time()
        for samples in chunks:
            before = time.perf_counter()
            self.contender.hear(samples)
            self.wall_s.append(time.perf_counter() - before)
        audio_s = len(chunks) * self.chunk / SAMPLE_RATE * self.sessions
        self.cpu_s.append((time.process_time() - began) / audio_s)

    def _next(self) -> Array:
        """The next chunk of every stream: (sessions, chunk)."""
        rows = []
        for i in range(self.sessions):
            stream = self.audio[i % len(self.audio)]
            first = self.position + i * 7 * SAMPLE_RATE // 3
            rows.append(stream.take(np.arange(first, first + self.chunk), mode="wrap"))
        self.position += self.chunk
        return np.stack(rows)


Progress = Callable[[Sequence[Entry]], Iterable[Entry]]


@contextmanager
def pinned() -> Iterator[None]:
    """Run on one core, where the system has a say in that (macOS has none); collect no garbage meanwhile."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    gc.disable()
    try:
        if before:
            os.sched_setaffinity(0, {max(before)})
        yield
    finally:
        gc.enable()
        if before:
            os.sched_setaffinity(0, before)


def with_silence(samples: Array, share: float) -> Array:
    """A recording (S,) of which the end of every ten seconds is the hiss of a quiet microphone."""
    place = np.arange(len(samples)) / SAMPLE_RATE % SILENCE_PERIOD_S / SILENCE_PERIOD_S
    hiss = np.random.default_rng(0).normal(0.0, HISS, len(samples)).astype(np.float32)
    return quantise(np.where(place < 1.0 - share, samples, hiss))


def lines(
    network: Network, audio: Sequence[Array], stock: Path | None, plan: Plan
) -> tuple[dict[str, Line], list[str]]:
    """Everything that is in the table, by the row's name; and a note on what is left out.

    Args:
        network: ours, compiled.
        audio: recordings (S,) that streams are cut from.
        stock: tflite file of the stock Keyword Transformer, or None to leave it out.
        plan: how many streams hear how much.
    """
    few, many = plan.stock_sessions, plan.sessions
    judges, notes = stock_judges(stock) if stock else ({}, ["stock KWT-1: left out, no file is named"])
    table = {
        f"stock KWT-1, {name}": Line(partial(Recomputed, judge, window=SAMPLE_RATE), audio, few)
        for name, judge in judges.items()
    }
    table["ours, recomputed"] = Line(partial(OursRecomputed, network), audio, few)
    try:
        from models.torch_network import TorchNetwork

        table["ours, torch causal"] = Line(partial(Streaming, TorchNetwork(network.checkpoint), DENSE), audio, many)
    except ImportError as error:
        notes.append(f"ours, torch causal: left out, {error.name} is not installed")
    table |= compiled_lines(network, audio, many)
    for percent in (50, 90) if SHIPPED in network.points else ():
        quiet = [with_silence(samples, percent / 100) for samples in audio]
        table[f"ours, shipped, {percent} % silence"] = Line(partial(Streaming, network, SHIPPED), quiet, many)
    table["front end"] = Line(partial(FrontEnd, network.config), audio, many)
    return table, notes


def compiled_lines(network: Network, audio: Sequence[Array], sessions: int) -> dict[str, Line]:
    """Our kernels at every operating point, by the row's name."""
    names = {point: "ours, kernels dense" if point == DENSE else f"ours, {point}" for point in network.points}
    return {name: Line(partial(Streaming, network, point), audio, sessions) for point, name in names.items()}


def measure(entries: Sequence[Entry], plan: Plan, progress: Progress = iter) -> None:
    """Let everyone hear a second in turn, again and again; `progress` sees the turns go by."""
    for entry in entries:
        entry.turn(plan.warm_up_s)
        entry.start()
    for entry in progress([e for turn in range(plan.repeats) for e in entries if turn < plan.turns(e.sessions)]):
        entry.turn()


def run_table(table: Mapping[str, Line], plan: Plan) -> list[Row]:
    """Measure all lines: many sessions together for the cost, and one alone for the time of a chunk."""
    chunk = plan.chunk_ms * SAMPLE_RATE // 1000
    many = {name: Entry(line, line.sessions, chunk) for name, line in table.items()}
    alone = {name: Entry(line, 1, chunk) for name, line in table.items()}
    measure([*many.values(), *alone.values()], plan)
    return [_row(name, many[name], alone[name]) for name in table]


def _row(name: str, many: Entry, alone: Entry) -> Row:
    p50, p99 = (float(ms) for ms in np.percentile(np.array(alone.wall_s) * 1000, (50, 99)))
    work, anew = many.work(), isinstance(many.contender, Recomputed)  # that is the window, at the pace of chunks
    return Row(
        name,
        many.cost * 1000,
        1 / many.cost,
        p50,
        p99,
        work.skipped_vs_window if work and not anew else None,
        work.skipped_vs_causal if work else None,
        many.contender.bytes_per_session,
    )


def run_curves(table: Mapping[str, Line], plan: Plan, progress: Progress = iter) -> list[CurvePoint]:
    """Measure cost against the number of sessions, and against the length of a chunk; `progress` as in `measure`."""
    sizes = [(n, plan.chunk_ms) for n in plan.curve_sessions] + [(plan.sessions, ms) for ms in plan.curve_chunks_ms]
    points = []
    for name in CURVES:
        if name in table:
            entries = [Entry(table[name], n, ms * SAMPLE_RATE // 1000) for n, ms in sizes]
            measure(entries, plan, progress)
            points += [CurvePoint(name, n, ms, e.cost * 1000) for (n, ms), e in zip(sizes, entries, strict=True)]
    return points
