"""Score pruning with the weights tuned: learned to a share of scores, kept beside the stock network, found again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
import torch

from models import pruning_tuned
from models.kwt import KWT
from models.kwt_combined import PrunedDelta
from models.kwt_delta import DeltaAttention
from models.kwt_weights import KWTConfig
from models.methods_report import draw_trajectories
from models.pruning import PrunedAttention, learn
from models.pruning_tuned import Tuned

if TYPE_CHECKING:
    from pathlib import Path

    from torch import Tensor

SMALL = KWTConfig(channels=16, heads=2, layers=2, hidden=16, clip_samples=2_000)


def random_model(seed: int) -> KWT:
    torch.manual_seed(seed)
    model = KWT(SMALL)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.requires_grad_(requires_grad=False)


@pytest.fixture
def stock() -> KWT:
    return random_model(0)


@pytest.fixture
def clips() -> Tensor:
    return torch.randn(8, SMALL.tokens, SMALL.channels, generator=torch.Generator().manual_seed(1))


def test_what_was_tuned_comes_back_for_the_same_network_only(stock: KWT, clips: Tensor, tmp_path: Path) -> None:
    path, told = tmp_path / "new" / "tuned.safetensors", []
    tuned = pruning_tuned.tune(stock, clips, steps=20, tell=told.append)
    pruning_tuned.save(stock, tuned, path)
    found = pruning_tuned.load(stock, path)
    assert len(told) == len(tuned.trajectory) == 2
    assert isinstance(found, Tuned)
    torch.testing.assert_close(found.thresholds, tuned.thresholds)
    torch.testing.assert_close(found.trajectory[-1], tuned.thresholds)
    torch.testing.assert_close(found.model.judge(clips), tuned.model.judge(clips), atol=1e-3, rtol=1e-3)
    assert not torch.equal(found.model.judge(clips), stock.judge(clips)), "the weights were not tuned"
    assert pruning_tuned.load(random_model(1), path) is None
    assert pruning_tuned.load(stock, tmp_path / "nothing") is None


def test_scores_cost_nothing_once_enough_are_gone(stock: KWT, clips: Tensor) -> None:
    def survived(enough: float) -> float:
        torch.manual_seed(0)
        *_, learned = learn(stock, clips, steps=60, price=100.0, batch=8, rates=(0.1, 0.0), final=0.1, enough=enough)
        return learned.survived

    assert survived(0.0) < 0.85 < survived(0.9)


def test_rates_fall_to_their_final_share(stock: KWT, clips: Tensor) -> None:
    def moves(final: float) -> Tensor:
        torch.manual_seed(0)
        points = [found.thresholds for found in learn(stock, clips, steps=30, price=100.0, final=final)]
        return (points[-1] - points[-2]).abs().sum()

    assert moves(0.0) < moves(1.0) / 4


def test_without_gates_the_combination_is_score_pruning(stock: KWT, clips: Tensor) -> None:
    floor = torch.full((SMALL.layers, SMALL.heads), 0.1)
    centres = torch.randn(SMALL.layers, SMALL.heads, 8, generator=torch.Generator().manual_seed(2))
    both = PrunedDelta(torch.zeros(SMALL.layers, 4), floor, centres)
    alone = PrunedAttention(floor, centres)
    torch.testing.assert_close(stock.judge(clips, both), stock.judge(clips, alone), atol=1e-5, rtol=1e-5)


def test_without_thresholds_the_combination_is_the_delta_gate_and_with_them_does_less(
    stock: KWT, clips: Tensor
) -> None:
    gates, centres = torch.full((SMALL.layers, 4), 0.05), torch.zeros(SMALL.layers, SMALL.heads, 8)
    delta = DeltaAttention(gates)
    none, some = (PrunedDelta(gates, torch.full((SMALL.layers, SMALL.heads), theta), centres) for theta in (-1e9, 0.5))
    torch.testing.assert_close(stock.judge(clips, none), stock.judge(clips, delta))
    stock.judge(clips, some)
    assert none.done["values"] == delta.done["values"] > some.done["values"]


def test_trajectories_are_drawn(tmp_path: Path) -> None:
    draw_trajectories(torch.randn(5, 3, 2), 10, tmp_path / "thresholds.png")
    assert (tmp_path / "thresholds.png").read_bytes().startswith(b"\x89PNG")
