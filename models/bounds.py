"""Confidence bounds for counted events, so that no rate is quoted as if it were certain.

Counts are Poisson (Garwood 1936), shares are binomial (Clopper & Pearson 1934); both intervals are exact, two-sided
and found by bisection on the tail sums. No event in T hours bounds the rate at 3.7 / T (3 / T one-sided). Where trials
come in clusters, as clips of one speaker do, shares are wider than binomial: those are resampled (Efron 1979).

scipy has all three, and would come along with every server, where calibration runs, too: more than this is worth.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

TAIL = 0.025
"""Probability beyond either bound: 95 % are within."""
DRAWS = 4_000
"""How often clusters are drawn anew."""


def poisson_bounds(count: int) -> tuple[float, float]:
    """Bounds on the mean of a Poisson variable of which `count` events were seen."""
    high = count + 20.0 + 10.0 * math.sqrt(count)
    lower = 0.0 if count == 0 else _bisect(lambda mean: 1 - _poisson_cdf(count - 1, mean) > TAIL, 0.0, high)
    return lower, _bisect(lambda mean: _poisson_cdf(count, mean) < TAIL, 0.0, high)


def binomial_bounds(count: int, trials: int) -> tuple[float, float]:
    """Bounds on a share of which `count` of `trials` were seen; (0, 1) without trials."""
    if 2 * count > trials:  # the rest is fewer to sum over
        lower, upper = binomial_bounds(trials - count, trials)
        return 1 - upper, 1 - lower
    lower, upper = 0.0, 1.0
    if count > 0:
        lower = _bisect(lambda share: 1 - _binomial_cdf(count - 1, trials, share) > TAIL, 0.0, 1.0)
    if count < trials:
        upper = _bisect(lambda share: _binomial_cdf(count, trials, share) < TAIL, 0.0, 1.0)
    return lower, upper


def clustered_bounds(counts: NDArray[np.int64], trials: NDArray[np.int64]) -> tuple[float, float]:
    """Bounds on the share of all trials, of which `counts` of `trials` were seen in each of some clusters (n,).

    One cluster says nothing of others: its trials have to do. Where none was seen in any cluster, or nothing else, all
    that is drawn anew is the same, too; then each cluster is one trial.
    """
    if len(trials) == 1:
        return binomial_bounds(int(counts[0]), int(trials[0]))
    if not counts.any() or (counts == trials).all():
        return binomial_bounds(len(trials) if counts.any() else 0, len(trials))
    drawn = np.random.default_rng(0).integers(len(trials), size=(DRAWS, len(trials)))
    lower, upper = np.quantile(counts[drawn].sum(axis=1) / trials[drawn].sum(axis=1), (TAIL, 1 - TAIL)).tolist()
    return lower, upper


def _bisect(passed: Callable[[float], bool], low: float, high: float) -> float:
    """Where a predicate turns true, between a point where it is false and one where it is true."""
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (low, middle) if passed(middle) else (middle, high)
    return (low + high) / 2


def _poisson_cdf(count: int, mean: float) -> float:
    if mean == 0:
        return 1.0
    return math.fsum(math.exp(i * math.log(mean) - mean - math.lgamma(i + 1)) for i in range(count + 1))


def _binomial_cdf(count: int, trials: int, share: float) -> float:
    if share in {0.0, 1.0}:
        return 1.0 - share
    ways = math.lgamma(trials + 1)
    return math.fsum(
        math.exp(
            ways
            - math.lgamma(i + 1)
            - math.lgamma(trials - i + 1)
            + i * math.log(share)
            + (trials - i) * math.log1p(-share)
        )
        for i in range(count + 1)
    )
