"""Folding attention (Li et al. 2023) in the streaming Keyword Transformer, layer by layer.

A folded layer splits a token of C channels into F sub-tokens of C / F, runs attention and feed-forward over the
F N sub-tokens with matrices F^2 smaller, and puts the token together again. Against the plain layer::

    parameters  / F^2        projections and feed-forward MACs  / F        score and value MACs  x F

which pays where few new tokens meet a cache. With s_f(x) the f-th part of token x, and Y a plain layer of C / F
channels that reads a query and its keys::

    y_t = concat over f of Y(s_f(x_t); s_g(x_u) for t - span < u <= t and all g)

so a sub-token sees all sub-tokens of its own token and of the `span - 1` tokens before it, and the layer stays causal
by token; a bias per head and sub-token distance is learned. The paper folds a trained architecture's layers before
training; so do we. Which layers fold is given as one factor per layer, 1 for a plain one (`folds` of the
configuration). Points that prune leave folded layers alone. `models.folded_step` is the same, compiled,
for one factor in a network.

Letters: N tokens, P past tokens, F sub-tokens in a token, C channels of a token.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from models.transformer import Block, Gating, Past, StreamingKWT, WindowedAttention

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint
    from models.config import ModelConfig


def fold(x: Tensor, factor: int) -> Tensor:
    """(..., N, C) -> (..., F N, C / F); sub-tokens of a token are neighbours."""
    return x.unflatten(-1, (factor, -1)).flatten(-3, -2)


def unfold(x: Tensor, factor: int) -> Tensor:
    """Inverse of `fold`."""
    return x.unflatten(-2, (-1, factor)).flatten(-2, -1)


class FoldedGates:
    """The network's own gates, comparing a sub-token with the same sub-token of the token before."""

    def __init__(self, gates: Gating, factor: int) -> None:
        self.gates, self.factor = gates, factor

    def __call__(self, name: str, x: Tensor, window: Tensor | None = None) -> Tensor:
        """Hold `x` (B, ..., F N, C) along its tokens; attention rows (given `window`) are folded in their keys too."""
        rows = x.unflatten(-2, (-1, self.factor)).transpose(-3, -2)
        if window is None:
            held = self.gates(name, rows)
        else:
            by_key = rows.unflatten(-1, (-1, self.factor)).movedim(-1, -3)
            held = self.gates(name, by_key, window[:: self.factor, :: self.factor]).movedim(-3, -1).flatten(-2, -1)
        return held.transpose(-3, -2).flatten(-3, -2)


class FoldedWindow(WindowedAttention):
    """Softmax over all sub-tokens of the last `tokens` tokens.

    `span` is what the memory must hold: the sub-tokens of the past, and one.
    """

    def __init__(self, heads: int, tokens: int, factor: int) -> None:
        super().__init__(heads, factor * (tokens - 1) + 1)
        self.factor = factor
        self.bias = torch.nn.Parameter(torch.zeros(heads, factor * (tokens + 1) - 1))

    def forward(self, scores: Tensor, values: Tensor, name: str, gates: Gating) -> Tensor:
        """Scores (B, H, F N, F (P + N)), values (B, H, F (P + N), D) -> (B, H, F N, D)."""
        new, total = scores.shape[-2:]
        query = torch.arange(total - new, total, device=scores.device)[:, None]
        key = torch.arange(total, device=scores.device)
        age = query // self.factor - key // self.factor
        visible = (age >= 0) & (age <= (self.span - 1) // self.factor)
        distance = (query - key + self.factor - 1).clamp(0, self.bias.shape[1] - 1)
        bias = self.bias.to(scores.dtype)[:, distance].masked_fill(~visible, -torch.inf)
        weights = F.softmax(scores + bias, dim=-1, dtype=scores.dtype)
        return gates(f"{name}.weights", weights, visible) @ values


class FoldedBlock(Block):
    """A block over sub-tokens; tokens in, tokens out."""

    def __init__(self, config: ModelConfig, name: str, factor: int) -> None:
        super().__init__(config.folded(factor), name)
        self.factor = factor
        self.attention.attend = FoldedWindow(self.attention.heads, config.span, factor)

    def forward(self, x: Tensor, past: Past, future: Past, gates: Gating) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        folded = super().forward(fold(x, self.factor), past, future, FoldedGates(gates, self.factor))
        return unfold(folded, self.factor)


def network_of(config: ModelConfig) -> StreamingKWT:
    """The network that a configuration describes, its layers folded where it says so."""
    return FoldedKWT(config) if max(config.factors) > 1 else StreamingKWT(config)


def filled(network: StreamingKWT, checkpoint: Checkpoint) -> StreamingKWT:
    """A network with a copy of a checkpoint's weights, ready to judge."""
    network.load_state_dict({name: torch.tensor(array) for name, array in checkpoint.weights.items()})
    return network.eval()


class FoldedKWT(StreamingKWT):
    """The streaming network with some layers folded, as `config.folds` has it.

    Raises:
        ConfigError: where a factor does not fit the shape.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__(config)
        for layer, factor in enumerate(config.factors):
            if factor > 1:
                self.blocks[layer] = FoldedBlock(config, f"block{layer}", factor)
