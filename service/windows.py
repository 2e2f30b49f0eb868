"""Networks that judge a second of audio at a time, such as the stock Keyword Transformer: for clips, not for streams.

Every window is judged from nothing, and no keyword has a calibrated threshold: this door exists to compare with
published networks on one's own recordings. Knows neither files nor HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

import numpy as np

from models import kwt_weights
from models.checkpoint import DENSE
from models.config import SILENCE, UNKNOWN
from models.data import pad_clip
from models.kwt_clip import ClipNetwork
from service.audio import Array
from service.detector import Detector, Rule
from service.errors import UnknownModel

HOP: Final = 1_600
"""Samples between the beginnings of two windows of a clip longer than one."""
RULE: Final = Rule(threshold=0.8, refractory=5)


@dataclass(frozen=True)
class ClipModel:
    """A network that judges clips, under the name by which requests ask for it."""

    name: str
    fingerprint: str
    network: ClipNetwork

    @classmethod
    def load(cls, name: str, path: Path) -> Self:
        """Read what `deltaspot model import` wrote.

        Raises:
            KWTFileError: for another file.
        """
        config, weights = kwt_weights.load(path)
        return cls(name, kwt_weights.fingerprint(config, weights), ClipNetwork(config, weights))

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the posteriors' columns."""
        return self.network.config.labels

    @property
    def rules(self) -> dict[str, Rule]:
        """What counts as heard; a row of posteriors is one window."""
        return {word: RULE for word in self.labels if word not in {SILENCE, UNKNOWN}}

    def detector(self, point: str | None) -> Detector:
        """What turns posteriors into detections.

        Raises:
            UnknownModel: for an operating point other than `DENSE`.
        """
        if point not in {None, DENSE}:
            raise UnknownModel(f"{self.name!r} has the point {DENSE} only", "point")
        return Detector(self.labels, self.rules, window=1, margin=0.2)


@dataclass
class Windows:
    """One clip's windows, `HOP` apart; the last one is filled up with zeros, and a short clip with zeros around it.

    Attributes:
        samples: those fed so far.
        judged: windows judged so far; window n begins at n * HOP.
    """

    network: ClipNetwork
    samples: int = 0
    judged: int = 0
    _rest: Array = field(default_factory=lambda: np.zeros(0, np.float32))

    def feed(self, samples: Array) -> Array:
        """Samples (S,) of int16 values -> posteriors (N, K) of the windows that they complete."""
        self.samples += len(samples)
        self._rest = np.concatenate((self._rest, samples))
        return self._stack(self._complete())

    def flush(self) -> Array:
        """Posteriors (N, K), N 0 or 1, of what no window has seen to its end."""
        size = self.network.config.clip_samples
        if self.judged == 0:
            return self._stack(iter([pad_clip(self._rest)]))
        fresh = len(self._rest) - (size - HOP)
        return self._stack(iter([np.pad(self._rest, (0, size - len(self._rest)))] if fresh > 0 else []))

    def _complete(self) -> Iterator[Array]:
        size = self.network.config.clip_samples
        while len(self._rest) >= size:
            yield self._rest[:size]
            self._rest = self._rest[HOP:]

    def _stack(self, windows: Iterator[Array]) -> Array:
        rows = [self.network.judge(window) for window in windows]
        self.judged += len(rows)
        return np.array(rows, np.float32).reshape(-1, len(self.network.config.labels))
