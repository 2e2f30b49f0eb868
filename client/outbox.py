"""What a client said and may have to say again: audio and messages, whatever they are, in their order.

A server acknowledges samples (`checkpoint.sample`); to go on elsewhere it needs what came after, and
`ready.replay_samples` before. Everything older is forgotten here, so memory is bounded by whoever fills this.

Knows no socket and no clock. Offsets are bytes of audio since the stream began.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import Generic, TypeVar

Message = TypeVar("Message")


class Outbox(Generic[Message]):
    """Audio and messages in order, with a cursor at the first that this connection has not sent.

    Attributes:
        end: offset after the newest audio.
        sent: offset after the newest audio that this connection sent.
        acknowledged: offset before which the server has judged everything.
    """

    def __init__(self, frame: int, piece: int) -> None:
        """Start empty.

        Args:
            frame: bytes of one sample of all channels.
            piece: longest audio message, bytes.
        """
        self.end = self.sent = self.acknowledged = 0
        self._frame, self._piece = frame, max(piece // frame, 1) * frame
        self._items: deque[tuple[int, bytes | Message]] = deque()
        self._cursor = 0
        self._rest = b""

    @property
    def unjudged(self) -> int:
        """Bytes of audio that the server has not acknowledged, sent or not."""
        return self.end - self.acknowledged

    def add_audio(self, data: bytes) -> None:
        """Append bytes in any split; half a sample waits for its other half."""
        data = self._rest + data
        whole = len(data) // self._frame * self._frame
        self._rest = data[whole:]
        for start in range(0, whole, self._piece):
            piece = data[start : min(start + self._piece, whole)]
            self._items.append((self.end, piece))
            self.end += len(piece)

    def add_message(self, message: Message) -> None:
        """Append a message that belongs after all audio so far."""
        self._items.append((self.end, message))

    def acknowledge(self, sample: int, replay: int) -> list[Message]:
        """Forget what ends `replay` samples before `sample`; return the messages among it."""
        self.acknowledged = max(self.acknowledged, min(sample * self._frame, self.end))
        oldest, messages = self.acknowledged - replay * self._frame, []
        while self._cursor and len(self._items) > 1 and self._items[1][0] <= oldest:
            _, item = self._items.popleft()
            self._cursor -= 1
            if not isinstance(item, bytes):
                messages.append(item)
        return messages

    def drop(self, message: Message) -> bool:
        """Forget the first message like this one; return whether there was one."""
        place = next((place for place, (_, item) in enumerate(self._items) if item == message), None)
        if place is None:
            return False
        del self._items[place]
        self._cursor -= place < self._cursor
        return True

    def rewind(self) -> int:
        """Everything that is kept is to be sent again; return the sample at which it begins."""
        self._cursor = 0
        self.sent = self._items[0][0] if self._items else self.end
        return self.sent // self._frame

    def take(self, window: int) -> Iterator[bytes | Message]:
        """Yield what is to be sent next while less than `window` bytes are sent and not acknowledged."""
        while self._cursor < len(self._items) and self.sent - self.acknowledged < window:
            offset, item = self._items[self._cursor]
            self._cursor += 1
            if isinstance(item, bytes):
                self.sent = offset + len(item)
            yield item
