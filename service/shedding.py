"""Precision is shed before anybody is refused: by how much delta thresholds are coarsened, from how long turns wait.

What counts is a queue that stays, as in CoDel (Nichols and Jacobson 2012): the shortest wait between two looks. One
that comes and goes is a hiccup. Knows no streams and no clock.
"""

from __future__ import annotations

EVERY_S = 0.1
"""Time between two looks at the waits in between."""
COARSEST = 2.1
"""Largest factor on the delta thresholds: as far as `models.gated` trains for, which is 1.6 times the learned ones, and
`shipped` has three quarters of these. At 4, posteriors are nearly a stranger's
(`deltaspot evaluate self-check --scale 4`)."""
RAISE, LOWER = 1.3, 1.04
"""Factors at every look: all is shed within a third of a second, since a crowd comes faster than it leaves."""


class Shedding:
    """A factor on all delta thresholds.

    Attributes:
        scale: the factor; above 1 while precision is shed.
    """

    def __init__(self, lag_s: float, now: float) -> None:
        """Shed when no turn waits for less than a twelfth of `lag_s`; get over it when none waits for a sixteenth."""
        self.scale = 1.0
        self._waits: list[float] = []
        self._lag_s, self._looked_at = lag_s, now

    def waited(self, seconds: float) -> None:
        """Note how long a batch's slots waited for their turn, at most."""
        self._waits.append(seconds)

    def look(self, now: float) -> float | None:
        """Adapt the factor, if it is time to; return the longest wait since the last time."""
        if now - self._looked_at < EVERY_S:
            return None
        waits, self._waits, self._looked_at = self._waits, [], now
        worst = max(waits, default=0.0)
        if min(waits, default=0.0) > self._lag_s / 12:
            self.scale = min(COARSEST, self.scale * RAISE)
        elif worst < self._lag_s / 16:
            self.scale = max(1.0, self.scale / LOWER)
        return worst
