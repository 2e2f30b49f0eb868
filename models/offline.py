"""Whole recordings through the compiled network: each one a stream with an empty past."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numba import njit

from models.checkpoint import SHIPPED
from models.config import ModelConfig
from models.counting import Count, count
from models.data import LAST_SAMPLES
from models.engines import AnyNetwork
from models.features import Array, FrameStream, log_mel

BATCH_TOKENS = 4096
"""Tokens of one step, so that working memory stays small whatever the recordings' length."""


def softmax(logits: Array) -> Array:
    """Logits (..., K) -> posteriors (..., K).

    Compiled, and the interpreter's lock is kept: numpy would let go of it, and wait for it again, in every operation.
    """
    posteriors = np.empty(logits.shape, logits.dtype)
    size = logits.shape[-1]
    _softmax(logits.reshape(-1, size), posteriors.reshape(-1, size))
    return posteriors


@njit(["void(f4[:, :], f4[:, :])", "void(f8[:, :], f8[:, :])"], error_model="numpy", cache=True)
def _softmax(logits: Array, posteriors: Array) -> None:
    """The softmax of each row (R, K), into `posteriors`."""
    for row in range(len(logits)):
        highest, total = logits[row].max(), logits.dtype.type(0)
        for label in range(logits.shape[1]):
            posteriors[row, label] = np.exp(logits[row, label] - highest)
            total += posteriors[row, label]
        for label in range(logits.shape[1]):
            posteriors[row, label] /= total


def tokens_of(config: ModelConfig, samples: Array, *, flush: bool = True, ended: bool = False) -> Array:
    """Samples (S,), int16 values -> network input by token (N, stride, bands); see `judge`."""
    stream = FrameStream(config)
    parts = [stream.feed(samples)]
    if ended:
        parts.append(stream.feed(np.zeros(LAST_SAMPLES, np.float32)))
    elif flush:
        parts.append(stream.flush())
    return log_mel(parts, config)


def judge(
    network: AnyNetwork,
    recordings: Sequence[Array],
    *,
    point: str = SHIPPED,
    scale: float = 1.0,
    flush: bool = True,
    ended: bool = False,
) -> list[tuple[Array, Count]]:
    """Judge recordings (S,) of int16 values, all at once.

    Args:
        network: what judges them.
        recordings: samples at 16 kHz, of any lengths.
        point: operating point.
        scale: factor on its thresholds.
        flush: whether the last samples, short of a whole token, are judged too.
        ended: whether `LAST_SAMPLES` of silence follow instead, as they do a stream that ends at the server.

    Returns:
        Per recording, posteriors (N, K) and the MACs they took.
    """
    cache = network.new_cache(max(1, len(recordings)), point, scale)
    tokens = [tokens_of(network.config, samples, flush=flush, ended=ended) for samples in recordings]
    logits: list[list[Array]] = [[] for _ in recordings]
    at = np.zeros(len(recordings), np.int64)
    lengths = np.array([len(t) for t in tokens], np.int64)
    while (rows := np.flatnonzero(at < lengths)).size:
        turn = np.minimum(max(1, BATCH_TOKENS // rows.size), lengths[rows] - at[rows])
        frames = np.concatenate([tokens[r][at[r] : at[r] + n] for r, n in zip(rows, turn, strict=True)])
        parts = np.split(network.step(cache, rows, frames, turn), np.cumsum(turn)[:-1])
        for row, part in zip(rows, parts, strict=True):
            logits[row].append(part)
        at[rows] += turn
    empty = np.zeros((0, len(network.config.labels)), np.float32)
    return [(softmax(np.concatenate(rows)) if rows else empty, count(cache, row)) for row, rows in enumerate(logits)]
