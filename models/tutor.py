"""Networks that hear the very streams a student hears: what they believe there becomes half of the target.

Teachers (`models.teachers`) judge clean clips once; a tutor judges them in noise, at every level and beside neighbours.
One kind is a checkpoint of ours, heard at every token without its gates, and meant for the gated stage, whose student
should say what the dense network says, with less work. The other (`models.clip_stage`) hears each word's second whole.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from models.checkpoint import Checkpoint, load_checkpoint
from models.clip_cnn import FORMAT, WINDOW, load_clip_cnn
from models.compose import Batch
from models.config import ModelConfig
from models.data import DataError
from models.features import SILENT
from models.folding import filled, network_of
from models.headers import digest_of, format_of
from models.precision import quick

TRUST = 0.5
"""How much of a token's target is what tutors believe, on average."""


class Tutor(Protocol):
    """What training asks of one."""

    fingerprint: str

    def check(self, config: ModelConfig) -> None:
        """Refuse a student that hears or answers otherwise.

        Raises:
            DataError: naming what differs.
        """

    def beliefs(self, batch: Batch) -> Tensor:
        """Posteriors (B, N, K); called from several threads at once."""


class StreamTutor:
    """A frozen checkpoint of ours, heard without its gates."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.config, self.fingerprint = checkpoint.config, checkpoint.fingerprint
        self.network = filled(network_of(checkpoint.config), checkpoint).requires_grad_(requires_grad=False)

    def check(self, config: ModelConfig) -> None:
        """As `Tutor` has it."""
        _compare(self.config, config, ("labels", "frontend", "stride", "kernel"))

    @torch.no_grad()
    def beliefs(self, batch: Batch) -> Tensor:
        """As `Tutor` has it."""
        return self.network(batch.frames)[0].softmax(-1)


class ClipTutor:
    """A frozen convolutional network that hears the second of every segment whole."""

    def __init__(self, path: Path) -> None:
        """Read one.

        Raises:
            DataError: for a file that is none.
        """
        self.network, self.config = load_clip_cnn(path)
        self.fingerprint = digest_of(path)

    def check(self, config: ModelConfig) -> None:
        """As `Tutor` has it."""
        _compare(self.config, config, ("labels", "frontend"))

    @torch.no_grad()
    def beliefs(self, batch: Batch) -> Tensor:
        """As `Tutor` has it; the same at every token of a segment."""
        streams, frames = torch.arange(len(batch.frames))[:, None], batch.starts[..., None] + torch.arange(WINDOW)
        seconds = F.pad(batch.frames, (0, 0, 0, WINDOW), value=SILENT)[streams[..., None], frames]
        with quick():
            logits = self.network(seconds.flatten(0, 1))
        return logits.float().softmax(-1).unflatten(0, batch.starts.shape)[streams, batch.segments]


def tutored(batch: Batch, tutors: Sequence[Tutor]) -> Batch:
    """The same streams, with the tutors' say in their targets."""
    if not tutors:
        return batch
    beliefs = torch.stack([tutor.beliefs(batch) for tutor in tutors]).mean(0)
    return replace(batch, beliefs=torch.lerp(batch.beliefs, beliefs, TRUST))


def load_tutor(path: Path) -> Tutor:
    """A tutor of either kind.

    Raises:
        CheckpointError, DataError: for a file that is none.
    """
    return ClipTutor(path) if format_of(path) == FORMAT else StreamTutor(load_checkpoint(path))


def _compare(tutor: ModelConfig, student: ModelConfig, names: tuple[str, ...]) -> None:
    for name in names:
        if getattr(tutor, name) != getattr(student, name):
            raise DataError(f"a tutor must have its student's {name}: train from a checkpoint of the same {name}")
