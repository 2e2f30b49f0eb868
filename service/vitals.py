"""What the engine knows of one stream, in the words of `service.spec.Vitals`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from models.counting import nothing
from service.engine import clock

if TYPE_CHECKING:
    from models.counting import Count
    from service.slots import Slot


class Vitals:
    """Readings of a slot.

    Attributes:
        arrival: when the newest judged audio came, on the engine's clock.
    """

    def __init__(self, slot: Slot) -> None:
        self.slot, self.arrival = slot, clock()
        self._worked = nothing(slot.hosted.spec.config)
        self._shares: list[float] = []

    @property
    def latency_ms(self) -> float:
        """Age of the newest judged audio."""
        return max(0.0, (clock() - self.arrival) * 1000)

    @property
    def lag_ms(self) -> float:
        """Age of the oldest audio not yet judged."""
        return max(0.0, self.slot.lag_s * 1000)

    @property
    def compute_s(self) -> float:
        """Time the model has spent on this stream."""
        return self.slot.compute_s

    @property
    def scale(self) -> float:
        """Factor on the delta thresholds."""
        return self.slot.scale

    @property
    def cache_bytes(self) -> int:
        """Memory inside the model."""
        return self.slot.hosted.cache.bytes_per_row

    @property
    def macs(self) -> Count:
        """Work since the stream began."""
        return self.slot.count

    def work(self) -> list[float]:
        """Share of dense work done since the last call: stem, blocks in order, read-out.

        Where no token is new, it is as it was: the engine may be ahead of what is told, and amid the next tokens.
        """
        now = self.slot.count
        if now.tokens == self._worked.tokens:
            return self._shares
        since, self._worked = now - self._worked, now
        blocks = len(since.layers) - 2
        inner = sum(since.causal.values()) - since.causal["stem"] - since.causal["readout"]
        dense = np.array([since.causal["stem"], *[inner / blocks] * blocks, since.causal["readout"]])
        self._shares = np.round(since.layers.sum(axis=1) / dense, 4).tolist()
        return self._shares
