"""Training: streams in, weights out; one command, resumable, the same for our data and the full public download.

AdamW, warm-up and cosine, exponential moving average of the weights, label smoothing, and a penalty on how
much each gated tensor moves from token to token, which is what makes the delta gate worth having.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from models.compose import Batch, Composer, Recipe
from models.config import ModelConfig
from models.data import Corpus
from models.transformer import Past, StreamingKWT


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and how hard to train. One step sees `streams * Recipe.segments` clips."""

    steps: int = 24_000
    streams: int = 32
    warmup: int = 600
    learning_rate: float = 2e-3
    weight_decay: float = 0.05
    label_smoothing: float = 0.02
    movement: float = 0.05
    average: float = 0.999
    clip_norm: float = 1.0
    seed: int = 0
    report_every: int = 500

    def rate(self, step: int) -> float:
        """Learning rate at a step: linear warm-up, then a cosine to zero."""
        if step < self.warmup:
            return self.learning_rate * (step + 1) / self.warmup
        progress = (step - self.warmup) / max(1, self.steps - self.warmup)
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))


class Movement:
    """Stands where the gates stand and measures how much each tensor moves between neighbouring tokens.

    The measure is mean |x_t - x_{t-1}| over mean |x|, so scaling a tensor down gains nothing. Each gate is
    looked at with probability `share`: the penalty stays unbiased and costs a quarter of the time.
    """

    def __init__(self, share: float = 0.25) -> None:
        self.share = share
        self.ratios: list[Tensor] = []

    def __call__(self, name: str, x: Tensor, window: Tensor | None = None) -> Tensor:
        """Note the tensor's movement and hand it on unchanged."""
        if window is None and name != "stem" and torch.rand(()).item() < self.share:
            pairs = x[..., : x.shape[-2] // 2 * 2, :].unflatten(-2, (-1, 2))
            moved = (pairs[..., 1, :] - pairs[..., 0, :]).abs().mean(dtype=torch.float32)
            self.ratios.append(moved / (pairs[..., 0, :].abs().mean(dtype=torch.float32) + 1e-3))
        return x

    def penalty(self) -> Tensor:
        """Mean over the gates seen."""
        return torch.stack(self.ratios).mean() if self.ratios else torch.zeros(())


def loss_of(model: StreamingKWT, batch: Batch, schedule: Schedule) -> tuple[Tensor, dict[str, float]]:
    """Weighted cross-entropy over the asked tokens, plus the movement penalty; and figures for the log."""
    gates = Movement()
    with torch.autocast("cpu", torch.bfloat16):
        logits = model.run(batch.frames, Past(), Past(), gates)
    losses = F.cross_entropy(
        logits.float().flatten(0, 1), batch.targets.flatten(), reduction="none", label_smoothing=schedule.label_smoothing
    )
    task = (losses * batch.weights.flatten()).sum() / batch.weights.sum()
    moved = gates.penalty()
    return task + schedule.movement * moved, {"loss": task.item(), "movement": moved.item()}


@torch.no_grad()
def update_average(average: StreamingKWT, model: StreamingKWT, step: int, decay: float) -> None:
    """Move the averaged weights towards the trained ones; faster in the first steps."""
    keep = min(decay, (1 + step) / (10 + step))
    for mean, weight in zip(average.parameters(), model.parameters(), strict=True):
        mean.lerp_(weight, 1 - keep)
