"""The delta gate and score pruning together, on the stock network.

The gate comes first: scores are products of held queries and keys, and what is below its threshold is dropped from
them. A dropped score has no weight, so its entry of A moves only when it comes or goes. Early termination has no part
in this: a score is updated, not computed anew.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from models.kwt_delta import DeltaAttention
from models.pruning import kept

if TYPE_CHECKING:
    from torch import Tensor


class PrunedDelta(DeltaAttention):
    """Gates as in `DeltaAttention`, scores dropped as in `models.pruning.PrunedAttention`.

    Args:
        gates: thresholds of the delta gate, (layers, 4).
        thresholds: of scores, (layers, heads).
        centres: (layers, heads, D).
    """

    def __init__(self, gates: Tensor, thresholds: Tensor, centres: Tensor) -> None:
        super().__init__(gates)
        self.floor, self.centres = thresholds, centres

    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        """Scaled scores of held queries and keys, -inf where dropped."""
        scores = super().scores(q, k)
        held, moved = self.gate("q", q)
        self.count("scores", moved.sum())  # q . centre follows the moves of q
        theta = self.floor[self.layer, :, None, None]
        theta = theta + held @ self.centres[self.layer, :, :, None] * q.shape[-1] ** -0.5
        return scores.masked_fill(~kept(scores, theta), -torch.inf)
