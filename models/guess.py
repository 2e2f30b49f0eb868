"""What one description of a sound tells of another, frame by frame: fitted to recordings that have both.

Pictures of log-mels are most of the training clips, and end at 4 kHz. What they lack can be guessed from what they
have: the treble (`models.treble`), and what a stock network hears (`models.teachers`). A small convolution over time,
least squares, on pixels with a little noise, which pictures have and recordings do not. Knows no words.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from models.features import Array

STEPS, CLIPS, RATE = 2_000, 48, 2e-3
NOISE = 2.0
"""Standard deviation of the noise on what is given, grey levels: about what JPEG leaves."""
BATCH = 512


class Guess(nn.Module):
    """Pixels (B, T, G) -> features (B, T, W), seven frames at once and a few more around them."""

    mean: Tensor
    scale: Tensor

    def __init__(self, wanted: Tensor, given: int, hidden: int = 192) -> None:
        super().__init__()
        count = wanted.shape[2]
        self.direct = nn.Conv1d(given, count, 3, padding=1)
        self.layers = nn.Sequential(
            nn.Conv1d(given, hidden, 5, padding=2),
            nn.ReLU(),
            nn.Conv1d(hidden, hidden, 3, padding=1),
            nn.ReLU(),
            nn.Conv1d(hidden, count, 1),
        )
        self.register_buffer("mean", wanted.float().mean(dim=(0, 1)))
        self.register_buffer("scale", wanted.float().std(dim=(0, 1)) + 1e-3)

    def forward(self, pixels: Tensor) -> Tensor:
        """In units of `scale` around `mean`."""
        x = (pixels / 64.0 - 1.0).transpose(1, 2)
        return (self.direct(x) + self.layers(x)).transpose(1, 2)

    @torch.inference_mode()
    def of(self, pixels: NDArray[Any]) -> Array:
        """Pixels (n, T, G) -> what they tell (n, T, W)."""
        parts = [torch.from_numpy(pixels[start : start + BATCH]).float() for start in range(0, len(pixels), BATCH)]
        guessed: Array = np.concatenate([(self(part) * self.scale + self.mean).numpy() for part in parts])
        return guessed


def fit(given: NDArray[Any], wanted: NDArray[Any], steps: int = STEPS, seed: int = 0) -> Guess:
    """Learn to guess from clips that have both: pixels (n, T, G), and features (n, T, W)."""
    chance = torch.Generator().manual_seed(seed)
    known, target = torch.from_numpy(given), torch.from_numpy(wanted)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        guess = Guess(target, given.shape[2])
    optimizer = torch.optim.AdamW(guess.parameters(), RATE)
    for step in range(steps):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / steps)
        clips = torch.randint(len(known), (CLIPS,), generator=chance)
        pixels = known[clips].float()
        pixels += NOISE * torch.randn(pixels.shape, generator=chance)
        loss = F.mse_loss(guess(pixels), (target[clips].float() - guess.mean) / guess.scale)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return guess.requires_grad_(requires_grad=False)
