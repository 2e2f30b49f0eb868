"""An hour of audio: held values stay within their thresholds, sums stay the sums of what is held."""

from __future__ import annotations

import numpy as np
import pytest

from models.cache import Cache
from models.checkpoint import load_checkpoint, shipped_path
from models.features import Array, frames, network_input
from models.network import Network
from models.offline import softmax

pytestmark = pytest.mark.system

SAMPLE_RATE = 16_000
HOUR_TOKENS = 120_000
STEP_TOKENS = 4_000
TOLERANCE = 1e-3
"""Of a sum, whose values are of size 1 to 10; rounding errors of 100,000 additions would pass it a hundredfold."""


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(load_checkpoint(shipped_path()))


@pytest.fixture(scope="module")
def tokens(network: Network) -> Array:
    """An hour of tokens (HOUR_TOKENS, stride, bands): chirps, clicks and hiss, a minute of them at sixty levels."""
    random = np.random.default_rng(0)
    time = np.arange(60 * SAMPLE_RATE + 480) / SAMPLE_RATE
    syllables = np.maximum(0.0, np.sin(2 * np.pi * 1.7 * time)) * np.sin(2 * np.pi * 0.11 * time) ** 2
    tone = np.sin(2 * np.pi * (300 + 200 * np.sin(2 * np.pi * 0.9 * time)) * time)
    clicks = random.random(len(time)) < 2 / SAMPLE_RATE
    sound = 0.3 * syllables * tone + 0.5 * clicks + random.normal(0, 0.003, len(time))
    config = network.config
    minute = [network_input(frames((sound * 32_767 * level).astype(np.float32))) for level in np.geomspace(0.01, 1, 60)]
    used = HOUR_TOKENS // 60 * config.stride
    return np.concatenate([m[:used] for m in minute]).reshape(HOUR_TOKENS, config.stride, config.frontend.bands)


def hear(network: Network, cache: Cache, tokens: Array) -> Array:
    """Posteriors (N, K) of the cache's first stream, in a few large steps."""
    parts = [
        network.step(cache, np.zeros(1, np.int64), part, np.array([len(part)]))
        for part in np.array_split(tokens, -(-len(tokens) // STEP_TOKENS))
    ]
    return softmax(np.concatenate(parts))


def stray(network: Network, cache: Cache, point: str) -> float:
    """By how much any held value is further from its channel than the threshold, at most.

    Only gates whose input is kept in the stream's state can be seen from outside; queries are kept before scaling.
    """
    layout, config, theta = cache.layout, network.config, network.thresholds[point]
    block, state, worst = layout.block, cache.state[0], -np.inf
    for layer in range(config.layers):
        at = layout.blocks + layer * block.size
        for gate, x, held, size, rectified in (
            ("query", block.sum_qkv, block.held_query, config.channels, False),
            ("out", block.sum_values, block.held_mixed, config.channels, False),
            ("down", block.sum_up, block.held_down, config.hidden, True),
        ):
            value = state[at + x :][:size]
            value = np.maximum(value, 0) if rectified else value
            distance = np.abs(value - state[at + held :][:size]).max()
            limit = theta[f"block{layer}.{gate}"]
            worst = max(worst, distance - (limit * config.head_channels**0.5 if gate == "query" else limit))
    return float(worst)


def drift(network: Network, cache: Cache) -> float:
    """Largest difference of a sum from weights times held values, computed anew."""
    layout, config, weights = cache.layout, network.config, network.checkpoint.weights
    block, state, worst = layout.block, cache.state[0], 0.0
    for layer in range(config.layers):
        at, name = layout.blocks + layer * block.size, f"blocks.{layer}"
        for matrix, held, total in (
            (f"{name}.attention.qkv", block.held_in, block.sum_qkv),
            (f"{name}.attention.out", block.held_mixed, block.sum_out),
            (f"{name}.up", block.held_up, block.sum_up),
            (f"{name}.down", block.held_down, block.sum_down),
        ):
            w, bias = weights[f"{matrix}.weight"].astype(np.float64), weights[f"{matrix}.bias"]
            expected = w @ state[at + held :][: w.shape[1]] + bias
            worst = max(worst, float(np.abs(state[at + total :][: len(bias)] - expected).max()))
    return worst


def test_held_values_and_sums_after_an_hour_of_skipping(network: Network, tokens: Array) -> None:
    cache = network.new_cache(1, "shipped")
    for part in (tokens[:-100], tokens[-100:]):  # the border lies between two rebuilds of this row's sums
        hear(network, cache, part)
        assert stray(network, cache, "shipped") <= 1e-5
        assert drift(network, cache) < TOLERANCE


def test_the_end_of_a_dense_hour_is_a_fresh_stream(network: Network, tokens: Array) -> None:
    old, fresh = network.new_cache(1), network.new_cache(1)
    past = network.config.receptive_tokens - 1
    expected = hear(network, fresh, tokens[-past - 1_000 :])[past:]
    np.testing.assert_allclose(hear(network, old, tokens)[-1_000:], expected, atol=1e-4)
    assert drift(network, old) < TOLERANCE
