"""Operating points: how far the learned thresholds are turned up, chosen by the accuracy that may be lost.

One set of thresholds is learned (`models.gated`); `shipped` and `aggressive` are its largest multiples that lose no
more than allowed against the dense network on the same clips, and `shipped` is none above its ceiling: clips in a quiet
room do not show what larger thresholds cost in noise. Neighbouring multiples differ by luck, a few clips of
two thousand, so a smaller one that loses more rules nothing out. Clips of validation speakers choose, seconds of noise
among them; what is reported afterwards on the same clips is optimistic by that choice.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

from models.checkpoint import DENSE, SHIPPED, Checkpoint
from models.config import gate_names
from models.evaluate import ClipReport, LabelledClips, judge_clips
from models.network import Network

ALLOWED = {SHIPPED: 0.002, "aggressive": 0.015}
"""Share of the clips that a point may lose against the dense network."""
CEILINGS = {SHIPPED: 0.76, "aggressive": float("inf")}
"""Largest multiple of a point: there, four fifths of the causal work are left out on streams full of speech. At 1 no
clip is lost either, but a third more of the keywords at 0-20 dB."""
GROWTH, LAXER, MOST = 1.15, 7, 24
"""Ratio of neighbouring multiples, how many of them lie below 1, and how many are tried."""


class PointError(ValueError):
    """No multiple of the thresholds keeps the accuracy that is asked for."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One multiple of the learned thresholds and what it does to the clips."""

    factor: float
    report: ClipReport


def scaled(thresholds: Mapping[str, float], factor: float) -> dict[str, float]:
    """Every threshold times a factor."""
    return {name: theta * factor for name, theta in thresholds.items()}


def trials(checkpoint: Checkpoint, learned: Mapping[str, float], clips: LabelledClips) -> Iterator[Trial]:
    """Judge growing multiples, the dense network (factor 0) first, until more is lost than any point may lose."""
    factors = (0.0, *(GROWTH ** (i - LAXER) for i in range(MOST)))
    points = {f"{factor:.3f}": scaled(learned, factor) for factor in factors}
    network = Network(replace(checkpoint, points=points))
    dense = None
    for name, factor in zip(points, factors, strict=True):
        trial = Trial(factor, judge_clips(network, clips, name))
        dense = trial.report.accuracy if dense is None else dense
        yield trial
        if trial.report.accuracy < dense - max(ALLOWED.values()):
            return


def choose(checkpoint: Checkpoint, learned: Mapping[str, float], tried: list[Trial]) -> Checkpoint:
    """The checkpoint with its points `dense`, `shipped` and `aggressive`.

    Raises:
        PointError: where every multiple loses too much.
    """
    dense = tried[0].report.accuracy
    points = {DENSE: dict.fromkeys(gate_names(checkpoint.config), 0.0)}
    for name, allowed in ALLOWED.items():
        within = (t for t in tried if t.factor <= CEILINGS[name] and t.report.accuracy >= dense - allowed)
        kept = max((trial.factor for trial in within), default=0.0)
        if not kept:
            raise PointError(
                f"{name}: every multiple of the thresholds loses more than {allowed:.1%}; train the gated stage longer"
            )
        points[name] = scaled(learned, kept)
    return replace(checkpoint, points=points)
