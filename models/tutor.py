"""A network that is heard at every token of a training stream: what it believes there becomes half of the target.

Teachers (`models.teachers`) judge clean clips once; a tutor judges the very streams a student hears, noise, neighbours
and all. It is meant for the gated stage, whose student should say what the dense network says, with less work.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from models.checkpoint import Checkpoint
from models.compose import Batch
from models.config import ModelConfig
from models.data import DataError
from models.folding import filled, network_of

TRUST = 0.5
"""How much of a token's target is what the tutor believes."""


class Tutor:
    """A frozen checkpoint of ours, heard without its gates."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config, self.fingerprint = checkpoint.config, checkpoint.fingerprint
        self.network = filled(network_of(checkpoint.config), checkpoint).requires_grad_(requires_grad=False)

    def check(self, config: ModelConfig) -> None:
        """Refuse a student that hears or answers otherwise.

        Raises:
            DataError: naming what differs.
        """
        for name in ("labels", "frontend", "stride", "kernel"):
            if getattr(self.config, name) != getattr(config, name):
                raise DataError(f"a tutor must have its student's {name}: train from a checkpoint of the same {name}")

    @torch.inference_mode()
    def beliefs(self, frames: Tensor) -> Tensor:
        """Network input (B, T, M) -> posteriors (B, N, K)."""
        return self.network(frames)[0].softmax(-1)

    def believed(self, batch: Batch) -> Batch:
        """The same streams, with the tutor's say in their targets."""
        return replace(batch, beliefs=torch.lerp(batch.beliefs, self.beliefs(batch.frames).clone(), TRUST))
