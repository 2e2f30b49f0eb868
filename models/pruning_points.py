"""Operating points that prune scores, learned on some clips, chosen on others and kept in the checkpoint.

A threshold per layer and head is learned as `models.pruning` says, weights frozen, together with a centre that is
subtracted from every key. Softmax does not feel the centre, so it moves into the bias of the keys: the network stays
what it was, and its thresholds are plain numbers. Judged in the compiled step, each point beside the one with the same
gates that prunes nothing, by speakers who taught none of them and by seconds of noise: what is dropped there is what
tells silence from words.
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
from models.points import ALLOWED

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import ArrayLike

    from models.evaluate import ClipReport, LabelledClips

PRUNED, BOTH = "pruned", "shipped-pruned"
"""Scores pruned without any gate, and behind those of `shipped`."""
BASES = {PRUNED: DENSE, BOTH: SHIPPED}
"""The points with the same gates that prune nothing."""
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
    held: LabelledClips,
    *,
    tau: float = 0.0,
    steps: int = STEPS,
    tell: Callable[[str], None] = print,
) -> Checkpoint:
    """The checkpoint with the points of the highest price at which none loses more than `shipped` may.

    Where the first price costs too much already there are none. Both are kept even where `shipped` does as little work:
    whoever asks for a method shall get it, and the model card tells what it costs.

    Args:
        checkpoint: the network; its weights stay, but for the keys' bias.
        clips: training clips, from which thresholds are learned.
        held: clips of other speakers, and seconds of noise, by which points are judged.
        tau: the mean |score| under which a head is silent; not learned, but judged along.
        steps: optimiser steps for each price.
        tell: hears how each price does.
    """
    torch.manual_seed(0)
    model, best = StreamingJudge(checkpoint).eval().requires_grad_(requires_grad=False), without_pruning(checkpoint)
    frames = model.prepare(clips.samples)
    network = Network(checkpoint)
    plain = {point: judge_clips(network, held, base) for point, base in BASES.items() if base in network.points}
    for price in PRICES:
        *_, found = pruning.learn(model, frames, steps=steps, price=price, rates=(0.03, 0.0))
        tried = with_pruning(checkpoint, found.thresholds.numpy(), found.centres.numpy(), tau)
        network = Network(tried)
        reports = {point: judge_clips(network, held, point) for point in plain}
        told = "; ".join(f"{point} {described(reports[point])} after {described(plain[point])}" for point in plain)
        tell(f"price {price}: {found.survived:.1%} of scores survive; {told}")
        if any(reports[point].accuracy < plain[point].accuracy - ALLOWED[SHIPPED] for point in plain):
            break
        best = tried
    return best


def described(report: ClipReport) -> str:
    """What a point gets right, and what it leaves out."""
    return f"{report.accuracy:.4f} ({report.macs_skipped_vs_causal:.2%} skipped)"


def without_pruning(checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint without the points that are learned here."""
    return replace(checkpoint, points={name: p for name, p in checkpoint.points.items() if name not in BASES})
