"""The self-check: now and then a stretch of a live stream is judged again, densely and from nothing.

A posterior of the dense network depends on the last `receptive_tokens` tokens only, the first of which has frames of
those before it, so a recording of the network's input that is longer than that, or that reaches back to the stream's
beginning, is the whole history. What the gates
held back, sums that drift and a cache that was damaged all show as a difference of posteriors.

`SelfCheck.watch` stands in the hot path and only takes notes; `SelfCheck.recompute` does the work, in another thread.
"""

from __future__ import annotations

import logging
import random
from collections import deque
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import DENSE
from models.engines import AnyCache, AnyNetwork
from models.features import Array
from models.offline import softmax

COMPARED_TOKENS = 256
"""Tokens compared in one check: 7.7 s at 30 ms."""
BOUND = 0.5
"""Mean difference of posteriors over a check above which a stream counts as adrift.

`deltaspot evaluate self-check --data DIR --hours 1` says why: gates hold back changes by design, and over an hour of
words in noise nearly no check of a healthy stream came to it (model 8831b5e459cf: at most 0.46 at the point `shipped`,
0.35 in 999 of 1,000; at `aggressive` 0.50 and 0.47), while most checks against the answer to another stream go beyond
it (0.61 at the median).
"""
MOST_FOLLOWED = 8
"""Recordings under way at most; what a closed stream left behind is crowded out."""

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Recording:
    """What a stream heard and what was said of it.

    started: tokens that the stream had seen before. frames: parts (n, stride, bands). posteriors: parts (n, K).
    """

    started: int
    frames: list[Array] = field(default_factory=list)
    posteriors: list[Array] = field(default_factory=list)
    tokens: int = 0

    def add(self, frames: Array, posteriors: Array) -> None:
        """The stream's next tokens."""
        self.frames.append(frames.copy())
        self.posteriors.append(posteriors.copy())
        self.tokens += len(frames)


class SelfCheck:
    """Checks streams of one cache; one thread watches, one recomputes."""

    def __init__(self, network: AnyNetwork, *, share: float, bound: float = BOUND, seed: int | None = None) -> None:
        self.network, self.share, self.bound = network, share, bound
        config = network.config
        self._warm_up = config.receptive_tokens - 1 + (config.kernel - 1) // config.stride
        self._length = self._warm_up + COMPARED_TOKENS
        self._random = random.Random(seed)  # noqa: S311 - a sample, not a secret
        self._credit = 0.0
        self._following: dict[int, Recording] = {}
        self._finished: deque[Recording] = deque()

    def watch(
        self, cache: AnyCache, rows: NDArray[np.int64], counts: NDArray[np.int64], frames: Array, posteriors: Array
    ) -> None:
        """Take notes after a step; arguments as in `Network.step`, and the posteriors (N, K) that came of it."""
        self._credit += self.share * len(frames) / self._length
        chosen = -1
        if self._credit >= 1.0:
            self._credit -= 1.0
            chosen = int(self._random.choice(rows))
        if chosen < 0 and self._following.keys().isdisjoint(rows.tolist()):
            return
        ends = np.cumsum(counts)
        for row, end, count in zip(rows.tolist(), ends.tolist(), counts.tolist(), strict=True):
            if row == chosen or row in self._following:
                part = slice(end - count, end)
                self._note(row, int(cache.tokens[row]) - count, frames[part], posteriors[part])

    def _note(self, row: int, seen: int, frames: Array, posteriors: Array) -> None:
        recording = self._following.pop(row, None)
        if recording and recording.started + recording.tokens != seen:
            self._finish(recording)  # the stream ended, or began anew
            recording = None
        recording = recording or Recording(seen)
        recording.add(frames, posteriors)
        if recording.tokens >= self._length:
            self._finish(recording)
            return
        self._following[row] = recording
        if len(self._following) > MOST_FOLLOWED:
            self._finish(self._following.pop(next(iter(self._following))))

    def _finish(self, recording: Recording) -> None:
        if recording.tokens > self._unknown(recording):
            self._finished.append(recording)

    def _unknown(self, recording: Recording) -> int:
        """Tokens at a recording's beginning whose past it does not hold."""
        return min(recording.started, self._warm_up)

    def recompute(self) -> list[Array]:
        """Judge again what was recorded since the last call.

        Returns:
            For each check, by token, the largest difference of a posterior (n,), 0..1.
        """
        checks = []
        while self._finished:
            recording = self._finished.popleft()
            frames = np.concatenate(recording.frames)
            cache = self.network.new_cache(1, DENSE)
            dense = softmax(self.network.step(cache, np.zeros(1, np.int64), frames, np.array([len(frames)])))
            difference = np.abs(dense - np.concatenate(recording.posteriors)).max(axis=1)[self._unknown(recording) :]
            if (mean := float(difference.mean())) > self.bound:
                log.warning("a stream is adrift: posteriors differ by %.3f from the dense network's, on average", mean)
            checks.append(difference)
        return checks
