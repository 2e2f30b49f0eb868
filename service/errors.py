"""Every error that the other end is told about, in one tree.

    WireError                  in service/codes.py; its `code` is a CloseCode, its `message` written for a person
    ├── BadMessage             4400  in service/protocol.py, since both ends raise it
    │   └── UnknownModel       4400  a model or operating point that is not served here
    ├── Unauthorised           4401
    ├── Forbidden              4403
    ├── Idle                   4408
    ├── TooLong                4413  in service/protocol.py, for the same reason
    ├── UnsupportedAudio       4415
    ├── TooFast                4429  audio, messages or requests, faster than allowed
    ├── QueueFull              4430
    ├── ShareSpent             4431
    ├── Internal               4500
    └── Capacity               4503  carries `retry_after`
        ├── NotReady           4503
        ├── Behind             4503
        └── Draining           4504

Before the upgrade, and over REST, the same error is an HTTP response with the status of `HTTP_STATUS`.
"""

from __future__ import annotations

from typing import Final

from service.protocol import BadMessage, CloseCode, Failed, WireError

HTTP_STATUS: Final = {
    CloseCode.BAD_MESSAGE: 422,
    CloseCode.UNAUTHORISED: 401,
    CloseCode.FORBIDDEN: 403,
    CloseCode.IDLE: 408,
    CloseCode.TOO_LONG: 413,
    CloseCode.UNSUPPORTED_AUDIO: 415,
    CloseCode.TOO_FAST: 429,
    CloseCode.QUEUE_FULL: 503,
    CloseCode.SHARE_SPENT: 429,
    CloseCode.INTERNAL: 500,
    CloseCode.CAPACITY: 503,
    CloseCode.DRAINING: 503,
}


class UnknownModel(BadMessage):
    """The model or operating point asked for is not served here."""


class Unauthorised(WireError):
    """No key, or one that nobody was given."""

    code = CloseCode.UNAUTHORISED


class Forbidden(WireError):
    """A known key without this scope, or a page from an origin that is not allowed."""

    code = CloseCode.FORBIDDEN


class Idle(WireError):
    """Nothing was heard of the client for too long."""

    code = CloseCode.IDLE


class UnsupportedAudio(WireError):
    """Bytes that are not the audio they were said to be."""

    code = CloseCode.UNSUPPORTED_AUDIO


class TooFast(WireError):
    """More audio, messages or requests per second than allowed."""

    code = CloseCode.TOO_FAST


class QueueFull(WireError):
    """A queue between the client and its verdicts ran over; nothing is dropped silently, so the stream ends."""

    code = CloseCode.QUEUE_FULL


class ShareSpent(WireError):
    """A connection brought all the audio that it may; the stream goes on with the next."""

    code = CloseCode.SHARE_SPENT


class Internal(WireError):
    """Our fault. The message says no more than that; the log does."""

    code = CloseCode.INTERNAL


class Capacity(WireError):
    """No room now.

    Attributes:
        retry_after: when to ask again, in seconds.
    """

    code = CloseCode.CAPACITY

    def __init__(self, message: str, field: str | None = None, *, retry_after: int = 1) -> None:
        """Keep when to ask again."""
        super().__init__(message, field)
        self.retry_after = retry_after


class NotReady(Capacity):
    """The models are still being loaded."""


class Behind(Capacity):
    """The streams that are here already wait too long."""


class Draining(Capacity):
    """The process is about to stop."""

    code = CloseCode.DRAINING


REASONS: Final[dict[type[WireError], str]] = {NotReady: "not_ready", Behind: "lag"}
"""Why somebody was turned away, where an operator wants to know more than the client."""


def reason(error: WireError) -> str:
    """Why somebody was turned away, as metrics and log lines have it."""
    return REASONS.get(type(error), error.code.wire)


def failed(error: WireError) -> Failed:
    """What is told of an error on the wire."""
    return Failed(code=error.code.wire, message=error.message, field=error.field)
