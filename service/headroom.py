"""How many paced streams this process keeps up with: measured, not believed. Knows no streams, only what they cost.

A stream counts as one second of audio per second, whether it is silent for now or pushes a file: who pushes waits for
turns, and who is silent may speak up at any moment.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

LIMIT = 0.95
"""Share of its time for which a thread may be busy; beyond that, precision is shed and nobody is admitted."""
TELLING = 0.7
"""Share above which measured costs are believed: an idle process works in small batches, which cost more."""
WEIGHT = 0.3
"""Of the newest measurement."""


@dataclass(frozen=True, slots=True)
class Usage:
    """Time spent since a process began, s.

    Attributes:
        engine: by the engine's thread on batches, waits for the processor included.
        loop: by the event loop's thread, of the processor.
        audio: seconds of audio that were judged for it.
    """

    engine: float
    loop: float
    audio: float

    def __sub__(self, earlier: Usage) -> Usage:
        """What was spent in between."""
        return Usage(self.engine - earlier.engine, self.loop - earlier.loop, self.audio - earlier.audio)

    def share(self, seconds: float, cores: int) -> float:
        """How busy the busier thread was in so many seconds, or both of them where cores are scarce."""
        return max(self.engine, self.loop, (self.engine + self.loop) / cores) / seconds


class Headroom:
    """An estimate that follows what streams really cost.

    Attributes:
        cost: share of this process that a paced stream takes.
    """

    def __init__(self, rehearsed: Usage, cores: int | None = None) -> None:
        """Begin with what a rehearsal cost."""
        self._cores = cores or len(os.sched_getaffinity(0))
        self._rehearsed = self.cost = rehearsed.share(rehearsed.audio, self._cores)

    def observe(self, spent: Usage, seconds: float, *, shedding: bool = False) -> None:
        """Take what was spent in the last `seconds` of wall time; what shedding saves is a reserve, no room."""
        told = spent.audio > 0 and spent.share(seconds, self._cores) > TELLING
        cost = spent.share(spent.audio, self._cores) if told else self._rehearsed
        if cost > self.cost or not shedding:
            self.cost += WEIGHT * (cost - self.cost)

    @property
    def streams(self) -> int:
        """How many fit, at least one."""
        return max(1, int(LIMIT / self.cost))
