"""How ready a network is to say that it heard silence, or another word: two biases of its read-out.

In training streams, silence and other words come up as often as `models.recipe` says; in the benchmark (Warden 2018)
every label is as frequent as any other, and on a stream silence is the rule. A label's prior only moves its logit::

    logit_k += bias_k          k in (silence, unknown)

so two numbers are chosen, on a grid, by which the mean of all labels' accuracies is best. Training speakers' clips and
training noise choose, since validation is what is reported. Nothing is learned and no time is spent: the numbers go
into the read-out's own bias.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import TYPE_CHECKING

import numpy as np

from models.config import SILENCE, UNKNOWN
from models.network import Network
from models.validation import posteriors_on

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from models.checkpoint import Checkpoint
    from models.features import Array
    from models.validation import Validation

BIAS = "readout.head.bias"
GRID = np.arange(-3.0, 3.01, 0.25)
"""Candidate biases, on the scale of logits."""
TINY = 1e-12


def balance(checkpoint: Checkpoint, point: str, heard: Validation) -> tuple[Checkpoint, dict[str, float]]:
    """Move the read-out's biases of silence and of other words.

    Args:
        checkpoint: any of ours.
        point: the operating point at which it shall be balanced.
        heard: clips and noise that choose.

    Returns:
        The checkpoint, and by how much each of the two was moved.
    """
    network, labels = Network(checkpoint), checkpoint.config.labels
    silence = np.full(len(heard.noise), labels.index(SILENCE))
    parts = [posteriors_on(network, point, pixels)[0] for pixels in (heard.clips, heard.noise)]
    places = [labels.index(SILENCE), labels.index(UNKNOWN)]
    chosen = best(np.concatenate(parts), np.concatenate((heard.labels, silence)), places)
    bias = checkpoint.weights[BIAS].copy()
    bias[places] += chosen
    moved = replace(checkpoint, weights={**checkpoint.weights, BIAS: bias})
    return moved, dict(zip((SILENCE, UNKNOWN), map(float, chosen), strict=True))


def best(posteriors: Array, labels: NDArray[np.int64], places: list[int]) -> NDArray[np.float32]:
    """The biases of the labels at `places` that judge posteriors (R, K) best, every label weighing the same.

    Among equals, those that move least.
    """
    logits = np.log(posteriors + TINY)
    weights = 1.0 / np.bincount(labels, minlength=logits.shape[1])[labels]
    candidates = []
    for biases in product(GRID, repeat=len(places)):
        moved = logits.copy()
        moved[:, places] += np.array(biases, np.float32)
        right = float(weights[moved.argmax(axis=1) == labels].sum())
        candidates.append((round(right, 9), -sum(map(abs, biases)), biases))
    return np.array(max(candidates)[2], np.float32)
