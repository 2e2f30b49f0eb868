"""The delta method on the stock network against its recurrence, one token and one channel at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from models.kwt import Attention
from models.kwt_delta import DeltaAttention, chain, learn
from models.kwt_weights import KWTConfig
from tests.stock import random_clips, random_kwt

if TYPE_CHECKING:
    from torch import Tensor

    from models.kwt import KWT

SMALL = KWTConfig(channels=8, heads=2, layers=2, hidden=16, clip_samples=2_000)


@pytest.fixture
def model() -> KWT:
    return random_kwt(SMALL)


@pytest.fixture
def clips() -> Tensor:
    return random_clips(SMALL, 3)


def recurrence(x: Tensor, w: Tensor, theta: float) -> tuple[list[Tensor], int]:
    """Products y_t = y_{t-1} + W (m * d) of tokens (N, C), class token first; and the channels that moved."""
    products, moved = [w @ x[0]], x.shape[1]
    reference, y = torch.zeros_like(x[0]), torch.zeros(len(w))
    for token in x[1:]:
        d = token - reference
        m = d.abs() > theta
        reference = torch.where(m, token, reference)
        y = y + w @ (m * d)
        moved += int(m.sum())
        products.append(y)
    return products, moved


@pytest.mark.parametrize("theta", [0.0, 0.4, 1.5])
def test_held_values_give_the_products_of_the_recurrence(theta: float) -> None:
    generator = torch.Generator().manual_seed(2)
    x, w = torch.randn(9, 6, generator=generator), torch.randn(4, 6, generator=generator)
    held, difference = chain(x, torch.tensor(theta))
    products, moved = recurrence(x, w, theta)
    torch.testing.assert_close(held @ w.T, torch.stack(products))
    assert int((difference.abs() > theta).sum()) == moved
    assert ((held - x).abs() <= theta).all()


def test_two_sided_scores_cost_the_product_of_the_moves() -> None:
    generator = torch.Generator().manual_seed(3)
    q, k = torch.randn(2, 1, 1, 7, 4, generator=generator)
    theta = 0.8
    attention = DeltaAttention(torch.full((1, 4), theta))
    attention.scores(q, k)
    moves = [
        sum(recurrence(x[0, 0, :, c : c + 1], torch.eye(1), theta)[1] for x in [side])
        for c in range(4)
        for side in (q, k)
    ]
    expected = sum(moves[2 * c] * moves[2 * c + 1] for c in range(4))
    assert attention.done["scores"] == expected


def test_zero_thresholds_change_nothing(model: KWT, clips: Tensor) -> None:
    attention, dense = DeltaAttention(torch.zeros(SMALL.layers, 4)), Attention()
    torch.testing.assert_close(model.judge(clips, attention), model.judge(clips, dense))
    assert attention.done == dense.done


def test_learning_cuts_operations_and_leaves_weights_alone(model: KWT, clips: Tensor) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    left = [share for share, _ in learn(model, clips, steps=20, batch=3)]
    assert left[-1] < left[0]
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], rtol=0, atol=0)
