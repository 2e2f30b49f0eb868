"""The streaming Keyword Transformer in torch: plain, short, never optimised; the reference.

Pre-norm blocks over the tokens of a strided causal stem with convolutions over frequency beside it, causal
attention over the last `span` tokens with a learned relative-position bias per head, ReLU feed-forward,
attention-pooled read-out at every token.
There is no absolute position and no sight of the future, so a chunk costs its own tokens and nothing else.

Every matrix product reads its input through a delta gate (`models.gates.hold`): a channel that moved by no
more than its threshold since it was last propagated keeps its old value. With no thresholds the gates
vanish; with thresholds of zero they change nothing.

There is one forward path: a clip is a stream with an empty past. What a stream remembers is the `Past`
handed in and handed back. Knows nothing of audio, files or time.

Letters: B streams, T frames, M bands, N tokens, P past tokens, C channels, H heads, D channels per head,
W span, K labels.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import FILTER_SHAPES
from models.features import SILENT
from models.gates import Thresholds, hold

if TYPE_CHECKING:
    from models.config import ModelConfig


Gating = Callable[..., Tensor]
"""Called as `Gates` is: (name, x, window) -> what the product reads. Training puts its own measures there."""


@dataclass
class Past:
    """What a batch of streams remembers between two calls; an empty `Past()` is the start of a stream.

    frames: (B, kernel - stride, M) newest frames, not yet too old for the stem.
    memory: per attention (one per layer, and one for the read-out), keys and values (B, H, P, D), P < W.
    held: per gate, the values last propagated.
    """

    frames: Tensor | None = None
    memory: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    held: dict[str, Tensor] = field(default_factory=dict)


class Gates:
    """The delta gates of one call: thresholds in, references carried from past to future."""

    def __init__(self, thresholds: Thresholds | None, past: Past, future: Past) -> None:
        self.thresholds, self.past, self.future = thresholds, past, future

    def __call__(self, name: str, x: Tensor, window: Tensor | None = None) -> Tensor:
        """Hold `x` (B, ..., N, C) along its tokens; see `models.gates.hold` for `window`."""
        if self.thresholds is None:
            return x
        reference = self.past.held.get(name)
        held, self.future.held[name] = hold(x, self.thresholds[name], reference, window)
        return held


def window_mask(past: int, new: int, span: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Age of key j at query i, and whether it is within the last `span` tokens: (N, P + N) int64, bool."""
    age = torch.arange(new, device=device)[:, None] + past - torch.arange(past + new, device=device)[None, :]
    return age, (age >= 0) & (age < span)


class WindowedAttention(nn.Module):
    """Softmax over the last `span` tokens of scores plus a learned bias per head and age."""

    def __init__(self, heads: int, span: int) -> None:
        super().__init__()
        self.span = span
        self.bias = nn.Parameter(torch.zeros(heads, span))

    def forward(self, scores: Tensor, values: Tensor, name: str, gates: Gating) -> Tensor:
        """Scores (B, H, N, P + N), values (B, H, P + N, D) -> (B, H, N, D)."""
        new, total = scores.shape[-2:]
        age, visible = window_mask(total - new, new, self.span, scores.device)
        bias = self.bias.to(scores.dtype)[:, age.clamp(0, self.span - 1)].masked_fill(~visible, -torch.inf)
        weights = F.softmax(scores + bias, dim=-1, dtype=scores.dtype)
        return gates(f"{name}.weights", weights, visible) @ values


class SelfAttention(nn.Module):
    """Causal multi-head self-attention with explicit past keys and values."""

    def __init__(self, config: ModelConfig, name: str) -> None:
        super().__init__()
        self.name, self.heads = name, config.heads
        self.scale = config.head_channels**-0.5
        self.qkv = nn.Linear(config.channels, 3 * config.channels)
        self.attend = WindowedAttention(config.heads, config.span)
        self.out = nn.Linear(config.channels, config.channels)

    def forward(self, x: Tensor, past: Past, future: Past, gates: Gating) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        batch, new, channels = x.shape
        qkv = self.qkv(gates(f"{self.name}.qkv", x))
        q, k, v = qkv.view(batch, new, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        k, v = remember(self.name, k, v, past, future, self.attend.span)
        q = gates(f"{self.name}.query", q * self.scale)
        mixed = self.attend(q @ k.transpose(-1, -2), v, self.name, gates)
        mixed = mixed.transpose(1, 2).reshape(batch, new, channels)
        return self.out(gates(f"{self.name}.out", mixed))


def remember(name: str, k: Tensor, v: Tensor, past: Past, future: Past, span: int) -> tuple[Tensor, Tensor]:
    """Put the past before new keys and values (B, H, N, D), and leave the newest `span - 1` to the future."""
    if name in past.memory:
        old_k, old_v = past.memory[name]
        k, v = torch.cat((old_k, k), dim=2), torch.cat((old_v, v), dim=2)
    first = 1 - span or k.shape[2]  # of a span of 1, nothing is left
    future.memory[name] = (k[:, :, first:], v[:, :, first:])
    return k, v


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ModelConfig, name: str) -> None:
        super().__init__()
        self.name = name
        self.norm1 = nn.LayerNorm(config.channels)
        self.attention = SelfAttention(config, name)
        self.norm2 = nn.LayerNorm(config.channels)
        self.up = nn.Linear(config.channels, config.hidden)
        self.down = nn.Linear(config.hidden, config.channels)

    def forward(self, x: Tensor, past: Past, future: Past, gates: Gating) -> Tensor:
        """(B, N, C) -> (B, N, C)."""
        x = x + self.attention(self.norm1(x), past, future, gates)
        hidden = F.relu(self.up(gates(f"{self.name}.up", self.norm2(x))))
        return x + self.down(gates(f"{self.name}.down", hidden))


class ReadOut(nn.Module):
    """Attention pooling of the last `pool_span` tokens with one learned query per head, then the labels."""

    name = "readout"

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.heads = config.heads
        self.norm = nn.LayerNorm(config.channels)
        self.query = nn.Linear(config.channels, config.heads, bias=False)
        self.attend = WindowedAttention(config.heads, config.pool_span)
        self.head = nn.Linear(config.channels, len(config.labels))

    def forward(self, x: Tensor, past: Past, future: Past, gates: Gating) -> Tensor:
        """(B, N, C) -> logits (B, N, K)."""
        batch, new, channels = x.shape
        x = self.norm(x)
        scores = self.query(gates("readout.query", x)).transpose(1, 2)[..., None]
        values = x.view(batch, new, self.heads, -1).transpose(1, 2)
        scores, values = remember(self.name, scores, values, past, future, self.attend.span)
        scores = scores.transpose(-1, -2).expand(-1, -1, new, -1)
        pooled = self.attend(scores, values, self.name, gates)
        pooled = pooled.transpose(1, 2).reshape(batch, new, channels)
        return self.head(gates("readout.head", pooled))


class Filters(nn.Module):
    """Convolutions over frequency on the frames under a token, with ReLU: what a filter knows, it knows at every pitch.

    The first takes the frames as its channels, so its filters are small spectrograms. Nothing is padded.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.kernel = config.kernel
        shapes = zip(config.filter_inputs, config.filters, FILTER_SHAPES, strict=False)
        self.layers = nn.ModuleList(nn.Conv1d(a, b, reach, stride) for a, b, (reach, stride) in shapes)
        self.join = nn.Linear(config.filter_places[-1] * config.filters[-1], config.channels, bias=False)

    def forward(self, window: Tensor, gates: Gating) -> Tensor:
        """(B, N, kernel * M) -> (B, N, C)."""
        x, tokens = window.flatten(0, 1).unflatten(1, (self.kernel, -1)), window.shape[:2]
        for number, layer in enumerate(self.layers, start=1):
            x = F.relu(layer(x)).transpose(1, 2)  # places, then filters
            held = gates(f"filters{number}", x.flatten(1).unflatten(0, tokens))
            x = held.flatten(0, 1).unflatten(1, (-1, x.shape[2])).transpose(1, 2)
        return self.join(held)


class StreamingKWT(nn.Module):
    """Frames in, a row of logits per token out."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.config = config
        self.stem = nn.Linear(config.stem_inputs, config.channels)
        self.filters = Filters(config) if config.filters else None
        self.blocks = nn.ModuleList(Block(config, f"block{i}") for i in range(config.layers))
        self.readout = ReadOut(config)
        self.apply(_initialise)
        for block in self.blocks:
            for last in (block.attention.out, block.down):
                with torch.no_grad():
                    last.weight.mul_((2 * config.layers) ** -0.5)

    def forward(
        self, frames: Tensor, past: Past | None = None, thresholds: Thresholds | None = None
    ) -> tuple[Tensor, Past]:
        """Advance a batch of streams.

        Args:
            frames: (B, T, M) network input, T a multiple of `stride`.
            past: what the previous call returned; None at the start of a stream.
            thresholds: one per gate, or None for the dense network.

        Returns:
            Logits (B, T / stride, K), and the past for the next call.
        """
        past, future = past or Past(), Past()
        return self.run(frames, past, future, Gates(thresholds, past, future)), future

    def run(self, frames: Tensor, past: Past, future: Past, gates: Gating) -> Tensor:
        """`forward` with the gates handed in."""
        window = gates("stem", self._tokens(frames, past, future))
        x = self.stem(window)
        if self.filters:
            x = x + self.filters(window, gates)
        for block in self.blocks:
            x = block(x, past, future, gates)
        return self.readout(x, past, future, gates)

    def _tokens(self, frames: Tensor, past: Past, future: Past) -> Tensor:
        """(B, T, M) -> the frames under each token, oldest first: (B, T / stride, kernel * M)."""
        keep = self.config.kernel - self.config.stride
        old = frames.new_full((len(frames), keep, frames.shape[2]), SILENT) if past.frames is None else past.frames
        frames = torch.cat((old, frames), dim=1)
        future.frames = frames[:, frames.shape[1] - keep :]
        return frames.unfold(1, self.config.kernel, self.config.stride).transpose(2, 3).flatten(2)


def _initialise(module: nn.Module) -> None:
    if isinstance(module, nn.Linear | nn.Conv1d):
        nn.init.xavier_uniform_(module.weight)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
