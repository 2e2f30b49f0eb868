"""Score pruning and silent heads of an operating point (`models.operating`), in torch: one equation a line.

Stands in the place of the reference's attention window, so `models.transformer` knows nothing of it. With s the scaled
scores of one query and one head, b their bias, and n the keys it may see::

    silent  = mean |s| < tau
    dropped = s + b < min(Th, max(s + b))
    weights = softmax(s + b, the dropped at -infinity)
    held    = the delta gate's, of weights; where silent, as it was
    output  = 0 where silent, held @ values elsewhere
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from models.operating import HEAD, SCORE
from models.transformer import WindowedAttention, window_mask


class PruningGates(Protocol):
    """Gates that know what to prune, and are told what was."""

    prunes: Tensor
    """Th and tau (B, layers, heads, 2)."""

    def __call__(self, name: str, x: Tensor, window: Tensor | None = None) -> Tensor:
        """As `models.transformer.Gates`; where x is NaN, nothing moves."""

    def spare(self, dropped: Tensor, silent: Tensor) -> None:
        """Keys whose scores are dropped, and that silent heads would see: (B, H, N, P + N), of the gate just passed."""


class PrunedWindow(WindowedAttention):
    """A block's attention window that drops scores and heads."""

    def __init__(self, layer: int, heads: int, span: int) -> None:
        super().__init__(heads, span)
        self.layer = layer

    def forward(self, scores: Tensor, values: Tensor, name: str, gates: PruningGates) -> Tensor:
        """Scores (B, H, N, P + N), values (B, H, P + N, D) -> (B, H, N, D)."""
        new, total = scores.shape[-2:]
        age, visible = window_mask(total - new, new, self.span, scores.device)
        theta, tau = (gates.prunes[:, self.layer, :, kind, None, None] for kind in (SCORE, HEAD))
        silent = (scores.abs() * visible).sum(-1, keepdim=True) / visible.sum(-1, keepdim=True) < tau
        biased = (scores + self.bias[:, age.clamp(0, self.span - 1)]).masked_fill(~visible, -torch.inf)
        dropped = visible & (biased < torch.minimum(theta, biased.amax(-1, keepdim=True)))
        weights = F.softmax(biased.masked_fill(dropped, -torch.inf), dim=-1)
        held = gates(f"{name}.weights", weights.masked_fill(silent, torch.nan), visible)
        gates.spare(dropped & ~silent, silent & visible)
        return (held @ values).masked_fill(silent, 0.0)
