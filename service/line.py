"""The line in which slots wait for a turn of the engine.

Whose audio comes at the pace of real time is first; those who are ahead of it (a file, a replay, a flood) share what
room a batch has left. That is at least a fifth of it, so that they get through, and never so much that others have to
wait for it. Knows neither threads nor networks; whoever uses it holds a lock.
"""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from service.slots import Slot, Turn

TURN_TOKENS = 8
"""Tokens of one slot in one batch when many wait."""
BATCH_TOKENS = 64
"""Tokens that a batch may have anyway, so that few streams are not held up."""
BATCH_STREAMS = 200
"""Prompt streams in one batch; others wait for the next, so that nobody's verdict waits for a thousand others'."""
AHEAD_S = 1.0
"""How much more audio than time a slot may bring and still be one that keeps the pace, s."""


class Pace:
    """How far audio is ahead of the time in which it came: a bucket that empties `speed` times as fast as real time.

    What is counted may be anything else, `speed` of it a second.
    """

    def __init__(self, speed: float = 1.0) -> None:
        self._speed, self._ahead_s, self._seen_at = speed, 0.0, 0.0

    def ahead(self, now: float) -> float:
        """Audio not yet due, s."""
        return max(0.0, self._ahead_s - (now - self._seen_at) * self._speed)

    def came(self, audio_s: float, now: float) -> float:
        """Some audio came; return how much is ahead with it."""
        self._ahead_s, self._seen_at = self.ahead(now) + audio_s, now
        return self._ahead_s


class Line:
    """Slots with jobs, each once; `Slot.queued_at` is when it came."""

    def __init__(self) -> None:
        self._prompt: deque[Slot] = deque()
        self._ahead: deque[Slot] = deque()

    def join(self, slot: Slot, now: float) -> None:
        """Put a slot at the end, unless it waits already."""
        if slot.queued_at is None:
            slot.queued_at = now
            (self._ahead if slot.pace.ahead(now) > AHEAD_S else self._prompt).append(slot)

    def __len__(self) -> int:
        return len(self._prompt) + len(self._ahead)

    @property
    def hurried(self) -> bool:
        """Whether a batch should begin at once: it would not grow by waiting."""
        return bool(self._ahead) or len(self._prompt) >= BATCH_STREAMS

    def wait(self, now: float) -> float:
        """How long the next stream at the pace of real time has waited, s; streams ahead of it are not counted."""
        oldest = self._prompt[0].queued_at if self._prompt else None
        return 0.0 if oldest is None else now - oldest

    def longest(self, now: float) -> float:
        """How long any slot has waited, those who are ahead included, s."""
        oldest = (line[0].queued_at for line in (self._prompt, self._ahead) if line)
        return max((now - queued_at for queued_at in oldest if queued_at is not None), default=0.0)

    def take(self, now: float) -> list[Turn]:
        """Take one batch; streams with tokens left go to the end of the line."""
        count = min(len(self._prompt), BATCH_STREAMS)
        slots = [self._prompt.popleft() for _ in range(count)]
        share = max(TURN_TOKENS, BATCH_TOKENS // max(1, count))
        turns = [slot.take(share) for slot in slots]
        done = sum(turn.tokens for turn in turns)
        room = max(BATCH_TOKENS - done, done // 4)
        for _ in range(len(self._ahead)):
            if room <= 0:
                break
            slots.append(slot := self._ahead.popleft())
            turns.append(turn := slot.take(room))
            room -= turn.tokens
        self._return(slots, now)
        return turns

    def _return(self, slots: Sequence[Slot], now: float) -> None:
        for slot in slots:
            slot.queued_at = None
            if slot.jobs:
                self.join(slot, now)
