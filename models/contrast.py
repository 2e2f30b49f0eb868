"""What sets one keyword apart from everything else: a logistic regression of its own, fitted when it is made.

Densities say how likely an embedding is under a word's; they spend it on directions in which nothing else comes near.
A line between the recordings' copies and thousands of other embeddings looks at what is near. Together they hear
more than either. Newton's method, with a ridge that keeps a few recordings from being learnt by heart.
"""

from __future__ import annotations

import numpy as np

from models.features import Array

RIDGE = 0.6
"""Weight of the squared weights, where each recording counts 1 in all."""
OTHERS = 10.0
"""Weight of all others together, per recording."""
STEPS, CLOSE = 25, 1e-3


def contrast(own: Array, others: Array) -> Array:
    """Fit the regression.

    Args:
        own: embeddings of the recordings' copies (n, V, C), in coordinates of about unit variance.
        others: embeddings of anything else (R, C).

    Returns:
        Weights and, last, the bias (C + 1): the log-odds of "one's own" are linear in the coordinates.
    """
    n, copies, c = own.shape
    x = np.concatenate((own.reshape(-1, c), others)).astype(np.float64)
    x = np.pad(x, ((0, 0), (0, 1)), constant_values=1.0)
    yes = np.arange(len(x)) < n * copies
    counts = np.where(yes, 1 / copies, OTHERS * n / len(others))
    ridge = np.append(np.full(c, RIDGE), 1e-4)
    weights = np.zeros(c + 1)
    for _ in range(STEPS):
        share = 1 / (1 + np.exp(-np.clip(x @ weights, -30, 30)))
        slope = x.T @ (counts * (share - yes)) + ridge * weights
        bend = (x * (counts * share * (1 - share))[:, None]).T @ x + np.diag(ridge)
        change = np.linalg.solve(bend, slope)
        weights -= change
        if np.abs(change).max() < CLOSE:
            break
    return weights.astype(np.float32)
