"""The delta gate holds a value until it has moved by more than its threshold, and never strays further than that."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.gates import hold

TOKENS, CHANNELS = 20, 5


def walks(seed: int) -> torch.Tensor:
    """Random walks: (2, TOKENS, CHANNELS)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(2, TOKENS, CHANNELS, generator=generator).cumsum(dim=1) * 0.3


def by_hand(x: list[float], theta: float, reference: float = 0.0) -> list[float]:
    """One channel, one value after the other."""
    held = []
    for value in x:
        reference = value if abs(value - reference) > theta else reference
        held.append(reference)
    return held


@given(st.integers(0, 1000), st.floats(0, 3))
def test_held_value_stays_within_the_threshold(seed: int, theta: float) -> None:
    x = walks(seed)
    held, last = hold(x, theta)
    assert ((x - held).abs() <= theta).all()
    torch.testing.assert_close(last, held[:, -1], rtol=0, atol=0)


@given(st.integers(0, 1000))
def test_threshold_of_zero_changes_nothing(seed: int) -> None:
    x = walks(seed)
    assert torch.equal(hold(x, 0.0)[0], x)


@given(st.integers(0, 1000), st.floats(0.01, 2))
def test_each_channel_follows_the_equation(seed: int, theta: float) -> None:
    theta = float(torch.tensor(theta))
    x = walks(seed).double()
    held, _ = hold(x, theta)
    for stream in range(2):
        for channel in range(CHANNELS):
            assert held[stream, :, channel].tolist() == by_hand(x[stream, :, channel].tolist(), theta)


@given(st.integers(0, 1000), st.floats(0, 1), st.lists(st.integers(0, TOKENS), max_size=5))
def test_any_split_gives_the_whole(seed: int, theta: float, cuts: list[int]) -> None:
    x, reference, parts = walks(seed), None, []
    for part in x.tensor_split(sorted({c for c in cuts if 0 < c < TOKENS}), dim=1):
        held, reference = hold(part, theta, reference)
        parts.append(held)
    assert torch.equal(torch.cat(parts, dim=1), hold(x, theta)[0])


def test_higher_threshold_propagates_less() -> None:
    x = walks(0)
    moves = [(hold(x, theta)[0].diff(dim=1) != 0).sum().item() for theta in (0.0, 0.2, 0.5, 5.0)]
    assert moves == sorted(moves, reverse=True)
    assert moves[0] == x.diff(dim=1).numel()
    assert moves[-1] < moves[0] / 10


def test_threshold_may_differ_by_channel() -> None:
    x = walks(1)
    theta = torch.tensor([0.0, 0.1, 0.5, 1.0, 100.0])
    held, _ = hold(x, theta)
    assert ((x - held).abs() <= theta).all()
    assert torch.equal(held[..., 0], x[..., 0])
    assert not held[..., -1].any()


def test_key_that_leaves_the_window_is_forgotten() -> None:
    x = torch.full((4, 4), 0.5)
    window = torch.ones(4, 4, dtype=torch.bool).tril()
    window[3, 0] = False
    held, last = hold(x, 0.1, window=window)
    assert torch.equal(held, x * window)
    assert last.tolist() == [0.0, 0.5, 0.5, 0.5]


@pytest.mark.parametrize("old_keys", [2, 3, 6])
def test_reference_of_a_row_of_weights_belongs_to_the_newest_keys(old_keys: int) -> None:
    """Two past keys are left of `old_keys`; one new key begins at zero."""
    reference = torch.arange(1.0, old_keys + 1)
    held, _ = hold(torch.zeros(1, 3), 1e9, reference, torch.ones(1, 3, dtype=torch.bool))
    assert held[0].tolist() == [old_keys - 1.0, float(old_keys), 0.0]
