"""The stock Keyword Transformer in torch (Berg et al. 2021, "Keyword Transformer", KWT-1 by default).

MFCC frames, a class token, learned absolute positions, post-norm blocks x = LN(x + MHSA(x)),
x = LN(x + W2 gelu(W1 x)), bidirectional attention, logits from the class token. Judges whole clips.

The attention inside each block is handed in (`Attention`), so that a published method is a subclass that
overrides the one step it changes and counts what it did. Knows nothing of files or streams.

Letters: B clips, S samples, N tokens (class token first), C channels, H heads, D channels per head, K labels.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.kwt_weights import FULL_SCALE

if TYPE_CHECKING:
    from models.features import Array
    from models.kwt_weights import KWTConfig, Weights


PART = 64
"""Clips that are judged at a time, where there may be many."""


class Attention:
    """Dense attention, step by step; `done` collects the multiply-accumulates of each group over all clips.

    `enter` begins a layer and is told its number. Queries, keys and values are (B, H, N, D), scores and weights
    (B, H, N, N). A causal network says which keys its queries may see in `visible` (N, N), and what is added to its
    scores in `bias`, -inf where they may not.
    """

    visible = torch.ones((), dtype=torch.bool)
    bias = torch.zeros(())

    def __init__(self) -> None:
        self.clips = 0
        self.layer = 0
        self.done: dict[str, Tensor] = {}

    def count(self, group: str, macs: Tensor | float) -> None:
        """Add multiply-accumulates to a group."""
        self.done[group] = self.done.get(group, torch.zeros((), dtype=torch.float64)) + macs

    def enter(self, layer: int, x: Tensor) -> Tensor:
        """What the projections of a layer read, (B, N, C) -> (B, N, C)."""
        self.layer = layer
        self.count("qkv", 3.0 * x.numel() * x.shape[-1])
        return x

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Scaled scores."""
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + self.bias
        self.count("scores", q.shape[-1] * self.visible.expand_as(scores).sum())
        return scores

    def weights(self, scores: Tensor) -> Tensor:
        """Softmax over the keys."""
        return scores.softmax(dim=-1)

    def mix(self, weights: Tensor, v: Tensor) -> Tensor:
        """Weighted values (B, H, N, D)."""
        self.count("values", v.shape[-1] * self.visible.expand_as(weights).sum())
        return weights @ v


class FrontEnd(nn.Module):
    """16 kHz clips in [-1, 1] -> scaled MFCC: windowed DFT as two matrices, magnitude, mel bands, log, DCT-II."""

    window: Tensor
    cosine: Tensor
    sine: Tensor
    mel: Tensor
    dct: Tensor
    offset: Tensor
    scale: Tensor

    def __init__(self, config: KWTConfig) -> None:
        super().__init__()
        self.hop = config.hop
        prefix = "frontend."
        for name, shape in config.shapes().items():
            if name.startswith(prefix):
                self.register_buffer(name.removeprefix(prefix), torch.zeros(shape))

    def forward(self, samples: Tensor) -> Tensor:
        """(B, S) -> (B, N - 1, coefficients)."""
        windows = samples.unfold(1, len(self.window), self.hop) * self.window
        magnitude = ((windows @ self.cosine.T).square() + (windows @ self.sine.T).square()).sqrt()
        mel = (magnitude @ self.mel.T).clamp_min(1e-12)
        return (mel.log() @ self.dct.T - self.offset) * self.scale


class Block(nn.Module):
    """LN(x + attention(x)), then LN(x + feed-forward(x))."""

    def __init__(self, config: KWTConfig, layer: int) -> None:
        super().__init__()
        self.layer, self.heads = layer, config.heads
        self.qkv = nn.Linear(config.channels, 3 * config.channels, bias=False)
        self.out = nn.Linear(config.channels, config.channels)
        self.norm1 = nn.LayerNorm(config.channels, config.epsilon)
        self.up = nn.Linear(config.channels, config.hidden)
        self.down = nn.Linear(config.hidden, config.channels)
        self.norm2 = nn.LayerNorm(config.channels, config.epsilon)

    def forward(self, x: Tensor, attention: Attention) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        qkv = self.qkv(attention.enter(self.layer, x)).unflatten(-1, (3, self.heads, -1))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)
        weights = attention.weights(attention.scores(q, k))
        mixed = attention.mix(weights, v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.out(mixed))
        return self.norm2(x + self.down(F.gelu(self.up(x), approximate="tanh")))


class Judge(nn.Module):
    """A network that judges clips with an attention handed in."""

    def judge(self, x: Tensor, attention: Attention | None = None) -> Tensor:
        """Prepared clips (B, ...) -> logits (B, K)."""
        raise NotImplementedError

    @torch.no_grad()
    def beliefs(self, x: Tensor) -> Tensor:
        """Any number of prepared clips (n, ...) -> logarithms of the dense network's posteriors (n, K)."""
        return torch.cat([self.judge(part) for part in x.split(PART)]).log_softmax(dim=-1)


def divergence(logits: Tensor, beliefs: Tensor) -> Tensor:
    """Of what logits (B, K) say from log-posteriors (B, K): nats, mean over clips."""
    return F.kl_div(logits.log_softmax(dim=-1), beliefs, log_target=True, reduction="batchmean")


class KWT(Judge):
    """Clips in, logits out."""

    def __init__(self, config: KWTConfig, weights: Weights | None = None) -> None:
        super().__init__()
        self.config = config
        self.frontend = FrontEnd(config)
        self.stem = nn.Linear(config.coefficients, config.channels)
        self.class_token = nn.Parameter(torch.zeros(config.channels))
        self.positions = nn.Parameter(torch.zeros(config.tokens, config.channels))
        self.blocks = nn.ModuleList(Block(config, i) for i in range(config.layers))
        self.head = nn.Linear(config.channels, len(config.labels))
        if weights is not None:
            self.load_state_dict({name: torch.as_tensor(value) for name, value in weights.items()})

    def weights(self) -> dict[str, Array]:
        """Tensors as `models.kwt_weights` names them."""
        return {name: value.numpy() for name, value in self.state_dict().items()}

    def embed(self, samples: Tensor) -> Tensor:
        """Clips (B, S) of int16 values -> what the first block sees, (B, N, C)."""
        x = self.stem(self.frontend(samples / FULL_SCALE))
        first = self.class_token.expand(len(x), 1, -1)
        return torch.cat((first, x), dim=1) + self.positions

    def judge(self, x: Tensor, attention: Attention | None = None) -> Tensor:
        """What the first block sees, (B, N, C) -> logits (B, K)."""
        attention = attention or Attention()
        attention.clips += len(x)
        for block in self.blocks:
            x = block(x, attention)
        return self.head(x[:, 0])

    def forward(self, samples: Tensor, attention: Attention | None = None) -> Tensor:
        """Clips (B, S) of int16 values -> logits (B, K)."""
        return self.judge(self.embed(samples), attention)
