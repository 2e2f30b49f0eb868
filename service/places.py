"""Places for streams: how many there are, who has one, who may have another. Knows no streams and no clock."""

from __future__ import annotations

from typing import TYPE_CHECKING

from service.errors import Behind, Capacity, Draining

if TYPE_CHECKING:
    from collections.abc import Callable


class Places:
    """The engine's places; what it does with `taken` is its own business.

    Attributes:
        most: streams admitted at most.
        room: streams that the machine keeps up with; see service/headroom.py.
        draining: no stream is admitted any more.
        reserved: places kept for streams that have not said which model they want.
        taken: places of streams, until they are cleared after them.
    """

    def __init__(self, most: int, lag_s: float, wait: Callable[[], float]) -> None:
        """All places free.

        Args:
            most: how many there are.
            lag_s: wait for a turn above which no stream is admitted, s.
            wait: how long streams wait for their turn at present, s.
        """
        self.most = self.room = most
        self.draining = False
        self.reserved = self.taken = 0
        self._lag_s, self._wait = lag_s, wait

    @property
    def used(self) -> int:
        """Places that are not free."""
        return self.taken + self.reserved

    def admit(self, *, begun: bool = False) -> None:
        """Check that one more stream would be served well.

        Args:
            begun: it came before the end did, which waits for it.

        Raises:
            Draining: the process is about to stop.
            Capacity: all places are taken.
            Behind: the streams that are here already wait too long.
        """
        if self.draining and not begun:
            raise Draining("the server is stopping; use another replica")
        if self.used >= self.most:
            raise Capacity(f"all {self.most} places are taken", retry_after=5)
        if self.used >= self.room:
            raise Capacity(f"this machine keeps up with {self.room} streams", retry_after=5)
        if (wait := self._wait()) > self._lag_s:
            raise Behind(f"the server is {wait:.1f} s behind", retry_after=5)

    def reserve(self, *, begun: bool = False) -> None:
        """Keep a place for a stream to come; see `admit`."""
        self.admit(begun=begun)
        self.reserved += 1

    def cancel(self) -> None:
        """Give a reserved place back."""
        self.reserved -= 1
