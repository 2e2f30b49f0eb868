"""A second question, in training only: which word was it, of all that have a name?

One class for every other word teaches a network nothing about them, and they are most of what it hears. Asked for
their names as well, its read-out tells them apart, from each other and from keywords; enrolment lives on that.
Shreds, words played backwards and words left out of `Recipe.named` are nameless: `_unknown_` is right for them.
"""

from __future__ import annotations

from torch import Tensor, nn

from models.config import ModelConfig
from models.recipe import Recipe
from models.transformer import Gating


class Overheard:
    """Gates that keep what the head reads: the pooled read-out (B, N, C)."""

    pooled: Tensor

    def __init__(self, gates: Gating) -> None:
        self._gates = gates

    def __call__(self, name: str, x: Tensor, window: Tensor | None = None) -> Tensor:
        """Hand on what the gates let through."""
        x = self._gates(name, x, window)
        if name == "readout.head":
            self.pooled = x
        return x


class Naming(nn.Module):
    """A head beside the network's own; it is not part of the checkpoint."""

    def __init__(self, channels: int, config: ModelConfig, recipe: Recipe) -> None:
        super().__init__()
        self.head = nn.Linear(channels, len(config.labels) + len(recipe.named))
        nn.init.zeros_(self.head.weight)  # beginnings repeat without a seed
        nn.init.zeros_(self.head.bias)

    def forward(self, pooled: Tensor) -> Tensor:
        """Read-out (B, N, C) -> logits of labels and names (B, N, K + names)."""
        return self.head(pooled)
