"""Multiply-accumulates of matrix products: done, and what two dense baselines would have done.

`causal` is dense arithmetic on new tokens only (a plain key-value cache). `window` recomputes the last `pool_span`
tokens (about 1 s) from nothing at every token (30 ms), as a service without a cache does that answers as often.
Softmax, norms, activations and the front end are not counted; they are reported as time. Rebuilding the sums now and
then is work done, and is counted.

What was not done has one of four `REASONS`: past tokens are in the cache (window), a score was dropped or a head silent
(score, head: rows of values not read, see `models.operating`), or a product's input did not move (delta: all the rest).
An input that moved no further than its gate's threshold did not, and at every point, `dense` included, neither did a
unit that is zero behind a ReLU as it was before. So what the thresholds save is told by the same kernels with
thresholds at zero, and not by `causal` alone.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from models.config import FILTER_SHAPES, ModelConfig, stem_gates

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.engines import AnyCache

GROUPS = ("stem", "qkv", "scores", "values", "out", "up", "down", "readout")
"""Groups of matrix products, as metrics and reports name them."""
_BLOCK_GROUPS = GROUPS[1:7]
PRUNED = ("score", "head")
REASONS = ("window", "delta", *PRUNED)
"""Why work was left out; pruning leaves out products of the group `values`."""


@dataclass(frozen=True, slots=True)
class Count:
    """MACs over `tokens` tokens of one or many streams.

    layers: (layers + 2, 6) done, as the kernels count: stem, blocks, read-out.
    causal, window: MACs by group of the two baselines.
    left: (2,) left out by pruning, as the kernels count: scores, heads.
    """

    tokens: int
    layers: NDArray[np.int64]
    causal: dict[str, int]
    window: dict[str, int]
    left: NDArray[np.int64] = field(default_factory=lambda: np.zeros(2, np.int64))

    @property
    def done(self) -> dict[str, int]:
        """MACs done, by group."""
        blocks = self.layers[1:-1].sum(axis=0).tolist()
        return {
            "stem": int(self.layers[0].sum()),
            **dict(zip(_BLOCK_GROUPS, blocks, strict=True)),
            "readout": int(self.layers[-1].sum()),
        }

    @property
    def total(self) -> int:
        """MACs done."""
        return int(self.layers.sum())

    @property
    def bytes_read(self) -> int:
        """Bytes of weights, keys and values that the products read: what moves, and so a stand-in for power.

        A multiply-accumulate reads one number beside the one that moved: a weight in half precision, or a key or
        value in single precision.
        """
        cached = int(self.layers[1:-1, 1:3].sum() + self.layers[-1, 1])
        return 2 * (self.total - cached) + 4 * cached

    @property
    def skipped_vs_causal(self) -> float:
        """Share of the causal baseline's MACs that were not done."""
        return _skipped(self.total, sum(self.causal.values()))

    @property
    def skipped_vs_window(self) -> float:
        """Share of the window baseline's MACs that were not done."""
        return _skipped(self.total, sum(self.window.values()))

    @property
    def pruned(self) -> dict[str, dict[str, int]]:
        """MACs left out by pruning, by reason and group."""
        return {reason: {"values": macs} for reason, macs in zip(PRUNED, self.left.tolist(), strict=True)}

    @property
    def skipped(self) -> dict[str, float]:
        """Share of the window baseline's MACs that were not done, by reason; together `skipped_vs_window`.

        Delta is not only the gates': at the point `dense` it is units that stay zero, less the sums' rebuilding.
        """
        window, causal = sum(self.window.values()), sum(self.causal.values())
        left = dict(zip(PRUNED, self.left.tolist(), strict=True))
        macs = {"window": window - causal, "delta": causal - self.total - sum(left.values()), **left}
        return {reason: macs[reason] / window if window else 0.0 for reason in REASONS}

    def __add__(self, other: Count) -> Count:
        """Of both streams together."""
        causal = {group: self.causal[group] + other.causal[group] for group in GROUPS}
        window = {group: self.window[group] + other.window[group] for group in GROUPS}
        return Count(self.tokens + other.tokens, self.layers + other.layers, causal, window, self.left + other.left)

    def __sub__(self, earlier: Count) -> Count:
        """Since an earlier count of the same stream."""
        causal = {group: self.causal[group] - earlier.causal[group] for group in GROUPS}
        window = {group: self.window[group] - earlier.window[group] for group in GROUPS}
        left = self.left - earlier.left
        return Count(self.tokens - earlier.tokens, self.layers - earlier.layers, causal, window, left)


def count(cache: AnyCache, row: int) -> Count:
    """MACs of one stream since it began."""
    tokens = int(cache.tokens[row])
    causal, window = causal_macs(cache.config, tokens), window_macs(cache.config, tokens)
    return Count(tokens, cache.macs[row].copy(), causal, window, cache.pruned[row].copy())


def nothing(config: ModelConfig) -> Count:
    """The count of no tokens."""
    return Count(0, np.zeros((config.layers + 2, 6), np.int64), causal_macs(config, 0), window_macs(config, 0))


def causal_macs(config: ModelConfig, tokens: int) -> dict[str, int]:
    """MACs by group of `tokens` tokens from the beginning of a stream, dense, keys and values cached.

    A layer folded by F has F sub-tokens with 1 / F^2 of the weights, and F^2 times the pairs of 1 / F of the channels.
    """
    c, factors = config.channels, config.factors
    seen, pooled = _keys_seen(tokens, config.span), _keys_seen(tokens, config.pool_span)
    thin, pairs = sum(c // factor for factor in factors), sum(factors)
    return {
        "stem": tokens * sum(int(costs.sum()) for costs in stem_costs(config).values()),
        "qkv": tokens * 3 * c * thin,
        "scores": seen * c * pairs,
        "values": seen * c * pairs,
        "out": tokens * c * thin,
        "up": tokens * config.hidden * thin,
        "down": tokens * config.hidden * thin,
        "readout": tokens * c * (config.heads + len(config.labels)) + pooled * c,
    }


@lru_cache
def stem_costs(config: ModelConfig) -> dict[str, NDArray[np.int64]]:
    """MACs in which each channel behind a gate of the stem has a part, by gate: `stem`, `filters1`, ..."""
    inputs, counts, names = config.filter_inputs, config.filter_places, stem_gates(config)
    costs = {"stem": np.full((counts[0], config.kernel), config.channels)}
    for number, filters in enumerate(config.filters, start=1):
        (reach, stride), name = FILTER_SHAPES[number - 1], names[number - 1]
        places = np.arange(counts[number - 1])[:, None] - stride * np.arange(counts[number])
        outputs = ((places >= 0) & (places < reach)).sum(axis=1, keepdims=True)
        costs[name] = costs.get(name, 0) + np.repeat(outputs * filters, inputs[number - 1], axis=1)
    if config.filters:
        costs[names[-1]] = np.full((counts[-1], config.filters[-1]), config.channels)
    costs["stem"] = costs["stem"].T  # frame by frame
    return {name: cost.ravel() for name, cost in costs.items()}


def window_macs(config: ModelConfig, tokens: int) -> dict[str, int]:
    """MACs by group of recomputing the last `pool_span` tokens at each of `tokens` tokens.

    The past before a stream is silence; the read-out is needed at the newest token only.
    """
    return {group: tokens * macs for group, macs in _one_window(config).items()}


@lru_cache
def _one_window(config: ModelConfig) -> dict[str, int]:
    macs = causal_macs(config, config.pool_span)
    readout = config.channels * (config.pool_span * (config.heads + 1) + len(config.labels))
    return {**macs, "readout": readout}


def _keys_seen(tokens: int, span: int) -> int:
    """Sum over tokens of the keys each one sees: 1, 2, ..., span, span, ..."""
    ramp = min(tokens, span)
    return ramp * (ramp + 1) // 2 + max(0, tokens - span) * span


def _skipped(done: int, baseline: int) -> float:
    return 1.0 - done / baseline if baseline else 0.0
