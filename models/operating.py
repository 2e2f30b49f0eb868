"""An operating point: flat names and numbers in a checkpoint, tables for the engines, a method for people.

A point holds one threshold for every delta gate (`models.config.gate_names`), and may hold, for layer i and head h,

    block{i}.score.{h}    Th: a score below it, bias included, is dropped before the softmax, unless it is the row's
                          largest (LeOPArd: Li et al. 2022, see `models.pruning`); left out: nothing is dropped
    block{i}.head.{h}     tau: where the mean |score| of a row, bias left out, is below it, the head says nothing at
                          that token (HDP's head gate: Jaradat et al. 2024, see `models.hybrid`); left out: 0

**How pruning and the delta gate compose.** A dropped score is a weight of 0 that meets the gate like any other: where
the held weight is 0 already its value row is not read; where it is larger than the gate's threshold, the row is read
once more, to be taken out of the sum. A silent head's row is not compared at all: what is held stays held, its sum
stays what it was (a token that leaves the window is taken out as ever), and zeros are handed on in its place. So the
sum is at all times the held weights times the values, and a head that speaks again catches up through its gate.

The scale that sheds load multiplies the gates' thresholds and leaves pruning alone. Knows names and numbers, no engine.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Literal, get_args

import numpy as np

from models.checkpoint import DENSE, SHIPPED, Checkpoint, CheckpointError
from models.config import BLOCK_GATES, READOUT_GATES, gate_names, stem_gates

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from models.config import ModelConfig
    from models.features import Array

Method = Literal["dense", "delta", "pruned", "delta+pruned"]
METHODS: Final[tuple[Method, ...]] = get_args(Method)
"""What a point does: nothing, hold what moves little, leave out scores and heads, or both."""
SCORE, HEAD = range(2)
"""Columns of a pruning table, and of the counts of what pruning left out."""
OFF: Final = (-np.inf, 0.0)
"""Th and tau that prune nothing."""


def prune_names(config: ModelConfig) -> tuple[tuple[str, str], ...]:
    """Names of Th and tau, layer by layer and head by head."""
    return tuple(
        (f"block{i}.score.{h}", f"block{i}.head.{h}") for i in range(config.layers) for h in range(config.heads)
    )


def method_of(point: Mapping[str, float]) -> Method:
    """What a point does, read off its numbers."""
    pruned = {name: value for name, value in point.items() if ".score." in name or ".head." in name}
    prunes = any(value > OFF[SCORE] if ".score." in name else value > OFF[HEAD] for name, value in pruned.items())
    gates = any(value > 0 for name, value in point.items() if name not in pruned)
    if prunes:
        return "delta+pruned" if gates else "pruned"
    return "delta" if gates else "dense"


def offered(checkpoint: Checkpoint, methods: Collection[Method] = METHODS) -> dict[str, Method]:
    """A checkpoint's operating points of these methods, and the method of each.

    Raises:
        CheckpointError: it has none.
    """
    each = {name: method_of(point) for name, point in {DENSE: {}, **checkpoint.points}.items()}
    if found := {name: method for name, method in each.items() if method in methods}:
        return found
    raise CheckpointError(f"the model has no operating point of the methods {', '.join(methods)}, but {each}")


def usual_point(points: Sequence[str], wanted: str | None = None) -> str:
    """The point asked for, or the one that streams get: `shipped` where there is one, else the first.

    Raises:
        CheckpointError: for a point that is not among them.
    """
    point = wanted or (SHIPPED if SHIPPED in points else points[0])
    if point not in points:
        raise CheckpointError(f"no operating point {point!r}: this checkpoint has {', '.join(points)}")
    return point


def gate_table(config: ModelConfig, point: Mapping[str, float]) -> Array:
    """Thresholds of the delta gates (layers + 2, 6), in the kernels' order: stem and its filters, blocks, read-out.

    Raises:
        CheckpointError: naming the gates that a point lacks.
    """
    if missing := set(gate_names(config)) - set(point):
        raise CheckpointError(f"an operating point lacks thresholds for {sorted(missing)}")
    table = np.zeros((config.layers + 2, len(BLOCK_GATES)), np.float32)
    stem = [point[name] for name in stem_gates(config)]
    table[0, : len(stem)] = stem
    for layer, factor in enumerate(config.factors):
        table[layer + 1] = [point[f"block{layer}.{kind}"] for kind in BLOCK_GATES]
        scale = config.folded(factor).head_channels ** 0.5  # the kernels gate queries before scaling
        table[layer + 1, BLOCK_GATES.index("query")] *= scale
    table[-1, : len(READOUT_GATES)] = [point[f"readout.{kind}"] for kind in READOUT_GATES]
    return table


def prune_table(config: ModelConfig, point: Mapping[str, float]) -> Array:
    """Th and tau of every attention (layers + 1, heads, 2), the read-out's last: it prunes nothing.

    Raises:
        CheckpointError: for names that are neither a gate's nor a head's.
    """
    names = prune_names(config)
    if strange := set(point) - set(gate_names(config)) - {name for pair in names for name in pair}:
        raise CheckpointError(f"an operating point has numbers for {sorted(strange)}, which this network lacks")
    rows = [[point.get(score, OFF[SCORE]), point.get(head, OFF[HEAD])] for score, head in names]
    return np.array([*rows, *[OFF] * config.heads], np.float32).reshape(config.layers + 1, config.heads, 2)
