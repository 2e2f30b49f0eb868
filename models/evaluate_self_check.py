"""How far a healthy network is from what the self-check compares it with: the ground that its bound stands on.

Streams are judged by the compiled step at an operating point, by the same step densely (what the self-check of a
server does), and by the torch network at the same point (what parity tests do). Against the dense network, gates
hold back changes by design; against torch, values within rounding of a threshold fall on another side of it, and from
there the two hold different values. The dense answer to another stream shows what a stream that is broken looks like.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import DENSE
from models.engines import AnyNetwork
from models.features import Array
from models.offline import judge
from models.self_check import COMPARED_TOKENS
from models.streams import SAMPLE_RATE

STATISTICS = {"min": 0.0, "median": 0.5, "p99": 0.99, "p999": 0.999, "max": 1.0}
Progress = Callable[[Sequence[str]], Iterable[str]]


@dataclass(frozen=True, slots=True)
class Difference:
    """Differences of posteriors, 0..1, over streams at one operating point.

    against: `dense`, `torch` at the same point, or `another`, the dense network's answer to another stream, if any.
    token_...: of a token's posteriors, the one that differs most; over all tokens.
    check_...: the mean of these over `COMPARED_TOKENS` tokens, wherever a check may begin; what the bound is about.
    """

    point: str
    scale: float
    against: str
    hours: float
    token_min: float
    token_median: float
    token_p99: float
    token_p999: float
    token_max: float
    check_min: float
    check_median: float
    check_p99: float
    check_p999: float
    check_max: float


def compare(ours: Sequence[Array], theirs: Sequence[Array], token_s: float, **row: str | float) -> Difference:
    """Posteriors (N, K) of the same streams, twice -> how they differ.

    Raises:
        ValueError: for streams shorter than one check.
    """
    by_token = [np.abs(a - b).max(axis=1).astype(np.float64) for a, b in zip(ours, theirs, strict=True)]
    if min(map(len, by_token)) < COMPARED_TOKENS:
        raise ValueError(f"streams must be at least {COMPARED_TOKENS * token_s:g} s long, as a check is")
    tokens, checks = np.concatenate(by_token), np.concatenate([_means(each) for each in by_token])
    figures = {
        f"{name}_{statistic}": float(value)
        for name, values in (("token", tokens), ("check", checks))
        for statistic, value in zip(STATISTICS, np.quantile(values, tuple(STATISTICS.values())), strict=True)
    }
    return Difference(hours=len(tokens) * token_s / 3600, **row, **figures)  # type: ignore[arg-type]


def _means(difference: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over each stretch of `COMPARED_TOKENS` tokens of a stream (N,)."""
    sums = np.concatenate(([0.0], difference.cumsum()))
    return (sums[COMPARED_TOKENS:] - sums[:-COMPARED_TOKENS]) / COMPARED_TOKENS


def differences(
    network: AnyNetwork,
    reference: AnyNetwork | None,
    recordings: Sequence[Array],
    scale: float = 1.0,
    progress: Progress = iter,
) -> list[Difference]:
    """Compare at every operating point.

    Args:
        network: the one that serves.
        reference: the same checkpoint in torch, or None to leave it out.
        recordings: streams (S,) of equal length, int16 values.
        scale: factor on the thresholds, as under load.
        progress: sees the points go by.
    """
    token_s = network.config.token_samples / SAMPLE_RATE

    def posteriors(by: AnyNetwork, point: str) -> list[Array]:
        return [each for each, _ in judge(by, recordings, point=point, scale=scale)]

    dense, rows = posteriors(network, DENSE), []
    for point in progress(network.points):
        ours = posteriors(network, point)
        others = {} if point == DENSE else {DENSE: dense}
        if point != DENSE and len(recordings) > 1:
            others["another"] = dense[1:] + dense[:1]
        if reference is not None:
            others["torch"] = posteriors(reference, point)
        rows += [
            compare(ours, theirs, token_s, point=point, scale=scale, against=name) for name, theirs in others.items()
        ]
    return rows
