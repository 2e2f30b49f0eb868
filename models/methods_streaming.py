"""The published methods on the streaming network: its attention with the steps of `models.kwt.Attention`.

Judges whole clips in the torch reference, each from an empty past, so that score pruning and hybrid pruning can be
measured on the network that ships; its compiled step runs the delta gate. A key that a query may not see is
neither scouted nor counted. Thresholds of score pruning apply to what the softmax sees, relative-position bias
included; hybrid pruning looks at scores without it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from models.checkpoint import CheckpointError
from models.folding import filled
from models.kwt import Attention, Judge
from models.offline import tokens_of
from models.transformer import Gates, Past, SelfAttention, StreamingKWT, window_mask

if TYPE_CHECKING:
    from collections.abc import Sequence

    from models.checkpoint import Checkpoint
    from models.config import ModelConfig
    from models.features import Array


class HandedIn(Gates):
    """No gates; carries the attention handed in."""

    def __init__(self, attention: Attention) -> None:
        super().__init__(None, Past(), Past())
        self.attention = attention


class SteppedAttention(SelfAttention):
    """The streaming network's self-attention over a whole clip, step by step."""

    def __init__(self, config: ModelConfig, layer: int) -> None:
        super().__init__(config, f"block{layer}")
        self.layer = layer

    def forward(self, x: Tensor, past: Past, future: Past, gates: HandedIn) -> Tensor:  # noqa: ARG002 - a clip has no past
        """(B, N, C) -> (B, N, C)."""
        attention, tokens = gates.attention, x.shape[1]
        age, attention.visible = window_mask(0, tokens, self.attend.span, x.device)
        qkv = self.qkv(attention.enter(self.layer, x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        bias = self.attend.bias[:, age.clamp(0, self.attend.span - 1)]
        attention.bias = bias.masked_fill(~attention.visible, -torch.inf)
        weights = attention.weights(attention.scores(q, k))
        return self.out(attention.mix(weights, v).transpose(1, 2).flatten(2))


def check_plain(config: ModelConfig) -> None:
    """Refuse layers that fold: their attention has other steps.

    Raises:
        CheckpointError: if there are any.
    """
    if max(config.factors) > 1:
        raise CheckpointError("folded layers are not pruned; `evaluate methods --folded` judges networks that have any")


class StreamingJudge(Judge):
    """A checkpoint that judges clips by their last token.

    Raises:
        CheckpointError: if its layers fold.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__()
        check_plain(checkpoint.config)
        self.config = checkpoint.config
        self.model = StreamingKWT(self.config)
        for layer, block in enumerate(self.model.blocks):
            block.attention = SteppedAttention(self.config, layer)
        filled(self.model, checkpoint)

    def prepare(self, clips: Sequence[Array]) -> Tensor:
        """Samples (S,) of equal lengths -> frames (n, T, M)."""
        return torch.from_numpy(np.stack([self._frames(samples) for samples in clips]))

    def _frames(self, samples: Array) -> Array:
        frames = tokens_of(self.config, samples)
        return frames.reshape(-1, frames.shape[-1])

    def judge(self, x: Tensor, attention: Attention | None = None) -> Tensor:
        """Frames (B, T, M) -> logits (B, K)."""
        attention = attention or Attention()
        attention.clips += len(x)
        return self.model.run(x, Past(), Past(), HandedIn(attention))[:, -1]
