"""The mean of two networks that were trained apart from the same weights: as good as the better one, or better.

Where one went on from the other, what lies between them is hardly worse than its ends, and is better where the two err
in different places ("model soups", Wortsman et al. 2022). It costs nothing: no training, no work, no time. Gates stay
those of the first network, since the second one may have none.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from models.checkpoint import Checkpoint, CheckpointError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from models.features import Array


def average(first: Checkpoint, second: Checkpoint, share: float = 0.5) -> Checkpoint:
    """The first checkpoint with the mean of both ones' weights; thresholds for streams must be chosen anew.

    Args:
        first: whose operating points and metadata are kept; calibration and background are of no use any more.
        second: another network of the same shape.
        share: of the second one, 0..1.

    Raises:
        CheckpointError: if the networks differ in more than their weights.
    """
    if first.config != second.config:
        raise CheckpointError("only networks of one shape and one set of labels have a mean")
    made = f"{first.fingerprint}, and {share:g} of {second.fingerprint}"
    return replace(
        first,
        weights=mixed(first.weights, second.weights, share),
        calibration={},
        background={},
        metadata={**first.metadata, "mean": made},
    )


def mixed(first: Mapping[str, Array], second: Mapping[str, Array], share: float) -> dict[str, Array]:
    """Arrays of two networks by name, and their mean."""
    return {name: ((1 - share) * array + share * second[name]).astype(np.float32) for name, array in first.items()}
