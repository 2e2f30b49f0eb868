"""Everything that a client raises, in one tree; each message is one sentence for a person.

ClientError
├── SettingError     an argument of `connect` that no server would take, or no server's address
├── CannotConnect    no server there, or it refuses this client
├── StreamFailed     a stream ended for a reason that trying again does not mend; carries the close code
├── StreamFinished   something was sent after `finish`
└── SourceError      no microphone, no such file, or a file that is no audio
"""

from __future__ import annotations

from service.protocol import CloseCode


class ClientError(Exception):
    """Root of the tree."""


class SettingError(ClientError):
    """An argument of `connect` is none that the protocol knows, or no address; the message names it."""


class CannotConnect(ClientError):
    """There is no server, it is not reachable, or it refuses this client before the stream begins."""


class StreamFailed(ClientError):
    """The server ended the stream.

    Attributes:
        code: why, from the table of close codes.
        field: the field of `configure` at fault, as a dotted path, if there is one.
    """

    def __init__(self, code: CloseCode, message: str, field: str | None = None) -> None:
        """Keep the reason."""
        super().__init__(f"{message} ({code.wire})")
        self.code, self.field = code, field


class StreamFinished(ClientError):
    """`finish` was called, and nothing can follow; a new stream can."""


class SourceError(ClientError):
    """Audio cannot be had from where it should come."""
