"""How ready a network is to say that it heard silence: one bias of its read-out.

In training streams, silence comes up as often as `models.recipe` says; in the benchmark (Warden 2018) every label is as
frequent as any other, and on a stream silence is the rule. A label's prior only moves its logit::

    logit_silence += bias

so one number is chosen, on a grid, by which the mean of all labels' accuracies is best. Training speakers' clips and
training noise choose, since validation is what is reported. Nothing is learned and no time is spent: the number goes
into the read-out's own bias.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np

from models.config import SILENCE
from models.data import NOISE_FOLDERS, DataError
from models.validation import posteriors_on

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.checkpoint import Checkpoint
    from models.features import Array
    from models.network import Network
    from models.validation import Validation

BIAS = "readout.head.bias"
GRID = np.arange(-3.0, 3.01, 0.25)
"""Candidates, on the scale of logits."""
TINY = 1e-12


def balance(network: Network, point: str, heard: Validation) -> tuple[Checkpoint, float]:
    """Move the read-out's bias of silence.

    Args:
        network: with the checkpoint that shall be balanced.
        point: the operating point at which it shall be balanced.
        heard: clips and noise that choose.

    Returns:
        The checkpoint, and by how much it was moved.

    Raises:
        DataError: where no noise is heard, by which silence would be judged.
    """
    if not len(heard.noise):
        raise DataError(f"no training noise: silence is judged by recordings in {' or '.join(sorted(NOISE_FOLDERS))}")
    checkpoint, silence = network.checkpoint, network.config.labels.index(SILENCE)
    parts = [posteriors_on(network, point, pixels)[0] for pixels in (heard.clips, heard.noise)]
    labels = np.concatenate((heard.labels, np.full(len(heard.noise), silence)))
    moved = best(np.concatenate(parts), labels, silence)
    bias = checkpoint.weights[BIAS].copy()
    bias[silence] += moved
    return replace(checkpoint, weights={**checkpoint.weights, BIAS: bias}), moved


def best(posteriors: Array, labels: NDArray[np.int64], place: int) -> float:
    """The bias of one label that judges posteriors (R, K) best, every label weighing the same; the least of equals."""
    logits = np.log(posteriors + TINY)
    weights = 1.0 / np.bincount(labels, minlength=logits.shape[1])[labels]
    candidates = []
    for bias in GRID.tolist():
        moved = logits.copy()
        moved[:, place] += bias
        right = float(weights[moved.argmax(axis=1) == labels].sum())
        candidates.append((round(right, 9), -abs(bias), bias))
    return max(candidates)[2]
