"""Why a stream ends and what it is warned of: every number and name of the wire, and the error that carries one.

Knows nothing of messages; service/protocol.py puts these codes into them, and is where both ends import them from.
"""

from __future__ import annotations

from enum import IntEnum, StrEnum
from typing import Self


class CloseCode(IntEnum):
    """Why a stream ended: the WebSocket's close code, its name on the wire, what it means, whether to try again."""

    description: str
    retry: bool

    def __new__(cls, value: int, description: str, retry: bool = False) -> Self:
        """An integer that carries its documentation."""
        code = int.__new__(cls, value)
        code._value_, code.description, code.retry = value, description, retry
        return code

    NORMAL = 1000, "The client asked for the end; everything it sent was judged."
    BAD_MESSAGE = 4400, "A message is no JSON object of this protocol, or came out of order."
    UNAUTHORISED = 4401, "The key or ticket is missing, wrong or expired."
    FORBIDDEN = 4403, "The key is known but may not do this."
    IDLE = 4408, "Neither audio nor keepalive arrived for `limits.idle_s` seconds."
    TOO_LONG = 4413, "A frame or message is longer than its limit."
    UNSUPPORTED_AUDIO = 4415, "The audio is not what `configure` said, or holds values that are no numbers."
    TOO_FAST = 4429, "Audio came faster than `limits.speed` times real time, or more than 1,000 text messages a second."
    QUEUE_FULL = 4430, "The client does not read its messages, or the server fell behind; resume elsewhere.", True
    SHARE_SPENT = 4431, "This connection has had its `limits.stream_s` of audio; resume on a new one.", True
    INTERNAL = 4500, "The server's fault; it is logged under the session's id.", True
    CAPACITY = 4503, "No room for another stream; try another replica or later.", True
    DRAINING = 4504, "The server is stopping; resume at once, on another replica.", True

    @property
    def wire(self) -> str:
        """The name used in `error.code` and `closed.reason`."""
        return self.name.lower()


class WarningCode(StrEnum):
    """What a `warning` is about; none of them ends the stream."""

    description: str

    def __new__(cls, value: str, description: str) -> Self:
        """A string that carries its documentation."""
        code = str.__new__(cls, value)
        code._value_, code.description = value, description
        return code

    DRAINING = "draining", "The server is about to stop; the stream will be closed with `draining`."
    LAGGING = "lagging", "Judging is behind the audio by more than the server's limit."
    SHEDDING = "shedding", "The server is busy and judges with coarser thresholds for now."
    RESTORED = "restored", "The server is no longer busy; thresholds are back where they were."
    UNKNOWN_DETECTION = "unknown_detection", "A `feedback` names a detection that this stream did not have."


class WireError(Exception):
    """Root of the tree of errors that the other end is told about (see service/errors.py).

    Attributes:
        code: why; becomes the WebSocket's close code.
        message: one sentence for a person.
        field: the field at fault, as a dotted path, if there is one.
    """

    code: CloseCode = CloseCode.INTERNAL

    def __init__(self, message: str, field: str | None = None) -> None:
        """Keep the sentence and the field at fault."""
        super().__init__(message)
        self.message, self.field = message, field
