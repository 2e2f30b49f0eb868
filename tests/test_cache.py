"""The arena: parts that do not overlap, rows that begin on cache lines, and nothing remembered after a reset."""

from __future__ import annotations

import mmap
from pathlib import Path

import numpy as np
import pytest

from models.cache import Cache, filter_outputs, filter_sums, layout, offsets, padded
from models.config import ConfigError, ModelConfig
from models.pages import GIVES_BACK
from models.vectors import WIDTH

CONFIG = ModelConfig(channels=32, heads=2, layers=2, hidden=64, span=16)


@pytest.mark.parametrize(("size", "wanted"), [(0, 0), (1, 16), (16, 16), (17, 32)])
def test_padded(size: int, wanted: int) -> None:
    assert padded(size) == wanted


def test_parts_lie_side_by_side_in_whole_vectors() -> None:
    sizes = [3, 16, 40]
    begins = offsets(sizes)
    assert begins == [0, 16, 32, 80]
    for begin, end, size in zip(begins, begins[1:], sizes, strict=False):
        assert begin % WIDTH == 0
        assert end - begin >= size


@pytest.mark.parametrize("config", [CONFIG, ModelConfig(filters=(16, 48))])
def test_every_part_has_room_and_none_overlap(config: ModelConfig) -> None:
    c, ring, hidden = config.channels, config.span * config.channels, config.hidden
    row = layout(config)
    weights, pooled = config.heads * config.span, config.heads * config.pool_span
    block = {
        "held_in": c, "sum_qkv": 3 * c, "held_query": c, "keys": ring, "scores": weights, "values": ring,
        "held_weights": weights, "sum_values": c, "held_mixed": c, "sum_out": c, "held_up": c, "sum_up": hidden,
        "held_down": hidden, "sum_down": c,
    }  # fmt: skip
    pool = {
        "held_query": c, "sum_query": config.heads, "scores": pooled, "values": config.pool_span * c,
        "held_weights": pooled, "sum_values": c, "held_head": c, "sum_head": len(config.labels),
    }  # fmt: skip
    frames = (config.kernel - config.stride) * config.frontend.bands
    parts = [(row.frames, frames), (row.held_stem, config.stem_inputs), (row.sum_stem, c)]
    parts += [(row.filters, sum(filter_sums(config)) + sum(filter_outputs(config)))]
    for layer in range(config.layers):
        at = row.blocks + layer * row.block.size
        parts += [(at + getattr(row.block, name), size) for name, size in block.items()]
    parts += [(row.readout + getattr(row.pool, name), size) for name, size in pool.items()]
    assert set(block) == set(row.block._fields) - {"size"}
    assert set(pool) == set(row.pool._fields) - {"size"}
    used = np.zeros(row.size, np.int64)
    for begin, size in parts:
        assert begin % WIDTH == 0
        used[begin : begin + size] += 1
    assert used.max() == 1
    assert sum(size for _, size in parts) == used.sum()


@pytest.mark.parametrize(
    "wrong", [{"hidden": 40}, {"span": 30}, {"pool_span": 30}, {"channels": 32, "heads": 4}, {"filters": (24,)}]
)
def test_sizes_that_are_no_whole_vectors_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="multiples? of 16"):
        Cache(ModelConfig(**wrong), 1)


@pytest.mark.parametrize("wrong", [{"heads": 17, "channels": 17 * 16}, {"kernel": 17}])
def test_more_than_there_are_lanes_is_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(wrong))} must be at most 16"):
        Cache(ModelConfig(**wrong), 1)


@pytest.mark.parametrize("capacity", [1, 3, 100])
def test_rows_begin_on_cache_lines_and_are_empty(capacity: int) -> None:
    cache = Cache(CONFIG, capacity)
    assert cache.state.shape[1] >= cache.layout.size
    assert all(cache.state[row].ctypes.data % 64 == 0 for row in range(capacity))
    assert not cache.state.any()
    assert not cache.tokens.any()
    assert (cache.scale == 1).all()


def test_memory_of_a_row_is_what_it_holds() -> None:
    cache = Cache(CONFIG, 4)
    counters = 8 + 8 * (CONFIG.layers + 2) * 6 + 2 * 8 + 8 + 4
    assert cache.bytes_per_row == cache.state[0].nbytes + counters
    assert cache.bytes_per_row < 4 * cache.layout.size + counters + mmap.PAGESIZE


def test_reset_forgets_one_stream_and_keeps_its_operating_point() -> None:
    cache = Cache(CONFIG, 3)
    cache.tokens[:], cache.macs[:], cache.pruned[:] = 7, 5, 3
    cache.configure(1, 2, 0.5)
    cache.reset(1)
    assert cache.tokens.tolist() == [7, 0, 7]
    assert not cache.macs[1].any()
    assert (cache.macs[[0, 2]] == 5).all()
    assert cache.pruned.tolist() == [[3, 3], [0, 0], [3, 3]]
    assert (cache.point.tolist(), cache.scale.tolist()) == ([0, 2, 0], [1.0, 0.5, 1.0])


@pytest.mark.skipif(not GIVES_BACK, reason="this system takes no pages back")
def test_rows_that_are_forgotten_cost_no_memory_and_hurt_no_neighbour() -> None:
    cache = Cache(ModelConfig(), 400)
    cache.state[:] = 1.0
    before = resident()
    for row in range(1, 399):
        cache.forget(row)
    assert before - resident() > 0.9 * 398 * cache.state[0].nbytes
    assert (cache.state[[0, 399]] == 1.0).all()
    assert (cache.state[1:399] == 0.0).all()


def resident() -> int:
    """Memory of this process, bytes."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE
