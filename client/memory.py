"""What a stream remembers from one connection to the next: what was said, how far it was judged, what is still asked.

Knows no socket and no clock: client/connection.py sends what there is, and hands over what comes.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator
from typing import Final

from client.errors import StreamFinished
from client.outbox import Outbox
from service.protocol import (
    Checkpoint,
    ClientMessage,
    Close,
    CloseCode,
    Closed,
    Configure,
    Detection,
    Encoding,
    Failed,
    Feedback,
    Heartbeat,
    Marker,
    Ready,
    Resume,
    Scores,
    ServerMessage,
    Totals,
    Warned,
)

IN_FLIGHT_S: Final = 4.0
"""Audio that may be sent before it is acknowledged, s: bounds what a replay pushes at once."""
BACKLOG_S: Final = 60.0
"""Audio kept through an outage, s; then `send` waits, which is the back-pressure."""
SAMPLE_BYTES: Final = {Encoding.S16LE: 2, Encoding.F32LE: 4, Encoding.MULAW: 1, Encoding.ALAW: 1}
TIMES: Final = ("at_s", "start_s", "end_s")
"""Fields of messages that are stream time."""
SLACK: Final = 0.001
"""How far two reckonings of one token's time may lie apart, in tokens; a sample is twice as long."""
News = Ready | Detection | Scores | Marker | Heartbeat | Warned | Closed
"""Messages of the server that a client is told of; a `Failed` is raised, or only breaks the connection."""


class Memory:
    """The client's side of one stream, whatever carries it.

    Attributes:
        configure: how the stream shall be after all that was said.
        ready: the server's answer to it, of the connection in use.
        failed: why the connection in use is about to be closed, if the server said so.
        finished: nothing more may be said.
        totals: the stream in numbers, once it is closed: `audio_s` and `detections` of all connections, the rest of the
            last one.
        stuck_since: when the trouble began, on whatever clock; None while the stream goes forward.
    """

    ready: Ready

    def __init__(self, configure: Configure) -> None:
        """Remember nothing but how the stream shall be."""
        self.configure = self._begin = configure
        self.failed: Failed | None = None
        self.finished = False
        self.totals: Totals | None = None
        self.stuck_since: float | None = None
        self._frame = SAMPLE_BYTES[configure.encoding] * configure.channels
        self._second = self._frame * configure.sample_rate
        self._outbox: Outbox[ClientMessage] = Outbox(self._frame, piece=self._second // 4)
        self._checkpoint: Checkpoint | None = None
        self._origin, self._told = 0, -1
        self._heard, self._scored_s = 0, 0.0
        self._verdicts: deque[str] = deque()

    @property
    def full(self) -> bool:
        """Whether as much audio is kept as may be."""
        return self._outbox.unjudged > self._window(BACKLOG_S)

    @property
    def overdue(self) -> bool:
        """Whether more audio is unacknowledged than may be between two heartbeats."""
        return self._outbox.unjudged >= self._window(0)

    def add(self, said: bytes | ClientMessage) -> None:
        """Audio, in any split, or a message that belongs after all audio so far; feedback has no place among it.

        Raises:
            StreamFinished: if `Close` was said before.
        """
        if self.finished:
            raise StreamFinished("this stream is finished; `connect` begins another one")
        if isinstance(said, bytes):
            return self._outbox.add_audio(said)
        if isinstance(said, Feedback):
            return self._verdicts.append(said.model_dump_json())
        self.finished = isinstance(said, Close)
        if isinstance(said, Configure):
            self.configure = said
        return self._outbox.add_message(said)

    def hello(self) -> Configure:
        """What a new connection begins with: the settings that held where all that is to be sent once more begins.

        Feedback is not: a resumed stream knows no detection of the connections before.
        """
        self.failed, sample = None, self._outbox.rewind()
        self._verdicts.clear()
        if self._checkpoint is None:
            self._origin = sample
        resume = self._checkpoint and Resume(token=self._checkpoint.token, sample=sample - self._origin)
        return self._begin.model_copy(update={"resume": resume})

    def begin_anew(self) -> None:
        """No server goes on from the checkpoint: to the next, what is kept is all of a stream; its times stay ours."""
        if self._checkpoint is not None:
            self._told = max(self._told, self._origin + self._checkpoint.sample)
        self._checkpoint = None

    def unsent(self) -> Iterator[bytes | str]:
        """What to send next, keeping at most `IN_FLIGHT_S` unacknowledged."""
        yield from self._feedback()
        for item in self._outbox.take(self._window(IN_FLIGHT_S)):
            yield from self._fitting(item)
            yield from self._feedback()  # which do not wait for the end of the audio

    def seconds(self, item: bytes | str) -> float:
        """Length of audio, s; a message has none."""
        return len(item) / self._second if isinstance(item, bytes) else 0.0

    def note(self, message: ServerMessage | None) -> News | None:
        """Keep what a message says about the stream; return what is news to whoever listens."""
        if message is None or isinstance(message, Failed):
            self.failed = message or self.failed
            return None
        if isinstance(message, Marker):
            if not self._outbox.drop(message):
                return None  # which nobody asked for
        elif isinstance(message, Closed):
            if message.reason != CloseCode.NORMAL.wire:
                return None  # this connection ends; the close code tells whether the stream goes on
            whole = {"audio_s": self._outbox.end / self._second, "detections": self._heard}
            self.totals = message.totals.model_copy(update=whole)
            return message.model_copy(update={"totals": self.totals})
        elif isinstance(message, Ready):
            self.ready = message
        elif isinstance(message, Detection | Heartbeat):
            sample = self._acknowledge(message.checkpoint)
            if isinstance(message, Detection) and sample <= self._told:
                return None  # by a server before, whose stream could not be gone on with
            self._heard += isinstance(message, Detection)
        told = self._timed(message)
        return self._new(told) if isinstance(told, Scores) else told

    def _acknowledge(self, checkpoint: Checkpoint) -> int:
        """Forget what no server needs any more; return the sample of our stream up to which all was judged."""
        self._checkpoint, before = checkpoint, self._outbox.acknowledged
        sample = self._origin + checkpoint.sample
        for message in self._outbox.acknowledge(sample, self.ready.replay_samples):
            if isinstance(message, Configure):
                self._begin = message
        if self._outbox.acknowledged > before:
            self.stuck_since = None
        return sample

    def _timed(self, message: News) -> News:
        """A message with its times in this stream, of which its server may know a part only."""
        later_s = self._origin / self.configure.sample_rate
        times = {name: getattr(message, name) + later_s for name in TIMES if hasattr(message, name)}
        return message.model_copy(update=times) if later_s else message

    def _new(self, scores: Scores) -> Scores | None:
        """Scores after those told so far: a connection after a break judges some tokens again."""
        rows = math.ceil((scores.at_s - self._scored_s) / scores.hop_s - SLACK)
        if rows <= 0:
            return None
        self._scored_s = scores.at_s
        return scores.model_copy(update={"posteriors": scores.posteriors[-rows:]})

    def _fitting(self, item: bytes | ClientMessage) -> Iterator[bytes | str]:
        """Audio in frames that the server takes; a message is left whole."""
        if not isinstance(item, bytes):
            yield item.model_dump_json(exclude_none=True)
            return
        most = self.ready.limits.frame_bytes // self._frame * self._frame
        yield from (item[start : start + most] for start in range(0, len(item), most))

    def _feedback(self) -> Iterator[str]:
        while self._verdicts:
            yield self._verdicts.popleft()

    def _window(self, seconds: float) -> int:
        """Bytes of at least `seconds`, and of two heartbeats: audio is acknowledged no more often."""
        return int(max(seconds, 2 * self.configure.heartbeat_ms / 1_000) * self._second)
