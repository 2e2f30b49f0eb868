"""What is posted: bodies, as far and as long as they may come, and as many as may be in memory. Knows no HTTP."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from service.errors import Capacity, Idle, UnsupportedAudio
from service.protocol import TooLong

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from service.settings import Settings

AT_A_TIME: Final = 8
"""Bodies of the greatest length that may be in memory, or as many shorter ones as have their bytes."""


class Bodies:
    """Those of one process.

    Attributes:
        held: bytes in memory.
        here: how many are on their way, or dealt with.
    """

    def __init__(self, settings: Settings, on_left: Callable[[], None]) -> None:
        self._longest, self._patience_s = settings.clip_bytes, settings.idle_s
        self.held = self.here = 0
        self._on_left = on_left

    @asynccontextmanager
    async def whole(self, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """A body, which is held until this is left.

        Raises:
            TooLong, Idle, Capacity: it, its sender, or all of them ask for too much.
            UnsupportedAudio: there is nothing in it.
        """
        data, size = bytearray(), 0
        self.here += 1
        try:
            await self._take(parts, data)
            if not data:
                raise UnsupportedAudio("the body is empty")
            size, body = len(data), bytes(data)
            data.clear()  # what is held is held once
            yield body
        finally:
            self.held -= len(data) + size
            self.here -= 1
            self._on_left()

    async def _take(self, parts: AsyncIterator[bytes], data: bytearray) -> None:
        try:
            async with asyncio.timeout(self._patience_s):
                async for part in parts:
                    data += part
                    self.held += len(part)
                    if len(data) > self._longest:
                        raise TooLong(f"a clip may have {self._longest} bytes")
                    if self.held > AT_A_TIME * self._longest:
                        raise Capacity("too many long clips at a time", retry_after=5)
        except TimeoutError:
            raise Idle(f"the clip did not come within {self._patience_s:g} s") from None
