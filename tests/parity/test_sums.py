"""Sums of the compiled step after minutes of small additions: they are what the held values add up to."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.features import Array
from models.filters import Shape
from tests.parity.test_kernels import CONFIG, MODEL, NETWORK, TOLERANCE, expected, fresh, noise, stream


def minutes(count: float, seed: int) -> Array:
    """Noise with silence and bursts far louder than it, which leave rounding behind: (N, stride, bands)."""
    tokens = int(count * 60 * 16_000 / CONFIG.token_samples)
    rng = np.random.default_rng(seed)
    level = rng.choice([0.0, 0.3, 30.0], (tokens, 1, 1), p=[0.2, 0.6, 0.2])
    return (rng.normal(0, 1, (tokens, CONFIG.stride, CONFIG.frontend.bands)) * level).astype(np.float32)


def test_minutes_of_noise_leave_no_trace() -> None:
    """The dense network depends on `receptive_tokens` of past, so a fresh stream of those must say the same."""
    frames, calm = minutes(5, seed=0), noise(1, 2 * CONFIG.receptive_tokens)[0]
    got = stream(NETWORK, fresh(), 0, np.concatenate((frames, calm)))
    np.testing.assert_allclose(got[-8:], expected(calm[None])[0, -8:], atol=TOLERANCE)


@pytest.mark.parametrize("point", ["mild", "strong"])
def test_sums_stay_what_the_held_values_add_up_to(point: str) -> None:
    """y = W r + b, however many small changes went into y."""
    cache = fresh(point)
    stream(NETWORK, cache, 0, np.concatenate((minutes(5, seed=1), noise(1)[0])))
    for name, held, sums in linear_parts():
        weight, bias = (MODEL.state_dict()[f"{name}.{part}"].double().numpy() for part in ("weight", "bias"))
        wanted = weight @ cache.state[0, held : held + weight.shape[1]] + bias
        np.testing.assert_allclose(cache.state[0, sums : sums + len(bias)], wanted, atol=TOLERANCE, err_msg=name)
    for name, got, wanted in stem_parts(cache.state[0]):
        np.testing.assert_allclose(got, wanted, atol=TOLERANCE, err_msg=name)


def linear_parts() -> list[tuple[str, int, int]]:
    """Every matrix behind the stem: its name, and where a row of the cache keeps its held inputs and its sums."""
    layout, block, pool = NETWORK.net.layout, NETWORK.net.layout.block, NETWORK.net.layout.pool
    parts = []
    for layer in range(CONFIG.layers):
        at = layout.blocks + layer * block.size
        for name, held, sums in (
            ("attention.qkv", block.held_in, block.sum_qkv),
            ("attention.out", block.held_mixed, block.sum_out),
            ("up", block.held_up, block.sum_up),
            ("down", block.held_down, block.sum_down),
        ):
            parts.append((f"blocks.{layer}.{name}", at + held, at + sums))
    return [*parts, ("readout.head", layout.readout + pool.held_head, layout.readout + pool.sum_head)]


@torch.no_grad()
def stem_parts(state: Array) -> list[tuple[str, Array, Array]]:
    """Sums of the stem and of its convolutions: name, as a stream's row has them, and from the held values."""
    net, filters, parts = NETWORK.net, MODEL.filters, []
    assert filters is not None
    held = net.layout.held_stem
    window = torch.from_numpy(state[held : held + CONFIG.stem_inputs].reshape(-1, CONFIG.kernel).T.copy())
    x = window
    for number, layer in enumerate(filters.layers):
        wanted = layer(x).T
        held, sums = net.filters.held[number], net.filters.sums[number] + Shape(*net.filters.shapes[number]).before
        parts.append(
            (f"filters{number + 1}", state[sums : sums + wanted.numel()].reshape(wanted.shape), wanted.numpy())
        )
        x = torch.from_numpy(state[held : held + wanted.numel()].reshape(wanted.shape).T.copy())
    token = MODEL.stem(window.flatten()) + filters.join(x.T.flatten())
    return [*parts, ("stem", state[net.layout.sum_stem :][: CONFIG.channels], token.numpy())]
