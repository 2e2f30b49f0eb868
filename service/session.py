"""One stream from end to end, without I/O: the file to read first.

    what the client sends -> whole tokens for the model            `audio`, `flush`, `reset`, `configure`
    what the model says   -> messages for the client               `judge`

The two sides may run at different speeds: what has to happen at a place in the stream (echo a marker, forget the
past, change the rules) is queued under the number of tokens that lie before it, and happens when `judge` gets there.

Positions are 16 kHz samples since the stream began; a token is `token_samples` of them. Knows no socket, no engine,
no clock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from models.data import LAST_SAMPLES
from models.features import FrameStream, Tokens
from service.audio import SAMPLE_RATE, Array, Decoder, Recent
from service.detector import Detector, Hit, Rule
from service.errors import BadMessage, QueueFull
from service.protocol import (
    Checkpoint,
    Configure,
    Detection,
    Feedback,
    Limits,
    Marker,
    Ready,
    ServerMessage,
    Totals,
    Warned,
    WarningCode,
)
from service.resume import Position
from service.spec import Spec, Vitals
from service.telling import heartbeat, scores
from service.timeline import Timeline

KNOWN = 100
"""Detections that feedback may still speak of."""
ACTIONS = 10_000
"""Markers and changes that may wait for their audio to be judged."""
WORD_S = 4.0
"""Audio kept for clips beside the pre-roll and what is not yet judged, s: a word, and the most patience (3 s)."""


class Session:
    """The state of one stream outside the model.

    Attributes:
        id: names it in logs; a resumed one has the name that its token claims.
        connection: the name that the server gave it, whatever a token claims.
        fed: tokens handed to the model.
        detector: decides, and counts what it held back.
    """

    def __init__(self, session_id: str, spec: Spec, configure: Configure, limits: Limits) -> None:
        """Begin a stream, or go on with one that broke.

        Raises:
            BadMessage: for keywords, points or resume tokens that make no sense here.
        """
        self.id = self.connection = session_id
        self.spec, self.limits = spec, limits
        self.asked = configure
        self.fed = self.chunks = self.detections = 0
        self._decoder = Decoder(configure.encoding, configure.channels, configure.sample_rate)
        self._frames = FrameStream(spec.config)
        self._queue: deque[tuple[int, Callable[[], list[ServerMessage]]]] = deque()
        self._time = Timeline(spec.config, configure.sample_rate, configure.resume.sample if configure.resume else 0)
        self._rules = self.spec.rules(configure)
        usual = {"window_tokens": 5, "margin": 0.1, "silence": 0.0} | dict(spec.calibration)
        self.detector = Detector(spec.labels, self._rules, usual["window_tokens"], usual["margin"], usual["silence"])
        self._known: dict[int, Detection] = {}
        self._next_id, self._last_end_s = 0, 0.0
        self._told = self._mute_until = self._skipped = 0
        self._restore: Mapping[str, Any] = {}
        self._position = self._time.origin
        self._heard = Recent() if configure.preroll_ms else None
        self._next_heartbeat = self._time.origin / SAMPLE_RATE + configure.heartbeat_ms / 1000
        if configure.resume:
            self._resume(Position.parse(configure.resume.token))

    # --- from the client

    def audio(self, data: bytes) -> Tokens:
        """Take a chunk of bytes; return the tokens that it completes."""
        self.chunks += 1
        return self.samples(self._decoder.feed(data))

    def samples(self, samples: Array) -> Tokens:
        """Take 16 kHz samples; return tokens as `audio` does."""
        self._remember(samples)
        if self._skipped:
            self._skipped, samples = max(0, self._skipped - len(samples)), samples[self._skipped :]
        return self._out(self._frames.feed(samples))

    def flush(self) -> Tokens:
        """Return everything that still waits to fill a token, followed by silence."""
        tail = self.samples(self._decoder.flush())
        self._position = self._time.position(self._decoder.samples)
        padded = self._out(self._frames.flush())
        if len(padded):
            self._shift(self._time.aligned(self.fed, self._decoder.samples, ahead=True))
        return tail.then(padded)

    def end(self) -> Tokens:
        """No more audio: return what still waits, and the silence in which a word at the very end is decided."""
        return self.samples(np.concatenate((self._decoder.flush(), np.zeros(LAST_SAMPLES, np.float32))))

    def reset(self) -> None:
        """Forget what was heard, when the model gets here; the model's own row is the caller's to reset."""
        self._remember(self._decoder.flush())
        self._position = self._time.position(self._decoder.samples)
        self._frames.reset()
        self._skipped = 0  # tokens begin anew
        self._at(self._forget)
        self._shift(self._time.aligned(self.fed, self._decoder.samples))

    def marker(self, marker: Marker) -> list[ServerMessage]:
        """Echo a marker once everything before it has been judged."""
        self._at(lambda: [marker])
        return self.due()

    def configure(self, wish: Configure) -> list[ServerMessage]:
        """Change keywords, scores, heartbeat or operating point from here on.

        Raises:
            BadMessage: for a change of the audio's format, the model, the enrolled keywords or the resume token.
        """
        for name in ("sample_rate", "encoding", "channels", "model", "enrolled", "stored"):
            if getattr(wish, name) != getattr(self.asked, name):
                text = "cannot change within a stream; left out, it would be the default: say it again"
                raise BadMessage(f"{name} {text}", name)
        if wish.resume is not None:
            raise BadMessage("only a stream's first configure may resume", "resume")
        rules = self.spec.rules(wish)
        self._at(lambda: self._apply(wish, rules))
        return self.due()

    def feedback(self, feedback: Feedback) -> tuple[Detection | None, list[ServerMessage]]:
        """Find the detection that is spoken of; a warning if there is none."""
        known = self._known.get(feedback.detection)
        if known is not None:
            return known, []
        text = f"this stream has no recent detection {feedback.detection}"
        return None, [Warned(code=WarningCode.UNKNOWN_DETECTION, message=text)]

    # --- from the model

    def judge(self, posteriors: Array, vitals: Vitals) -> list[ServerMessage]:
        """Take the next tokens' posteriors (N, K), N >= 1; return what the client shall know, in order."""
        messages: list[ServerMessage] = []
        done, total = self.judged, self.judged + len(posteriors)
        while self.judged < total:
            until = min(self._queue[0][0], total) if self._queue else total
            messages += self._listen(posteriors[self.judged - done : until - done], vitals)
            messages += self.due()
        if (now := self._time.end_s(self.judged)) >= self._next_heartbeat:
            self._next_heartbeat = now + self.asked.heartbeat_ms / 1000
            messages.append(heartbeat(now, self.judged_s, self.checkpoint(), vitals))
        return messages

    def due(self) -> list[ServerMessage]:
        """Do what was asked for at the place that the model has reached."""
        messages: list[ServerMessage] = []
        while self._queue and self._queue[0][0] <= self.judged:
            messages += self._queue.popleft()[1]()
        return messages

    def _listen(self, posteriors: Array, vitals: Vitals) -> list[ServerMessage]:
        """Scores and detections between two queued actions; nothing is said of what an earlier connection told."""
        if mute := min(max(self._mute_until - self.judged, 0), len(posteriors)):
            self.detector.hear(posteriors[:mute])
            posteriors = posteriors[mute:]
        if self._restore and self.judged >= self._mute_until:
            self.detector.restore(self._restore)
            self._restore = {}
        messages: list[ServerMessage] = []
        if self.asked.scores and len(posteriors):
            at_s, hop_s = self._time.end_s(self.judged + len(posteriors)), self.spec.config.token_samples / SAMPLE_RATE
            messages.append(scores(posteriors, at_s, hop_s, vitals))
        return messages + [self._detection(hit, vitals) for hit in self.detector.feed(posteriors)]

    # --- what is said

    def ready(self) -> Ready:
        """Answer to `configure`."""
        return Ready(
            session=self.id,
            model=self.spec.name,
            fingerprint=self.spec.fingerprint,
            labels=self.spec.labels,
            keywords={word: self.spec.settings(rule) for word, rule in self._rules.items()},
            point=self.point,
            points=self.spec.points,
            methods=dict(self.spec.methods),
            hop_samples=self.spec.config.token_samples,
            replay_samples=self._time.replay_samples,
            sample=self._time.start + self._decoder.samples,
            limits=self.limits,
        )

    @property
    def point(self) -> str:
        """Name of the operating point asked for."""
        return self.spec.point(self.asked)

    @property
    def judged(self) -> int:
        """Tokens whose posteriors came back."""
        return self.detector.token

    @property
    def audio_s(self) -> float:
        """Seconds of audio received."""
        return self._decoder.samples / self.asked.sample_rate

    @property
    def judged_s(self) -> float:
        """Seconds of audio judged."""
        return self.judged * self.spec.config.token_samples / SAMPLE_RATE

    def totals(self, vitals: Vitals) -> Totals:
        """The stream so far, in numbers."""
        macs = vitals.macs
        return Totals(
            audio_s=min(self.judged_s, self.audio_s),
            samples=self._decoder.samples,
            chunks=self.chunks,
            tokens=self.judged,
            detections=self.detections,
            macs_done=macs.total,
            macs_skipped_vs_window=macs.skipped_vs_window,
            macs_skipped_vs_causal=macs.skipped_vs_causal,
        )

    def checkpoint(self) -> Checkpoint:
        """Where any server can go on, with everything so far told."""
        position = self._time.begin(self.judged)
        token = Position(self.id, position, self._next_id, self.detector.state()).encode()
        return Checkpoint(sample=self._time.received(position), token=token)

    def _detection(self, hit: Hit, vitals: Vitals) -> Detection:
        at_s = self._time.end_s(hit.token + 1)
        places = (self._time.end_s(hit.start + 1), self._time.end_s(hit.end + 1))
        start_s, end_s = (min(max(place_s, self._last_end_s), at_s) for place_s in places)
        identity, self._next_id, self._last_end_s = self._next_id, self._next_id + 1, end_s
        self.detections += 1
        detection = Detection(
            id=identity,
            keyword=hit.keyword,
            score=round(min(hit.score, 1.0), 4),
            start_s=start_s,
            end_s=end_s,
            at_s=at_s,
            latency_ms=vitals.latency_ms,
            checkpoint=self.checkpoint(),
            clip=self._heard.cut(start_s - self.asked.preroll_ms / 1000, at_s) if self._heard else None,
        )
        self._known[identity] = detection
        self._known.pop(identity - KNOWN, None)
        return detection

    # --- inside

    def _remember(self, samples: Array) -> None:
        self._position += len(samples)
        if self._heard is not None:
            oldest_s = self._time.end_s(self.judged) - WORD_S - self.asked.preroll_ms / 1000
            self._heard.feed(samples, self._position, round(oldest_s * SAMPLE_RATE))

    def _out(self, tokens: Tokens) -> Tokens:
        self.fed += tokens.count
        return tokens

    def _at(self, action: Callable[[], list[ServerMessage]]) -> None:
        """Let something happen once all tokens fed so far have been judged."""
        if len(self._queue) >= ACTIONS:
            raise QueueFull(f"more than {ACTIONS} markers and changes wait for their audio to be judged")
        self._queue.append((self.fed, action))

    def _shift(self, origin: int) -> None:
        """From here on, token t begins at position `origin + t * token_samples`."""

        def shift() -> list[ServerMessage]:
            self._time.origin = origin
            self._mute_until = self._time.tokens(self._told)
            return []

        self._at(shift)

    def _forget(self) -> list[ServerMessage]:
        self.detector.reset()
        if self.judged >= self._mute_until:  # else the reset belongs to a replay, of which the state is the outcome
            self._restore = {}
        return []

    def _apply(self, wish: Configure, rules: dict[str, Rule]) -> list[ServerMessage]:
        self.asked, self._rules = wish, rules
        self.detector.configure(rules)
        self._heard = (self._heard or Recent()) if wish.preroll_ms else None
        soon = self._time.end_s(self.judged) + wish.heartbeat_ms / 1000
        self._next_heartbeat = min(self._next_heartbeat, soon)
        return [self.ready()]

    def _resume(self, position: Position) -> None:
        """Go on after `position`: say nothing up to there, then let the detector be as it was.

        Tokens begin where the earlier connection's did, so that a replay from anywhere is heard alike.
        """
        self._skipped = (position.sample - self._time.origin) % self.spec.config.token_samples
        self._time.origin += self._skipped
        self.id, self._next_id = position.session, position.next_id
        self._told, self._mute_until = position.sample, self._time.tokens(position.sample)
        self._restore = position.state
        self._next_heartbeat = position.sample / SAMPLE_RATE
