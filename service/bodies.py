"""What is posted: bodies, as far and as long as they may come, and as many as may be in memory. Knows no HTTP."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

from service.errors import Capacity, Idle, TooLong

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from service.settings import Settings

AT_A_TIME: Final = 8
"""Bodies of the greatest length that may be in memory, or as many shorter ones as have their bytes."""


class Bodies:
    """Those of one process.

    Attributes:
        held: bytes in memory.
    """

    def __init__(self, settings: Settings) -> None:
        self._longest, self._patience_s = settings.clip_bytes, settings.idle_s
        self.held = 0

    @asynccontextmanager
    async def whole(self, parts: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
        """A body, which is held until this is left.

        Raises:
            TooLong, Idle, Capacity: it, its sender, or all of them ask for too much.
        """
        taken: list[bytes] = []
        try:
            await self._take(parts, taken)
            yield b"".join(taken)
        finally:
            self.held -= sum(map(len, taken))

    async def _take(self, parts: AsyncIterator[bytes], taken: list[bytes]) -> None:
        size = 0
        try:
            async with asyncio.timeout(self._patience_s):
                async for part in parts:
                    taken.append(part)
                    size, self.held = size + len(part), self.held + len(part)
                    if size > self._longest:
                        raise TooLong(f"a clip may have {self._longest} bytes")
                    if self.held > AT_A_TIME * self._longest:
                        raise Capacity("too many long clips at a time", retry_after=5)
        except TimeoutError:
            raise Idle(f"the clip did not come within {self._patience_s:g} s") from None
