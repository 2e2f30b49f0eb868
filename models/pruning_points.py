"""Operating points that prune scores, learned on training clips and kept in the checkpoint.

A threshold per layer and head is learned as `models.pruning` says, weights frozen, together with a centre that is
subtracted from every key. Softmax does not feel the centre, so it moves into the bias of the keys: the network stays
what it was, and its thresholds are plain numbers. Judged in the compiled step, on the clips that taught them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch

from models import pruning
from models.checkpoint import DENSE, SHIPPED, Checkpoint
from models.config import gate_names
from models.evaluate import judge_clips
from models.methods_streaming import StreamingJudge
from models.network import Network
from models.operating import prune_names
from models.points import ALLOWED, PointError

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from models.evaluate import LabelledClips

PRUNED, BOTH = "pruned", "shipped-pruned"
"""The point whose gates are taken along, scores pruned without any gate, and with those."""
PRICES = (0.002, 0.006, 0.02, 0.06, 0.2, 0.6)
"""Nats per share of surviving scores; each is tried until one costs too much accuracy."""
STEPS = 80


def with_pruning(
    checkpoint: Checkpoint, scores: ArrayLike | None = None, centres: ArrayLike | None = None, tau: float = 0.0
) -> Checkpoint:
    """The same network with keys centred, and with its points that prune.

    Args:
        checkpoint: the network; `shipped`, if it has one, gives `shipped-pruned` its gates.
        scores: thresholds (layers, heads), of scaled scores of centred keys, bias by age included; None for none.
        centres: (layers, heads, D); None for zeros.
        tau: the mean |score| under which a head is silent.
    """
    names, weights, c = prune_names(checkpoint.config), dict(checkpoint.weights), checkpoint.config.channels
    for layer, centre in enumerate(() if centres is None else np.asarray(centres, np.float32)):
        name = f"blocks.{layer}.attention.qkv.bias"
        weights[name] = weights[name].copy()
        weights[name][c : 2 * c] -= centre.ravel()
    prunes = {head: tau for _, head in names if tau}
    if scores is not None:
        prunes |= dict(zip((score for score, _ in names), np.asarray(scores, float).ravel().tolist(), strict=True))
    points = {**checkpoint.points, PRUNED: dict.fromkeys(gate_names(checkpoint.config), 0.0) | prunes}
    if SHIPPED in points:
        points[BOTH] = {**points[SHIPPED], **prunes}
    return replace(checkpoint, weights=weights, points=points)


def learn(
    checkpoint: Checkpoint,
    clips: LabelledClips,
    *,
    tau: float = 0.0,
    steps: int = STEPS,
    tell: Callable[[str], None] = print,
) -> Checkpoint:
    """The checkpoint with the points of the highest price that loses no more than `shipped` may.

    Args:
        checkpoint: the network; its weights stay, but for the keys' bias.
        clips: training clips.
        tau: the mean |score| under which a head is silent; not learned, but judged along.
        steps: optimiser steps for each price.
        tell: hears how each price does.

    Raises:
        PointError: where every price loses too much.
    """
    torch.manual_seed(0)
    model, best = StreamingJudge(checkpoint).eval().requires_grad_(requires_grad=False), None
    frames = model.prepare(clips.samples)
    dense = judge_clips(Network(checkpoint), clips, DENSE).accuracy
    for price in PRICES:
        *_, found = pruning.learn(model, frames, steps=steps, price=price, rates=(0.03, 0.0))
        tried = with_pruning(checkpoint, found.thresholds.numpy(), found.centres.numpy(), tau)
        report = judge_clips(Network(tried), clips, PRUNED)
        tell(f"price {price}: {found.survived:.1%} of scores survive, {report.accuracy:.4f} after {dense:.4f}")
        if report.accuracy < dense - ALLOWED[SHIPPED]:
            break
        best = tried
    if best is None:
        raise PointError(f"every price of a score loses more than {ALLOWED[SHIPPED]:.1%} of the clips")
    return best
