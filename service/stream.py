"""A session on the engine: bytes and messages in, messages out. Every door (WebSocket, REST, Wyoming) drives one.

Knows no socket. Lives on the event loop; nothing here blocks it.
"""

from __future__ import annotations

import asyncio
import logging
from typing import TYPE_CHECKING

from models.counting import nothing
from service.capture import Opinions
from service.engine import Engine, Hosted, Slot, clock
from service.enrolled import extended, spotting
from service.errors import Idle, Internal, QueueFull, ShareSpent, TooFast, failed
from service.line import Pace
from service.protocol import (
    Close,
    CloseCode,
    Closed,
    Configure,
    Detection,
    Feedback,
    Flush,
    Marker,
    Reset,
    ServerMessage,
    TooLong,
    Totals,
    Warned,
    WarningCode,
    WireError,
)
from service.session import Session
from service.vitals import Vitals

if TYPE_CHECKING:
    from collections.abc import Callable

    from service.audio import Array
    from service.metrics import Metrics
    from service.protocol import ClientMessage, Limits
    from service.settings import Settings

MESSAGES, DEAR, DEAR_ONES = 1_000, 20, (Configure, Reset, Flush)
"""Text messages that a stream may have at once, and a second; some of them take as long as `DEAR` others."""
FRAME_S = 0.005
"""Audio that a binary frame counts as at least, s: tiny ones take as long as others."""

log = logging.getLogger(__name__)


class Stream:
    """One stream, open from construction to `close`.

    Attributes:
        session: its state outside the model.
        vitals: what the engine knows of it.
        outbox: messages nobody has fetched yet.
        error: why it ended before its time.
        closing: the client said `close`.
        over: nothing more will be judged, for better or worse.
        on_change: called when there is something to fetch, room for more audio, or an end.
    """

    def __init__(
        self, engine: Engine, configure: Configure, limits: Limits, settings: Settings, metrics: Metrics, name: str
    ) -> None:
        """Take a place that was reserved.

        Raises:
            BadMessage: for a configuration that makes no sense here; the place stays reserved.
            Capacity: no row is left for this model.
        """
        hosted = engine.find(configure.model)
        own = spotting(hosted.network, configure, settings.keywords)
        named = configure.model_copy(update={"model": hosted.name})
        self.session = Session(name, extended(hosted.spec, own), named, limits)
        self.settings, self.metrics, self.limits = settings, metrics, limits
        ready = self.session.ready()
        self._share_s = limits.stream_s + (ready.replay_samples / configure.sample_rate if configure.resume else 0)
        self.outbox: list[ServerMessage] = [ready]
        self.hosted: Hosted = hosted
        self.slot: Slot = engine.open(hosted, self)
        self.slot.spotting = own
        self.slot.configure(self.session.point, configure.coarsest)
        self.error: WireError | None = None
        self.closing = self.over = False
        self.last_heard = clock()
        self._pace, self._messages = Pace(limits.speed), Pace(MESSAGES)
        self._queue_tokens = int(settings.queue_s * 16_000 / hosted.spec.config.token_samples)
        self.on_change: Callable[[], None] = lambda: None
        self._changed, self._room = asyncio.Event(), asyncio.Event()
        self._changed.set()
        self._counted = (nothing(hosted.spec.config), 0, 0.0)
        self._verdict_s: float | None = None
        self._opinions = Opinions(settings.capture, name) if settings.capture else None
        self.vitals = Vitals(self.slot)

    # --- from the client

    async def audio(self, data: bytes) -> None:
        """Take a chunk as `take` does; wait while the stream is full."""
        self.take(data)
        if self.full:
            await self.drained(self._queue_tokens)

    def take(self, data: bytes) -> None:
        """Take a chunk.

        Raises:
            WireError: the chunk is too long, too fast, or no audio.
        """
        self.last_heard = now = clock()
        if len(data) > self.limits.frame_bytes:
            raise TooLong(f"a frame may have {self.limits.frame_bytes} bytes, this one has {len(data)}")
        before = self.session.audio_s
        if data:
            self.slot.submit(self.session.audio(data))
        self._allow(max(self.session.audio_s - before, FRAME_S), now)

    @property
    def full(self) -> bool:
        """Whether too much of this stream's audio is not yet judged."""
        return self.slot.pending > self._queue_tokens

    async def samples(self, samples: Array) -> None:
        """Take 16 kHz samples of a clip, without a limit on their speed; wait as `audio` does."""
        self.last_heard = clock()
        self.slot.submit(self.session.samples(samples))
        await self.drained(self._queue_tokens)

    def tell(self, message: ClientMessage) -> None:
        """Take a message.

        Raises:
            WireError: it makes no sense now.
        """
        self.last_heard = now = clock()
        if self._messages.came(DEAR if isinstance(message, DEAR_ONES) else 1, now) > MESSAGES:
            raise TooFast(f"a stream may have {MESSAGES} messages a second; configure, reset and flush count as {DEAR}")
        match message:
            case Marker():
                self.say(self.session.marker(message))
            case Flush():
                self.slot.submit(self.session.flush())
                self.say(self.session.due())
            case Reset():
                self.session.reset()
                self.slot.reset()
                self.say(self.session.due())
            case Configure():
                named = self.slot.engine.find(message.model).name  # what is left out is the default, by whatever name
                self.say(self.session.configure(message.model_copy(update={"model": named})))
                self.slot.configure(self.hosted.spec.point(message), message.coarsest)
            case Feedback():
                self._feedback(message)
            case Close():
                self.closing = True
                self.slot.submit(self.session.end())

    async def drained(self, tokens: int = 0) -> None:
        """Wait until at most this many tokens are not judged."""
        while self.slot.pending > tokens and self.error is None:
            self._room.clear()
            await self._room.wait()

    # --- to the client

    def say(self, messages: list[ServerMessage]) -> None:
        """Put messages into the outbox."""
        if messages:
            self._put(messages)
            self.on_change()

    def warn(self, code: WarningCode, message: str) -> None:
        """Say something that does not end the stream."""
        self.say([Warned(code=code, message=message)])

    def mention(self, warning: Warned) -> None:
        """Say something together with what is said next: a thousand streams told at once would make each other wait."""
        self._put([warning])

    async def fetch(self) -> list[ServerMessage]:
        """Wait for messages and take them all; there may be none once the stream is over."""
        await self._changed.wait()
        self._changed.clear()
        messages, self.outbox = self.outbox, []
        return messages

    def fail(self, error: WireError) -> None:
        """End the stream; the first reason stands."""
        if self.error is None:
            self.error = error.with_traceback(None)  # which would keep the connection as long as the stream
        self.finish()
        self._room.set()

    def blame(self, error: Exception) -> None:
        """End the stream with the client's mistake, or with ours, which is logged."""
        if isinstance(error, WireError):
            self.fail(error)
            return
        log.error("a stream failed", extra={"session": self.session.id}, exc_info=error)
        self.fail(Internal("the server made a mistake; it is logged"))

    def finish(self) -> None:
        """Let whoever waits for messages know that there will be no more."""
        self.over = True
        self._changed.set()
        self.on_change()

    def check(self) -> None:
        """Fail if the client has been silent, or its audio has waited, for too long; say what was to be mentioned."""
        if clock() - self.last_heard > self.limits.idle_s and not self.slot.pending:
            self.fail(Idle(f"nothing came for {self.limits.idle_s:g} s; send keepalive during pauses"))
        elif self.slot.lag_s > self.settings.behind_s:
            self.fail(QueueFull("the server fell behind; resume on another replica"))
        elif self.outbox:
            self.on_change()

    def count(self) -> None:
        """Tell the metrics what happened since the last time; doing so for every chunk would cost more than a chunk."""
        work, chunks, audio_s = self.slot.count, self.session.chunks, self.session.audio_s
        before, self._counted = self._counted, (work, chunks, audio_s)
        self.metrics.worked(work - before[0])
        self.metrics.audio_received(audio_s - before[2], chunks - before[1])
        self._tell_held_back()
        if self._verdict_s is not None:
            self.metrics.verdict(self._verdict_s, self.session.id)
            self._verdict_s = None

    @property
    def code(self) -> CloseCode:
        """Why it ended."""
        return self.error.code if self.error else CloseCode.NORMAL

    def close(self) -> tuple[list[ServerMessage], Totals]:
        """Give the place back; return what is left to say, `closed` at the end, and the stream in numbers."""
        try:
            self.count()
            totals = self.session.totals(self.vitals)
        finally:
            self.slot.close()
        failure = [failed(self.error)] if self.error else []
        return [*self.outbox, *failure, Closed(reason=self.code.wire, totals=totals)], totals

    # --- from the engine

    def judged(self, posteriors: Array, arrival: float) -> None:
        """See `service.slots.Listener`."""
        self.vitals.arrival = arrival
        try:
            messages = self.session.judge(posteriors, self.vitals)
        except Exception as error:  # noqa: BLE001 (whatever it is, it ends this stream and no other)
            self.blame(error)
            return
        if messages:
            self._note(messages)
            self._put(messages)
        self._verdict_s = clock() - arrival
        self._room.set()
        self.on_change()

    def broken(self) -> None:
        """See `service.slots.Listener`."""
        self.fail(Internal("the model failed; it is logged"))

    # --- inside

    def _put(self, messages: list[ServerMessage]) -> None:
        self.outbox += messages
        if len(self.outbox) > self.settings.outbox:
            self.fail(QueueFull("the client does not read its messages"))
        self._changed.set()

    def _allow(self, audio_s: float, now: float) -> None:
        """Let `burst_s` of audio be ahead of `speed` times real time; a connection has its share beside a replay."""
        if self._pace.came(audio_s, now) > self.settings.burst_s:
            raise TooFast(f"audio may arrive {self.limits.speed:g} times faster than real time")
        if self.session.audio_s > self._share_s:
            raise ShareSpent(f"a connection may bring {self.limits.stream_s:g} s of audio; resume on a new one")

    def _feedback(self, message: Feedback) -> None:
        known, warnings = self.session.feedback(message)
        self.say(warnings)
        if known is None:
            return
        said = {"session": self.session.id, "keyword": known.keyword, "score": known.score, "correct": message.correct}
        self.metrics.feedback(known.keyword, correct=message.correct)
        log.info("feedback", extra=said)
        if self._opinions is not None:
            self._opinions.add(self.session.id, known, correct=message.correct)

    def _note(self, messages: list[ServerMessage]) -> None:
        """Tell the metrics what the client is told."""
        for message in messages:
            if type(message) is Detection:  # `isinstance` asks pydantic, which takes its time
                self.metrics.detected(message.keyword, self.session.id)

    def _tell_held_back(self) -> None:
        detector = self.session.detector
        for word, times in detector.near_misses.items():
            self.metrics.near_missed(word, times)
        for reason, times in detector.suppressed.items():
            self.metrics.suppressed(reason, times)
        detector.near_misses.clear()
        detector.suppressed.clear()
