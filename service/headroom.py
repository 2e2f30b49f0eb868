"""How many paced streams this process keeps up with: measured, not believed. Knows no streams, only what they cost.

A stream counts as one second of audio per second, whether it is silent for now or pushes a file: who pushes waits for
turns, and who is silent may speak up at any moment. Precision is shed before anybody is refused, so it counts as shed.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from pathlib import Path

LIMIT = 0.95
"""Share of its time for which a thread may be busy, once precision is shed; beyond that, nobody is admitted."""
TELLING = 0.7
"""Share above which measured costs are believed: an idle process works in small batches, which cost more."""
WEIGHT = 0.3
"""Of the newest measurement."""
DEAREST = 8.0
"""Largest cost that is believed, over the rehearsed one: beyond that the time did not go into audio, but into streams
that come and go or requests; and if the machine has become that slow, waits refuse."""
QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""Where Linux tells a container how much of the processors it may have: microseconds, or `max`, in so many of them."""


def processors(quota: Path = QUOTA) -> float:
    """How many this process may use at a time; where a container's quota is less, that. macOS has no affinity."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        share, period = quota.read_text(encoding="ascii").split()
        return min(there, int(share) / int(period))
    except (OSError, ValueError):  # no container, or no limit
        return there


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

    def share(self, seconds: float, cores: float) -> float:
        """How busy the busier thread was in so many seconds, or both of them where cores are scarce."""
        return max(self.engine, self.loop, (self.engine + self.loop) / cores) / seconds


class Headroom:
    """An estimate that follows what streams really cost.

    Attributes:
        cost: share of this process that a paced stream takes, once precision is shed.
    """

    def __init__(self, rehearsed: Usage, shed: float = 1.0, cores: float | None = None) -> None:
        """Begin with what a rehearsal cost.

        Args:
            rehearsed: with nothing shed.
            shed: the engine's share of that when all is shed that may be.
            cores: as many as this process may use, if None.
        """
        self._cores = cores or processors()
        self._shed = shed
        self._rehearsed = self.cost = self._share(rehearsed)

    def observe(self, spent: Usage, seconds: float, *, shedding: bool = False) -> None:
        """Take what was spent in the last `seconds` of wall time; while precision is shed, waits alone refuse."""
        if shedding:
            return
        told = spent.audio > 0 and spent.share(seconds, self._cores) > TELLING
        cost = min(self._share(spent), DEAREST * self._rehearsed) if told else self._rehearsed
        self.cost += WEIGHT * (cost - self.cost)

    def _share(self, spent: Usage) -> float:
        """A second of audio's share of this process, if all that may be shed had been."""
        return replace(spent, engine=spent.engine * self._shed).share(spent.audio, self._cores)

    @property
    def streams(self) -> int:
        """How many fit, at least one."""
        return max(1, int(LIMIT / self.cost))
