"""The delta Keyword Transformer as published (Jelcicova & Verhelst 2022), on the stock network, within one clip.

Along the token axis, with a threshold theta per layer for each of X (what the projections read), Q, K and A (the
attention weights), equations 4-6 of the paper::

    d_t = x_t - r_{t-1};   m_t = |d_t| > theta;   r_t = x_t where m_t else r_{t-1};   y_t = y_{t-1} + W (m_t d_t)

so y_t = W r_t: multiplying the held values r is the same arithmetic. The class token is no neighbour in time
of the first frame: it stays outside the chain, as a token whose channels all moved. Operations done:

    qkv     3 C per moved channel of X
    scores  sum over channels of (moves of that channel in Q) x (moves in K): both sides are sparse
    values  D per moved entry of A

The output projection and the feed-forward part stay dense, as published. The paper does not say how its
thresholds were found; here they are learned on training clips with the weights frozen (`learn`): the loss is
the divergence from the dense network's posteriors plus a price on operations. With u = (r - x) / theta held
fixed, r = x + theta u is differentiable in theta, and sigmoid((|d| - theta) / (theta / 4)) counts moves smoothly.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.nn import functional as F

from models.gates import hold
from models.kwt import KWT, Attention, divergence
from models.kwt_weights import PRODUCTS

if TYPE_CHECKING:
    from collections.abc import Iterator

TENSORS = ("x", "q", "k", "a")
"""Columns of a table of thresholds; its rows are layers."""

START = torch.tensor([0.1, 0.1, 0.1, 0.001])
"""Thresholds from which learning begins, in every layer."""
PRICES = (0.003, 0.15)
"""Of an operation, from first to last: nats per unit of log-operations."""
RATE = 0.05
"""Of Adam, on log-thresholds."""
ALWAYS = 1e6
"""Difference of a token outside the chain: it counts as moved."""


def chain(x: Tensor, theta: Tensor) -> tuple[Tensor, Tensor]:
    """Hold all tokens but the class token (the first) along the token axis.

    Args:
        x: (..., N, C).
        theta: threshold, at least 0.

    Returns:
        The held values (..., N, C), and the differences d (..., N, C) that were compared with theta;
        for the class token they are larger than any threshold.
    """
    with torch.no_grad():
        rest, _ = hold(x[..., 1:, :], theta)
        held = torch.cat((x[..., :1, :], rest), dim=-2)
        before = F.pad(rest[..., :-1, :], (0, 0, 1, 0))
        return held, torch.cat((torch.full_like(x[..., :1, :], ALWAYS), x[..., 1:, :] - before), dim=-2)


class DeltaAttention(Attention):
    """Attention whose products read held values; `thresholds` is (layers, 4), columns as in `TENSORS`."""

    def __init__(self, thresholds: Tensor) -> None:
        super().__init__()
        self.thresholds = thresholds

    def gate(self, tensor: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Held values, and which of them moved."""
        theta = self.thresholds[self.layer, TENSORS.index(tensor)]
        held, difference = chain(x, theta)
        return held, (difference.abs() > theta).to(x.dtype)

    def enter(self, layer: int, x: Tensor) -> Tensor:
        """Held input of the projections."""
        self.layer = layer
        held, moved = self.gate("x", x)
        self.count("qkv", 3 * x.shape[-1] * moved.sum())
        return held

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Scaled scores of held queries and held keys."""
        (q, q_moved), (k, k_moved) = self.gate("q", q), self.gate("k", k)
        self.count("scores", (q_moved.sum(dim=-2) * k_moved.sum(dim=-2)).sum())
        return q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5

    def mix(self, weights: Tensor, v: Tensor) -> Tensor:
        """Values under held weights."""
        held, moved = self.gate("a", weights)
        self.count("values", v.shape[-1] * moved.sum())
        return held @ v


class LearnableDelta(DeltaAttention):
    """The same gates, differentiable in their thresholds."""

    def gate(self, tensor: str, x: Tensor) -> tuple[Tensor, Tensor]:
        """Held values straight through x, and a smooth count of moves."""
        theta = self.thresholds[self.layer, TENSORS.index(tensor)]
        held, difference = chain(x.detach(), theta.detach())
        direction = (held - x.detach()) / theta.detach()
        return x + theta * direction, torch.sigmoid(4 * (difference.abs() / theta - 1))


def learn(
    model: KWT,
    clips: Tensor,
    *,
    steps: int,
    batch: int = 48,
) -> Iterator[tuple[float, Tensor]]:
    """Learn thresholds for ever fewer operations, weights frozen.

    The price of an operation rises geometrically from the first to the second of `PRICES`, so that one run
    draws the whole curve.

    Args:
        model: the stock network.
        clips: (n, N, C) embedded training clips (`KWT.embed`).
        steps: optimiser steps, each on `batch` random clips.
        batch: clips in a step.

    Yields:
        After each step, the share of the three products' operations left (smooth count), and the thresholds
        (layers, 4).
    """
    dense = batch * sum(model.config.macs()[group] for group in PRODUCTS)
    target = model.beliefs(clips)
    log_theta = START.log().repeat(model.config.layers, 1).requires_grad_()
    optimiser = torch.optim.Adam([log_theta], lr=RATE)
    for step in range(steps):
        chosen = torch.randperm(len(clips))[:batch]
        task, done = _try(model, clips[chosen], target[chosen], log_theta.exp())
        left, price = done / dense, PRICES[0] * (PRICES[1] / PRICES[0]) ** (step / max(1, steps - 1))
        optimiser.zero_grad()
        (task + price * left.log()).backward()
        optimiser.step()
        yield left.item(), log_theta.detach().exp().clone()


def _try(model: KWT, clips: Tensor, target: Tensor, thresholds: Tensor) -> tuple[Tensor, Tensor]:
    """How far some thresholds lead from the dense network, and the operations done, smooth count."""
    attention = LearnableDelta(thresholds)
    task = divergence(model.judge(clips, attention), target)
    return task, torch.stack([*attention.done.values()]).sum()
