"""Learned run-time pruning of attention scores (LeOPArd: Li et al. 2022), on any attention.

A threshold Th per layer and head on the scaled scores. In training, with s = 10, c = 1000, k = 100::

    soft(x) = x tanh(s (x - Th))  where x >= Th,   c tanh(s (x - Th))  elsewhere
    loss    = task + lambda mean(sigmoid(k (soft(x) + c - 1)))           a smooth share of survivors

Softmax does not feel a constant added to a row of scores, but a threshold does. So a query's threshold may carry
q . centre / sqrt(D) on top, which is the same as subtracting one learned `centre` from every key: N D operations
for a pruning that disturbs about a quarter as much (ours; a centre of 0 is the published form).

At run time a score below Th is dropped before the softmax and its value row is not read; a row's maximum
always survives. Softmax does not feel a shift of its scores but soft(x) does: near a negative Th it would lift
scores instead of damping them, so scores and threshold are shifted together until Th is at least 1 (ours, not
the paper's). The task is to agree with the dense network. Scores are what the softmax sees: in the streaming network
their bias by age is part of them, and its compiled step prunes by the same thresholds (`models.operating`).

Early termination: a dot product is read in blocks of channels, and stops once what has been read plus the
largest that the rest can add, |q_rest| |k_rest|, stays below Th. The paper bounds bit-serial partial products;
we bound channels, and `compact` first turns queries and keys so that their first channels say the most. That work is
counted, too: the norms, a product of two of them at each look, and one for the margin of rounding.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from models.kwt import Attention, Block, Judge, divergence

if TYPE_CHECKING:
    from collections.abc import Iterator

STEEPNESS, DROP, COUNT_STEEPNESS = 10.0, 1000.0, 100.0
"""s, c and k of the equations above."""
ROUNDING = 1e-5
"""Share of |q| |k| by which float sums in another order may differ; the bound is widened by it."""
BLOCK = 8
"""Channels read between two looks at the bound."""


def soft(x: Tensor, theta: Tensor) -> Tensor:
    """Differentiable threshold: scores above stay, scores below sink towards -c."""
    return torch.where(x >= theta, x, DROP) * torch.tanh(STEEPNESS * (x - theta))


def survivors(x: Tensor, theta: Tensor) -> Tensor:
    """Smooth 0 or 1 for each score: does it survive?"""
    return torch.sigmoid(COUNT_STEEPNESS * (soft(x, theta) + DROP - 1))


def kept(scores: Tensor, theta: Tensor) -> Tensor:
    """Which scores survive at run time: those not below `theta`, and each row's maximum."""
    return (scores >= theta) | (scores == scores.amax(dim=-1, keepdim=True))


def channels_read(q: Tensor, k: Tensor, theta: Tensor, block: int = BLOCK) -> tuple[Tensor, Tensor]:
    """Dot products, each stopped as soon as it cannot reach its threshold.

    Args:
        q: queries (B, H, N, D), unscaled.
        k: keys (B, H, N, D).
        theta: threshold of the unscaled dot product, broadcast over (B, H, N, N).
        block: channels read between two looks at the bound.

    Returns:
        (B, H, N, N) bool, which dot products were read to their end; and the channels read, (B, H, N, N).
    """
    partial = q.new_zeros(*q.shape[:-1], k.shape[-2])
    running = torch.ones_like(partial, dtype=torch.bool)
    read = torch.zeros_like(partial)
    slack = ROUNDING * q.norm(dim=-1)[..., :, None] * k.norm(dim=-1)[..., None, :]
    for start in range(0, q.shape[-1], block):
        end = start + block
        read += running * q[..., start:end].shape[-1]
        partial = partial + q[..., start:end] @ k[..., start:end].transpose(-1, -2)
        rest = q[..., end:].norm(dim=-1)[..., :, None] * k[..., end:].norm(dim=-1)[..., None, :]
        running = running & (partial + rest + slack >= theta)
    return running, read


class PrunedAttention(Attention):
    """Attention that drops scores below a threshold and stops dot products early.

    Args:
        thresholds: (layers, heads).
        centres: (layers, heads, D), or None for zeros.
        early: whether dot products may stop early.
    """

    def __init__(self, thresholds: Tensor, centres: Tensor | None = None, *, early: bool = True) -> None:
        super().__init__()
        self.thresholds, self.centres, self.early = thresholds, centres, early

    def threshold(self, q: Tensor) -> Tensor:
        """Thresholds of scaled scores in the present layer, (B, H, N, 1) or (H, 1, 1)."""
        theta = self.thresholds[self.layer, :, None, None]
        if self.centres is None:
            return theta
        self.count("scores", float(q.numel()))
        return theta + q @ self.centres[self.layer, :, :, None] * q.shape[-1] ** -0.5

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Scaled scores, -inf where dropped. Those that would stop early are below the threshold anyway."""
        theta = self.threshold(q)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5 + self.bias
        channels = q.shape[-1]
        read = torch.full_like(scores, channels)
        if self.early:
            _, read = channels_read(q, k, (theta - self.bias) * channels**0.5)
            looks = read.clamp(max=channels - 1) // BLOCK  # none after the last channel
            read[(scores < theta).all(dim=-1)] = channels
            self.count("scores", q.numel() + k.numel() + ((looks + 1) * self.visible).sum())
        self.count("scores", (read * self.visible).sum())
        return self.prune(scores, theta)

    def prune(self, scores: Tensor, theta: Tensor) -> Tensor:
        """Drop what does not survive."""
        return scores.masked_fill(~kept(scores, theta), -torch.inf)

    def mix(self, weights: Tensor, v: Tensor) -> Tensor:
        """Weighted values; rows without weight are not read."""
        self.count("values", v.shape[-1] * (weights > 0).sum())
        return weights @ v


class LearnablePruning(PrunedAttention):
    """The same, differentiable in thresholds and centres; `survived` collects the mean survivors of each layer."""

    def __init__(self, thresholds: Tensor, centres: Tensor) -> None:
        super().__init__(thresholds, centres, early=False)
        self.survived: list[Tensor] = []

    def prune(self, scores: Tensor, theta: Tensor) -> Tensor:
        """Drop what does not survive, with the gradient of the soft threshold."""
        finite = scores.masked_fill(~self.visible, 0.0)
        theta = torch.minimum(theta, scores.detach().amax(dim=-1, keepdim=True))
        shift = (1 - theta).clamp_min(0).detach()
        seen = self.visible.expand_as(scores)
        self.survived.append(survivors(finite + shift, theta + shift)[seen].mean())
        smooth = soft(finite + shift, theta + shift)
        return super().prune(scores.detach(), theta) + (smooth - smooth.detach()) * seen


class _Statistics(Attention):
    """Notes each layer's mean key, and the centred score below which a quarter of each head's lie."""

    def __init__(self) -> None:
        super().__init__()
        self.centres: list[Tensor] = []
        self.quartiles: list[Tensor] = []

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        centre = k.mean(dim=(0, 2))
        scores = super().scores(q, k - centre[:, None])
        seen = scores[..., self.visible.expand(scores.shape[-2:])]
        self.centres.append(centre)
        self.quartiles.append(seen.transpose(0, 1).flatten(1)[:, ::101].quantile(0.25, dim=-1))
        return scores


@dataclass(frozen=True)
class Learned:
    """Thresholds (layers, heads) and centres (layers, heads, D), and the network they belong to."""

    survived: float
    thresholds: Tensor
    centres: Tensor
    model: Judge


def learn(
    model: Judge,
    clips: Tensor,
    *,
    steps: int,
    price: float,
    batch: int = 32,
    rates: tuple[float, float] = (0.03, 1e-5),
    final: float = 1.0,
    enough: float = 0.0,
) -> Iterator[Learned]:
    """Learn thresholds and centres, and with them the weights, so that the network still agrees with its dense self.

    Args:
        model: the network; it is not changed.
        clips: (n, N, C) what the network judges: embedded clips or frames.
        steps: optimiser steps, each on `batch` random clips.
        price: lambda, nats per share of surviving scores.
        batch: clips in a step.
        rates: Adam's learning rates of thresholds and of weights; weights stay as they are where theirs is 0.
        final: share of both rates left in the end, on the way down a cosine.
        enough: share of surviving scores, smooth count, below which they cost nothing.

    Yields:
        Where learning stands after each step; `survived` is the smooth count's.
    """
    theta, centres = _begin(model, clips[:batch])
    target = model.beliefs(clips)
    student = copy.deepcopy(model).requires_grad_(rates[1] > 0)
    optimiser = _optimiser([theta, centres], student, rates)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, partial(_cosine, steps=steps, final=final))
    for _ in range(steps):
        chosen = torch.randperm(len(clips))[:batch]
        attention = LearnablePruning(theta, centres)
        task = divergence(student.judge(clips[chosen], attention), target[chosen])
        survived = torch.stack(attention.survived).mean()
        optimiser.zero_grad()
        (task + price * (survived - enough).clamp_min(0)).backward()
        optimiser.step()
        schedule.step()
        yield Learned(survived.item(), theta.detach().clone(), centres.detach().clone(), student)


@torch.no_grad()
def _begin(model: Judge, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Thresholds (layers, heads) and centres (layers, heads, D) from which learning begins."""
    start = _Statistics()
    model.judge(clips, start)
    return torch.stack(start.quartiles).requires_grad_(), torch.stack(start.centres).requires_grad_()


def _optimiser(tables: list[Tensor], student: Judge, rates: tuple[float, float]) -> torch.optim.Optimizer:
    """Adam over thresholds and centres, and over the weights where they may move."""
    optimiser = torch.optim.Adam([{"params": tables, "lr": rates[0]}])
    if rates[1] > 0:
        optimiser.add_param_group({"params": list(student.parameters()), "lr": rates[1]})
    return optimiser


def _cosine(step: int, steps: int, final: float) -> float:
    """From 1 down to `final`."""
    return final + (1 - final) * (1 + math.cos(math.pi * step / steps)) / 2


@torch.no_grad()
def compact(model: Judge) -> Judge:
    """The same network with queries and keys turned so that their first channels carry the most.

    For each head, W_q^T W_k = U S V^T; sqrt(S) U^T and sqrt(S) V^T project to the same scores, largest singular
    value first.
    """
    turned = copy.deepcopy(model)
    for block in turned.modules():
        if not isinstance(block, Block):
            continue
        q, k, _ = block.qkv.weight.unflatten(0, (3, block.heads, -1))
        u, s, vh = torch.linalg.svd(q.transpose(-1, -2).double() @ k.double())
        d = q.shape[-2]
        root = s[..., :d, None].sqrt()
        q.copy_(root * u[..., :d].transpose(-1, -2))
        k.copy_(root * vh[..., :d, :])
    return turned
