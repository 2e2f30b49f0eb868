"""LeOPArd: the published equations, run-time pruning, and early termination that agrees with the full comparison."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest
import torch

from models.kwt import Attention
from models.kwt_weights import KWTConfig
from models.pruning import PrunedAttention, channels_read, compact, kept, learn, soft, survivors
from tests.stock import random_clips, random_kwt

if TYPE_CHECKING:
    from torch import Tensor

    from models.kwt import KWT

SMALL = KWTConfig(channels=64, heads=2, layers=2, hidden=16, clip_samples=2_000)


@pytest.fixture
def model() -> KWT:
    return random_kwt(SMALL)


@pytest.fixture
def clips() -> Tensor:
    return random_clips(SMALL, 4)


def test_soft_threshold_and_count_are_the_published_equations() -> None:
    xs, theta = [-3.0, 0.2, 0.999, 1.0, 1.001, 1.3, 4.0], 1.0
    result = soft(torch.tensor(xs), torch.tensor(theta)).tolist()
    counted = survivors(torch.tensor(xs), torch.tensor(theta)).tolist()
    for x, y, share in zip(xs, result, counted, strict=True):
        expected = (x if x >= theta else 1000) * math.tanh(10 * (x - theta))
        assert y == pytest.approx(expected, rel=1e-3, abs=1e-3)
        exponent = 100 * (expected + 1000 - 1)
        assert share == pytest.approx(1 / (1 + math.exp(-exponent)) if exponent > -700 else 0.0)


def test_a_rows_maximum_always_survives() -> None:
    scores = torch.tensor([[-5.0, -3.0, -4.0], [1.0, 0.0, 2.0]])
    assert kept(scores, torch.tensor(0.5)).tolist() == [[False, True, False], [True, False, True]]


def test_pruned_attention_is_softmax_over_the_survivors(model: KWT, clips: Tensor) -> None:
    attention = PrunedAttention(torch.zeros(SMALL.layers, SMALL.heads))
    q, k = torch.randn(2, 1, 2, 5, 32, generator=torch.Generator().manual_seed(2))
    weights = attention.weights(attention.scores(q, k))
    scores = q @ k.transpose(-1, -2) / math.sqrt(32)
    for head in range(2):
        for row, found in zip(scores[0, head].tolist(), weights[0, head].tolist(), strict=True):
            powers = [math.exp(x) if x >= 0 or x == max(row) else 0.0 for x in row]
            assert found == pytest.approx([p / sum(powers) for p in powers], abs=1e-6)
    model.judge(clips, attention)
    assert attention.done["values"] < SMALL.macs()["values"] * len(clips)


def test_a_threshold_below_every_score_changes_nothing(model: KWT, clips: Tensor) -> None:
    attention, dense = PrunedAttention(torch.full((SMALL.layers, SMALL.heads), -1e9)), Attention()
    torch.testing.assert_close(model.judge(clips, attention), model.judge(clips, dense))
    assert attention.done["values"] == dense.done["values"]


@pytest.mark.parametrize("theta", [-2.0, 0.0, 3.0, 8.0])
def test_early_termination_agrees_with_the_full_comparison(theta: float) -> None:
    generator = torch.Generator().manual_seed(3)
    decay = torch.logspace(0.5, -1, 64)
    q, k = torch.randn(2, 2, 3, 50, 64, generator=generator) * decay
    running, read = channels_read(q, k, torch.tensor(theta))
    full = q @ k.transpose(-1, -2)
    assert ((full >= theta) <= running).all(), "a dot product that reaches its threshold was stopped"
    assert ((full < theta - 1e-2) <= ~running).all(), "one that does not was read to its end and let through"
    assert read[running].eq(64).all()
    assert read.mean() < 64


def test_a_stopped_dot_product_could_not_have_reached_its_threshold() -> None:
    q, k = torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([[[[1.0, 0.0]]]])
    for theta, channels in ((2.9, 2.0), (3.1, 1.0)):
        assert channels_read(q, k, torch.tensor(theta), block=1)[1].item() == channels


def test_what_early_termination_computes_is_counted() -> None:
    """16 channels, so one look: a key that passes it is read to its end, one that does not costs its first half."""
    q = torch.eye(16)[None, None, :1]
    k = 10 * torch.cat((q, -q), dim=2)
    attention = PrunedAttention(torch.zeros(1, 1))
    attention.scores(q, k)
    margins, looks, norms = 2, 2, 16 + 2 * 16
    assert attention.done["scores"] == (16 + 8) + margins + looks + norms
    attention.scores(-q, k[:, :, :1])  # the row's maximum survives, so it is read to its end after all
    assert attention.done["scores"] == (16 + 8) + margins + looks + norms + 16 + 1 + 1 + 2 * 16


def test_compact_keeps_the_scores_and_terminates_earlier(model: KWT, clips: Tensor) -> None:
    turned, thresholds = compact(model), torch.full((SMALL.layers, SMALL.heads), 0.5)
    torch.testing.assert_close(turned.judge(clips), model.judge(clips), atol=1e-4, rtol=1e-4)
    before, after = PrunedAttention(thresholds), PrunedAttention(thresholds)
    model.judge(clips, before)
    turned.judge(clips, after)
    assert after.done["scores"] < before.done["scores"]


def test_a_centre_is_the_same_as_subtracting_it_from_every_key() -> None:
    generator = torch.Generator().manual_seed(4)
    q, k = torch.randn(2, 1, 2, 6, 8, generator=generator)
    centres, thresholds = torch.randn(1, 2, 8, generator=generator), torch.tensor([[0.1, -0.2]])
    centred, plain = PrunedAttention(thresholds, centres), PrunedAttention(thresholds)
    weights = centred.weights(centred.scores(q, k))
    expected = plain.weights(plain.scores(q, k - centres[0, :, None]))
    torch.testing.assert_close(weights, expected)
    assert (weights == 0).any()


def test_learning_prunes_more_when_scores_are_dear(model: KWT, clips: Tensor) -> None:
    def survived(price: float) -> float:
        torch.manual_seed(0)
        *_, learned = learn(model, clips, steps=20, price=price, batch=4)
        attention = PrunedAttention(learned.thresholds, learned.centres)
        model.judge(clips, attention)
        return attention.done["values"].item()

    assert survived(100.0) < survived(0.0)
