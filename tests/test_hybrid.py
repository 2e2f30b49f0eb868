"""Hybrid dynamic pruning against a direct reading of its equations, block by block."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.hybrid import HybridAttention
from models.kwt import Attention


def integer(x: float) -> int:
    return int(x)


def by_the_equations(q: Tensor, k: Tensor, rho: float, *, signed: bool) -> list[list[float]]:
    """Scores of one head (N, D), N even, one block at a time."""
    rows, d = len(q), q.shape[-1]
    q4, k4 = (4 * q).tolist(), (4 * k).tolist()
    scout = [[sum(integer(a) * integer(b) for a, b in zip(x, y, strict=True)) for y in k4] for x in q4]
    cells = {
        (i, j): [scout[2 * i + a][2 * j + b] for a in (0, 1) for b in (0, 1)]
        for i in range(rows // 2)
        for j in range(rows // 2)
    }
    blocks = {at: float(sum(cell if signed else map(abs, cell))) for at, cell in cells.items()}
    result = [[-math.inf if signed else 0.0] * rows for _ in range(rows)]
    for (i, j), worth in blocks.items():
        row = [blocks[i, other] for other in range(rows // 2)]
        mean = sum(row) / len(row)
        limit = rho * max(row) + (1 - rho) * mean if rho >= 0 else -rho * min(row) + (1 + rho) * mean
        if worth < limit:
            continue
        for x in (2 * i, 2 * i + 1):
            for y in (2 * j, 2 * j + 1):
                dropped = sum((a - integer(a)) * (b - integer(b)) for a, b in zip(q4[x], k4[y], strict=True))
                full = sum(a * b for a, b in zip(q4[x], k4[y], strict=True))
                result[x][y] = (full - dropped) / 16 / math.sqrt(d)
    return result


@pytest.fixture
def queries_and_keys() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 1, 8, 16, generator=generator), torch.randn(2, 1, 8, 16, generator=generator)


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("rho", [-0.7, 0.0, 0.4])
def test_scores_are_the_published_equations(
    queries_and_keys: tuple[Tensor, Tensor], rho: float, *, signed: bool
) -> None:
    q, k = queries_and_keys
    scores = HybridAttention(rho, signed=signed).scores(q, k)
    for clip in range(len(q)):
        expected = torch.tensor(by_the_equations(q[clip, 0], k[clip, 0], rho, signed=signed))
        torch.testing.assert_close(scores[clip, 0], expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("signed", [False, True])
def test_nothing_pruned_and_no_fractions_is_dense(*, signed: bool) -> None:
    generator = torch.Generator().manual_seed(1)
    q, k, v = (torch.randint(-8, 9, (2, 1, 7, 4), generator=generator) / 4.0 for _ in range(3))
    hybrid, dense = HybridAttention(-1.0, signed=signed), Attention()
    torch.testing.assert_close(hybrid.scores(q, k), dense.scores(q, k))
    weights = dense.weights(dense.scores(q, k))
    torch.testing.assert_close(hybrid.mix(weights, v), dense.mix(weights, v))
    assert hybrid.done["values"] == dense.done["values"]


def test_a_head_below_tau_says_nothing_and_costs_only_its_scout(queries_and_keys: tuple[Tensor, Tensor]) -> None:
    q, k = queries_and_keys
    hybrid = HybridAttention(-1.0, tau=1e9)
    mixed = hybrid.mix(hybrid.weights(hybrid.scores(q, k)), k)
    assert not mixed.any()
    assert hybrid.done["scores"] == q.numel() * k.shape[-2] / 4
    assert hybrid.done["values"] == 0


@pytest.mark.parametrize(("tau", "speaks"), [(57.5, True), (57.7, False)])
def test_a_head_is_judged_by_what_its_queries_may_see(tau: float, *, speaks: bool) -> None:
    """Four rows of causal blocks: six whole ones of 4 x 16 and four on the diagonal of 3 x 16, mean 57.6."""
    ones = torch.ones(1, 1, 8, 1)
    hybrid = HybridAttention(-1.0, tau)
    hybrid.visible = torch.ones(8, 8, dtype=torch.bool).tril()
    hybrid.scores(ones, ones)
    assert bool(hybrid.head) == speaks


def test_more_is_pruned_as_rho_grows(queries_and_keys: tuple[Tensor, Tensor]) -> None:
    kept = []
    for rho in (-1.0, -0.5, 0.0, 0.5, 1.0):
        hybrid = HybridAttention(rho)
        hybrid.scores(*queries_and_keys)
        kept.append(int(hybrid.keep.sum()))
    assert kept == sorted(kept, reverse=True)
    assert kept[0] == 2 * 8 * 8
    assert kept[-1] < kept[2] < kept[0]
