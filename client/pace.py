"""Audio no faster than a server takes it: a small bucket, refilled at `limits.speed` times real time."""

from __future__ import annotations

import asyncio
import math
from typing import Final

AHEAD_S: Final = 0.5
"""Audio that may go at once; no server allows less than a second, and some of it may arrive all together."""


class Pace:
    """Of one connection."""

    def __init__(self, speed: float) -> None:
        """Begin with a full bucket.

        Args:
            speed: times real time.
        """
        self._speed, self._due = speed, -math.inf

    async def keep(self, seconds: float) -> None:
        """Wait until audio of this length may be sent."""
        now = asyncio.get_running_loop().time()
        self._due = max(self._due, now - AHEAD_S / self._speed) + seconds / self._speed
        if self._due > now:
            await asyncio.sleep(self._due - now)
