"""The second stage of training: the gates in the loop, their thresholds learned under a price on work.

The share of MACs done is steered to a target: its price rises while the share is above and falls while it is
below. One batch in five runs dense, so the dense network stays good; others run at thresholds up to 1.6 times
the learned ones, so a stream's scale may be turned at run time.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from models.checkpoint import LEARNED, SHIPPED
from models.compose import Batch
from models.config import ModelConfig
from models.finetune import Holding, LearnedGates
from models.naming import Naming
from models.recipe import Recipe
from models.train import Streaming, asked
from models.train_state import Schedule
from models.transformer import StreamingKWT

Points = Mapping[str, Mapping[str, float]]
DENSE_SHARE, EXACT_SHARE = 0.2, 0.6
"""Shares of batches with no gates, and with the learned thresholds as they are; the rest is scaled."""
SCALES = (0.3, 1.6)
STEER = 0.02
"""How fast the price follows; it stays within `PRICES`."""
PRICES = (0.05, 20.0)
RELAXED, TARGET = 0.35, 0.20
"""Share of MACs aimed at in the beginning, and from half-way on."""


class Gated(Streaming):
    """Task loss of the gated network plus the price of its work; thresholds are learned along with the weights."""

    stage = "gated"
    pace = 20.0
    """Learning rate of the thresholds' logarithms, as a multiple of the weights'."""
    price: Tensor
    target: Tensor
    SCHEDULE: ClassVar[Schedule] = Schedule(steps=11_000, warmup=100, learning_rate=4.5e-4, average=0.998)

    def __init__(
        self, config: ModelConfig, recipe: Recipe, points: Points | None = None, target: float = TARGET
    ) -> None:
        """Begin at the thresholds of a checkpoint's points, where it has any."""
        super().__init__()
        self.gates, self.naming = LearnedGates(config), Naming(config.channels, config, recipe)
        if points and (known := points.get(LEARNED, points.get(SHIPPED))):
            self.gates.adopt(known)
        self.register_buffer("price", torch.tensor(1.0))
        self.register_buffer("target", torch.tensor(target))

    def forward(
        self, model: StreamingKWT, batch: Batch, schedule: Schedule, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float]]:
        """Loss of a batch at a random scale, and figures for the log."""
        scale = self._scale(generator)
        holding = Holding(self.gates, scale)
        task, names = asked(model, batch, holding, self.naming, schedule)
        loss = task + schedule.naming * names
        if scale == 0.0:
            return loss, {"dense_loss": task.item()}
        share = holding.macs_share()
        loss = loss + self.price.item() * share
        if scale == 1.0:
            return loss, {"loss": task.item(), "share": share.item(), "price": self.price.item()}
        return loss, {"loss": task.item()}

    def follow(self, figures: dict[str, float], progress: float) -> None:
        """Raise the price of work while more is done than aimed at, `progress` (0..1) of the way."""
        if "share" in figures:
            target = self.target.item()
            aim = target + (RELAXED - target) * max(0.0, 1.0 - 2.0 * progress)
            self.price.mul_(math.exp(STEER * (figures["share"] - aim) / aim)).clamp_(*PRICES)

    def points(self) -> dict[str, dict[str, float]]:
        """The learned operating point."""
        return {LEARNED: self.gates.thresholds()}

    def _scale(self, generator: torch.Generator) -> float:
        """0 for a dense batch, 1 for the learned thresholds, or a factor on them."""
        kind, place = torch.rand(2, generator=generator).tolist()
        if kind < DENSE_SHARE:
            return 0.0
        return 1.0 if kind < DENSE_SHARE + EXACT_SHARE else SCALES[0] + place * (SCALES[1] - SCALES[0])
