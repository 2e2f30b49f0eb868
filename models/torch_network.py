"""The torch engine: `models.transformer.StreamingKWT` behind the interface of `models.network.Network`.

For those who serve from an accelerator, and the line against which the compiled step is measured. The streams of
a call run as one batch of the reference network; what they remember are rows of a few tensors.

Tensor arithmetic cannot leave out single channels, so the gates save time only where a whole token passed none:
`Gathered` multiplies the tokens that differ from the one before them and repeats the rest. The counts are of what
the gates let through, as in the compiled step without its rebuilds of sums, of which there are none here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from models.checkpoint import Checkpoint
from models.config import BLOCK_GATES, READOUT_GATES, ModelConfig, gate_names
from models.counting import stem_costs
from models.engines import AnyCache, AnyNetwork, check_batch
from models.features import SILENT, Array
from models.folding import filled, network_of
from models.gates import hold
from models.operating import HEAD, OFF, SCORE, prune_table
from models.torch_pruning import PrunedWindow
from models.transformer import Gates, Past, StreamingKWT


class TorchCache(AnyCache):
    """What `capacity` streams remember, as tensors on one device.

    tensors: every tensor of a full `Past`, a row for each stream. Along a window (keys, values, held attention rows)
        the newest token is last; of a stream younger than the window, the places in front are unused.
    """

    def __init__(self, model: StreamingKWT, capacity: int) -> None:
        super().__init__(model.config, capacity)
        self.tensors = {
            name: tensor.new_zeros(capacity, *tensor.shape[1:])
            for name, tensor in _named(_full_past(model), model.config)
        }

    @property
    def bytes_per_row(self) -> int:
        """Memory of one stream, counters included."""
        return super().bytes_per_row + sum(tensor[:1].nbytes for tensor in self.tensors.values())

    def read(self, rows: Tensor, seen: int) -> Past:
        """The past of streams (B,) of which each has `seen` tokens in its longest window, less than `longest_span`."""
        if seen == 0:
            return Past()
        parts = {name: tensor[rows, *_newest(name, seen, self.config)] for name, tensor in self.tensors.items()}
        past = Past(frames=parts["frames"])
        for name, part in parts.items():
            kind, _, of = name.partition(".")
            if kind == "keys":
                past.memory[of] = (part, parts[f"values.{of}"])
            elif kind == "held":
                past.held[of] = part
        return past

    def write(self, rows: Tensor, future: Past) -> None:
        """Keep what streams (B,) remember of their newest tokens."""
        for name, tensor in _named(future, self.config):
            if name.endswith(".weights"):
                self.tensors[name][rows, ..., -tensor.shape[-1] :] = tensor
            elif name.startswith(("keys.", "values.")):
                self.tensors[name][rows, :, -tensor.shape[2] :] = tensor
            else:
                self.tensors[name][rows] = tensor


def _newest(name: str, tokens: int, config: ModelConfig) -> tuple[Any, ...]:
    """Where, behind the streams' axis of a tensor, the newest tokens of its window lie; everything, if it has none."""
    if name.endswith(".weights"):
        return ..., slice(-tokens, None)
    if not name.startswith(("keys.", "values.")):
        return ()
    block = name.partition(".block")[2]
    factor = config.factors[int(block)] if block else 1
    return slice(None), slice(-tokens * factor, None)


def _named(past: Past, config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    """All tensors of a past by name; windows no longer than a token may look back."""
    tensors = {"frames": past.frames} | {f"held.{name}": held for name, held in past.held.items()}
    for name, (keys, values) in past.memory.items():
        tensors |= {f"keys.{name}": keys, f"values.{name}": values}
    for name, tensor in tensors.items():
        if tensor is not None:
            past_tokens = (config.pool_span if "readout" in name else config.span) - 1
            yield name, tensor[:, *_newest(name, past_tokens, config)]


def _full_past(model: StreamingKWT) -> Past:
    """What one stream remembers after a whole window."""
    config = model.config
    device = next(model.parameters()).device
    silence = torch.full((1, (config.longest_span - 1) * config.stride, config.frontend.bands), SILENT, device=device)
    with torch.inference_mode():
        thresholds = dict.fromkeys(gate_names(config), torch.zeros(1, device=device))
        past, off = Past(), torch.tensor(OFF, device=device).expand(1, config.layers, config.heads, 2)
        model.run(silence, Past(), past, CountingGates(thresholds, off, {}, Past(), past))
        return past


class CountingGates(Gates):
    """Delta gates that count what passes, with thresholds (B,) of their own for every stream.

    prunes: Th and tau (B, layers, heads, 2). costs: MACs of each channel, for the gates of the stem.
    moved: per gate, channels let through (B, N), or the MACs they cost, if known. spared: value rows that
    pruned scores and silent heads left out (B, 2). pooled: what the read-out pooled (B, N, C).
    """

    def __init__(
        self, thresholds: Mapping[str, Tensor], prunes: Tensor, costs: Mapping[str, Tensor], past: Past, future: Past
    ) -> None:
        super().__init__(thresholds, past, future)
        self.costs = costs
        self.prunes, self.spared = prunes, prunes.new_zeros(len(prunes), 2, dtype=torch.int64)
        gated = any(bool(theta.any()) for theta in thresholds.values())
        self.exact = not gated and not prunes[..., HEAD].any()
        self.moved: dict[str, Tensor] = {}
        self.pooled: Tensor
        self._moved: Tensor

    def __call__(self, name: str, x: Tensor, window: Tensor | None = None) -> Tensor:
        """As `models.transformer.Gates`; where all thresholds are zero nothing is held, and time is no loop."""
        if name == "readout.head":
            self.pooled = x
        first = torch.zeros_like(x[..., :1, :])
        if (reference := self.past.held.get(name)) is not None:
            first[..., 0, : reference.shape[-1]] = reference
        if self.exact:
            held = x
        else:
            theta = self.thresholds[name].view(-1, *[1] * (x.dim() - 2))  # type: ignore[index]
            held, _ = hold(x, theta, first[..., 0, : x.shape[-1] - (0 if window is None else x.shape[-2])], window)
        moved = held != torch.cat((first, held[..., :-1, :]), dim=-2)
        if window is not None:
            moved &= window
        self._moved = moved
        passed = moved * self.costs[name] if name in self.costs else moved
        self.moved[name] = passed.sum(-1).reshape(len(x), -1, x.shape[-2]).sum(1)
        self.future.held[name] = held[..., -1, :]
        return held

    def spare(self, dropped: Tensor, silent: Tensor) -> None:
        """Count value rows that pruning left out; see `models.torch_pruning`."""
        for kind, rows in ((SCORE, dropped & ~self._moved), (HEAD, silent)):
            self.spared[:, kind] += rows.flatten(1).sum(1)


class Gathered(nn.Module):
    """A linear layer that multiplies only the tokens that differ from the one before them."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.linear = linear

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, inputs) -> (B, N, outputs)."""
        fresh = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        fresh[:, 1:] = (x[:, 1:] != x[:, :-1]).any(-1)
        if fresh.all():
            return self.linear(x)
        return self.linear(x[fresh])[fresh.flatten().cumsum(0) - 1].view(*x.shape[:2], -1)


def gather(module: nn.Module) -> None:
    """Put `Gathered` in the place of every linear layer below a module."""
    for name, child in module.named_children():
        if isinstance(child, nn.Linear):
            setattr(module, name, Gathered(child))
        else:
            gather(child)


class TorchNetwork(AnyNetwork):
    """A checkpoint, run by torch."""

    def __init__(self, checkpoint: Checkpoint, device: str = "cpu") -> None:
        super().__init__(checkpoint)
        self.device = torch.device(device)
        self.model = network_of(self.config)
        for layer, factor in enumerate(self.config.factors):
            if factor == 1:
                self.model.blocks[layer].attention.attend = PrunedWindow(layer, self.config.heads, self.config.span)
        filled(self.model, checkpoint).to(self.device)
        gather(self.model)
        points, names = self.thresholds.values(), gate_names(self.config)
        self._costs = {name: torch.from_numpy(cost).to(self.device) for name, cost in stem_costs(self.config).items()}
        self._table = np.array([[point[name] for name in names] for point in points], np.float32)
        self._prunes = np.stack([prune_table(self.config, point)[:-1] for point in points])

    def empty_cache(self, capacity: int) -> TorchCache:
        """Tensors on the network's device."""
        return TorchCache(self.model, capacity)

    @torch.inference_mode()
    def embed(
        self, cache: TorchCache, rows: NDArray[np.int64], frames: Array, counts: NDArray[np.int64] | None = None
    ) -> tuple[Array, Array]:
        """Advance a batch of streams; see `models.network.Network.embed`.

        Streams run together that have the same number of tokens in their window and of new ones, which in service
        is nearly all of them.
        """
        rows = np.asarray(rows, np.int64)
        counts = np.ones(len(rows), np.int64) if counts is None else np.asarray(counts, np.int64)
        check_batch(self, cache, rows, counts, frames)
        seen = np.minimum(cache.tokens[rows], self.config.longest_span - 1)
        first = np.cumsum(counts) - counts
        logits = np.empty((len(frames), len(self.config.labels)), np.float32)
        pooled = np.empty((len(frames), self.config.channels), np.float32)
        for past, new in np.unique(np.stack((seen, counts), axis=1)[counts > 0], axis=0).tolist():
            group = np.flatnonzero((seen == past) & (counts == new))
            places = first[group, None] + np.arange(new)
            logits[places], pooled[places] = self._run(cache, rows[group], past, np.asarray(frames)[places])
        return logits, pooled

    def _run(self, cache: TorchCache, rows: NDArray[np.int64], seen: int, frames: Array) -> tuple[Array, Array]:
        """Streams (B,) of equal past, frames (B, N, stride, bands) -> logits (B, N, K), pooled (B, N, C)."""
        thetas = torch.from_numpy(self._table[cache.point[rows]] * cache.scale[rows, None]).to(self.device)
        places = torch.from_numpy(rows).to(self.device)
        past, future = cache.read(places, seen), Past()
        prunes = torch.from_numpy(self._prunes[cache.point[rows]]).to(self.device)
        by_gate = dict(zip(gate_names(self.config), thetas.unbind(1), strict=True))
        gates = CountingGates(by_gate, prunes, self._costs, past, future)
        logits = self.model.run(torch.from_numpy(frames).to(self.device).flatten(1, 2), past, future, gates)
        cache.write(places, future)
        before = cache.tokens[rows, None] + np.arange(frames.shape[1])
        cache.macs[rows] += macs(self.config, gates.moved, before)
        cache.pruned[rows] += gates.spared.cpu().numpy() * self.config.head_channels
        cache.tokens[rows] += frames.shape[1]
        return logits.cpu().numpy(), gates.pooled.cpu().numpy()


def macs(config: ModelConfig, moved: Mapping[str, Tensor], before: NDArray[np.int64]) -> NDArray[np.int64]:
    """What passed the gates (B, N), in channels, or in MACs in the stem -> MACs (B, layers + 2, 6), see `models.step`.

    `before` (B, N) is how many tokens each stream had seen at each of these.
    """
    c, heads = config.channels, config.heads
    names = list(moved)
    channels = dict(zip(names, torch.stack([moved[name] for name in names]).cpu().numpy(), strict=True))
    total = np.zeros((len(before), config.layers + 2, len(BLOCK_GATES)), np.int64)
    for column, name in enumerate(stem_costs(config)):
        total[:, 0, column] = channels[name].sum(1)
    for layer, factor in enumerate(config.factors):
        thin, part = c // factor, max(1, heads // factor)
        old_keys, leaves = factor * np.minimum(before, config.span - 1), factor**2 * part * (before >= config.span)
        outputs = {"query": old_keys, "weights": thin // part, "up": config.hidden // factor, "qkv": 3 * thin}
        for column, kind in enumerate(BLOCK_GATES):
            passed = channels[f"block{layer}.{kind}"] + (leaves if kind == "weights" else 0)
            total[:, layer + 1, column] = (passed * outputs.get(kind, thin)).sum(1)
            if kind == "query":  # the new keys meet the whole queries
                total[:, layer + 1, column] += factor * c * before.shape[1]
    pool_leaves = heads * (before >= config.pool_span)
    outputs_at_end = {"query": heads, "weights": c // heads, "head": len(config.labels)}
    for column, kind in enumerate(READOUT_GATES):
        passed = channels[f"readout.{kind}"] + (pool_leaves if kind == "weights" else 0)
        total[:, -1, column] = (passed * outputs_at_end[kind]).sum(1)
    return total
