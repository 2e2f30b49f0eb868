"""The delta-attention cache: everything streams remember inside the model, in one arena.

A row is one stream, and one contiguous stretch of float32, so a step touches a stream's memory in order and
sessions share nothing. `Layout` says what lies where; the kernels read the same numbers.

Per block: the values last propagated through each gate (`held`), what they add up to behind the matrix
(`sum`), and rings of keys and values in which token t lives in slot t mod span. Keys lie channel by channel
(C, W), so that a channel of the query that moved is one contiguous row; values lie token by token (W, C).
The read-out's ring is `pool_span` long.

A layer that folds a token into F sub-tokens has rings of F W sub-tokens of C / F channels, with sub-token g of token t
in slot F (t mod W) + g; everything else is there once for each sub-token, one after the other.
"""

from __future__ import annotations

import mmap
from typing import NamedTuple

import numpy as np

from models.config import FILTER_SHAPES, ConfigError, ModelConfig
from models.engines import AnyCache
from models.pages import GIVES_BACK, large_pages
from models.vectors import WIDTH


class BlockLayout(NamedTuple):
    """Where the parts of one block lie, counted in floats from the block's beginning."""

    held_in: int
    sum_qkv: int
    held_query: int
    keys: int
    scores: int
    values: int
    held_weights: int
    sum_values: int
    held_mixed: int
    sum_out: int
    held_up: int
    sum_up: int
    held_down: int
    sum_down: int
    size: int


class ReadOutLayout(NamedTuple):
    """Where the parts of the read-out lie, counted in floats from its beginning."""

    held_query: int
    sum_query: int
    scores: int
    values: int
    held_weights: int
    sum_values: int
    held_head: int
    sum_head: int
    size: int


class Layout(NamedTuple):
    """Where everything of one stream lies in its row."""

    frames: int
    held_stem: int
    sum_stem: int
    filters: int
    blocks: int
    readout: int
    size: int
    block: BlockLayout
    pool: ReadOutLayout


def padded(size: int) -> int:
    """The next multiple of a vector's width."""
    return -(-size // WIDTH) * WIDTH


def offsets(sizes: list[int]) -> list[int]:
    """Beginnings of neighbouring parts, each padded to whole vectors, and the end of the last."""
    return np.concatenate(([0], np.cumsum([padded(size) for size in sizes]))).tolist()


def layout(config: ModelConfig) -> Layout:
    """Lay out one stream; `block` is a plain one's, `block_layout` tells a folded one's.

    Raises:
        ConfigError: for sizes that are no whole number of vectors, and for more frames under a token, or heads, than
            it has lanes.
    """
    for name in ("kernel", "heads"):
        if (size := getattr(config, name)) > WIDTH:
            raise ConfigError(f"{name} must be at most {WIDTH} to be compiled, got {size}")
    c, h, p = config.channels, config.heads, config.pool_span
    block = block_layout(config)
    pool = ReadOutLayout(*offsets([c, h, h * p, p * c, h * p, c, c, len(config.labels)]))
    history = (config.kernel - config.stride) * config.frontend.bands
    blocks = sum(block_layout(config, factor).size for factor in config.factors)
    filters = sum(filter_sums(config)) + sum(filter_outputs(config))
    return Layout(*offsets([history, config.stem_inputs, c, filters, blocks, pool.size]), block, pool)


def filter_outputs(config: ModelConfig) -> list[int]:
    """Outputs of each convolution over frequency.

    Raises:
        ConfigError: for filters that are no whole number of vectors.
    """
    if any(filters % WIDTH for filters in config.filters):
        raise ConfigError(f"filters must be multiples of {WIDTH} to be compiled, got {config.filters}")
    return [places * filters for places, filters in zip(config.filter_places[1:], config.filters, strict=True)]


def filter_sums(config: ModelConfig) -> list[int]:
    """Sums of each convolution over frequency: its outputs, and some that nobody reads (`models.filters`)."""
    sums = []
    for (reach, stride), places, filters in zip(FILTER_SHAPES, config.filter_places, config.filters, strict=False):
        sums.append(((places - 1) // stride + reach // stride) * filters)
    return sums


def block_layout(config: ModelConfig, factor: int = 1) -> BlockLayout:
    """Lay out one block; folded by `factor`, it has a row of scores for each head and sub-token.

    Raises:
        ConfigError: for sizes that are no whole number of vectors.
    """
    thin = config.folded(factor)
    for name in ("head_channels", "hidden", "span", "pool_span"):
        if (size := getattr(thin, name)) % WIDTH:
            folded = f" folded by {factor}" if factor > 1 else ""
            raise ConfigError(f"{name}{folded} must be a multiple of {WIDTH} to be compiled, got {size}")
    c, w, hidden, scores = config.channels, config.span, config.hidden, factor**2 * thin.heads * config.span
    return BlockLayout(*offsets([c, 3 * c, c, c * w, scores, w * c, scores, c, c, c, c, hidden, hidden, c]))


class Cache(AnyCache):
    """Arena for `capacity` streams.

    state: (capacity, layout.size) float32, each row filled up to whole pages.
    """

    def __init__(self, config: ModelConfig, capacity: int) -> None:
        super().__init__(config, capacity)
        self.layout = layout(config)
        floats = -(-4 * self.layout.size // mmap.PAGESIZE) * mmap.PAGESIZE // 4
        self._memory = large_pages(4 * capacity * floats)
        self.state = np.frombuffer(self._memory, np.float32).reshape(capacity, floats)

    @property
    def bytes_per_row(self) -> int:
        """Memory of one stream, counters included."""
        return super().bytes_per_row + self.state[:1].nbytes

    def forget(self, row: int) -> None:
        """Give a row's memory back to the system until somebody uses it again; it reads as zeros."""
        if GIVES_BACK:
            size = self.state.strides[0]
            self._memory.madvise(mmap.MADV_DONTNEED, row * size, size)
