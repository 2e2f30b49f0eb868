"""Hybrid dynamic pruning (HDP: Jaradat et al. 2024), on any attention, no retraining.

Queries and keys in fixed point, x = I + F with the integer part I towards zero and |F| < 1. The scout
I_q I_k^T is cut into 2 x 2 blocks; a block's importance is the sum of |scout| in it. Each row of blocks keeps
those whose importance reaches::

    rho max + (1 - rho) mean    for 0 <= rho <= 1,        -rho min + (1 + rho) mean    for -1 <= rho < 0

A head whose mean importance, over blocks that may be seen, is below tau is skipped: its output is zero. Kept scores are
I_q I_k + I_q F_k + F_q I_k; the product of fractions is dropped. Pruned scores become 0, still under the softmax.

Without a scale the integer part of this network's queries is blind, so both sides are scaled by 4 first.
The `signed` form is ours: importance is the signed sum, and pruned scores are masked. We reconstruct from
the published summary; >= (not >) lets rho = -1 keep every block.

Counting: a partial product (integer or fraction side each) is a quarter of a multiply-accumulate, so the scout
costs N^2 D / 4 and a kept score D / 2 more. A pruned weight is the same for a whole row, so even in the literal
form its values need one running sum, not a product.

Of all this the compiled step of the streaming network has the head gate, with the scores themselves for a scout, since
it keeps them from token to token anyway (`models.operating`).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from models.kwt import Attention

BLOCK = 2
SCALE = 4.0


def importance(scout: Tensor, *, signed: bool) -> Tensor:
    """(..., N, M) -> sums over 2 x 2 blocks (..., ceil(N / 2), ceil(M / 2)); odd edges are padded with 0."""
    scout = scout if signed else scout.abs()
    rows, columns = scout.shape[-2:]
    padded = F.pad(scout, (0, columns % BLOCK, 0, rows % BLOCK))
    return padded.unflatten(-1, (-1, BLOCK)).unflatten(-3, (-1, BLOCK)).sum(dim=(-1, -3))


def row_threshold(blocks: Tensor, rho: float, seen: Tensor) -> Tensor:
    """What a block must reach to be kept, for each row of blocks: (..., R, C) -> (..., R, 1).

    `seen` (R, C) says which blocks hold a key that its queries may see; the others have no say.
    """
    mean = (blocks * seen).sum(dim=-1, keepdim=True) / seen.sum(dim=-1, keepdim=True)
    if rho >= 0:
        return rho * blocks.masked_fill(~seen, -torch.inf).amax(dim=-1, keepdim=True) + (1 - rho) * mean
    return -rho * blocks.masked_fill(~seen, torch.inf).amin(dim=-1, keepdim=True) + (1 + rho) * mean


class HybridAttention(Attention):
    """Attention with scouted blocks and heads.

    Args:
        rho: how much to prune, -1 (nothing) to 1 (all but a row's best block).
        tau: mean importance of the blocks seen under which a head is skipped.
        signed: the signed form; the literal one if false.
    """

    def __init__(self, rho: float, tau: float = 0.0, *, signed: bool = False) -> None:
        super().__init__()
        self.rho, self.tau, self.signed = rho, tau, signed
        self.keep = self.head = torch.ones(())

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Scaled scores, approximate where kept, 0 or -inf where pruned."""
        integer_q, integer_k = (SCALE * q).trunc(), (SCALE * k).trunc()
        scout = (integer_q @ integer_k.transpose(-1, -2)) * self.visible
        blocks = importance(scout, signed=self.signed)
        rows, columns = scout.shape[-2:]
        seen = importance(self.visible.expand(rows, columns).float(), signed=True) > 0
        kept = blocks >= row_threshold(blocks, self.rho, seen)
        self.keep = kept.repeat_interleave(BLOCK, -2).repeat_interleave(BLOCK, -1)[..., :rows, :columns] & self.visible
        magnitude = importance(scout, signed=False).sum(dim=(-1, -2), keepdim=True) / seen.sum()
        self.head = magnitude >= self.tau
        fraction_q, fraction_k = SCALE * q - integer_q, SCALE * k - integer_k
        products = scout + integer_q @ fraction_k.transpose(-1, -2) + fraction_q @ integer_k.transpose(-1, -2)
        channels = q.shape[-1]
        self.count("scores", channels * (self.visible.expand_as(scout).sum() / 4 + (self.keep & self.head).sum() / 2))
        scores = (products / (SCALE**2 * channels**0.5)).masked_fill(~self.keep, -torch.inf if self.signed else 0.0)
        return scores + self.bias

    def weights(self, scores: Tensor) -> Tensor:
        """Softmax over the keys; a query of a causal network that keeps none of its keys says nothing."""
        return super().weights(scores).masked_fill(~self.keep.any(dim=-1, keepdim=True) & self.signed, 0.0)

    def mix(self, weights: Tensor, v: Tensor) -> Tensor:
        """Weighted values, zero for a skipped head."""
        self.count("values", v.shape[-1] * (self.keep & self.head).sum())
        return weights @ v * self.head
