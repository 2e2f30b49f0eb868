"""Audio no faster than a server takes it: a small bucket, refilled at `limits.speed` times real time."""

from __future__ import annotations

import asyncio
import math
from contextlib import suppress
from typing import Final

from websockets.asyncio.client import ClientConnection
from websockets.exceptions import ConnectionClosed

from client.memory import Memory
from service.protocol import Keepalive

AHEAD_S: Final = 0.5
"""Audio that may go at once; no server allows less than a second, and some of it may arrive all together."""


class Throttle:
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


async def pump(socket: ClientConnection, memory: Memory, work: asyncio.Event) -> None:
    """Send what a stream has to say, as `work` tells, and a sign of life where that is nothing; end with the socket."""
    throttle = Throttle(memory.ready.limits.speed)
    with suppress(ConnectionClosed):  # the receiving side sees it as well, and acts
        while True:
            work.clear()
            for item in memory.unsent():
                await throttle.keep(memory.seconds(item))
                await socket.send(item)
            with suppress(TimeoutError):
                await asyncio.wait_for(work.wait(), memory.ready.limits.idle_s / 3)
                continue
            await socket.send(Keepalive().model_dump_json())
