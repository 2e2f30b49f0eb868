"""One stream from end to end, without I/O: the file to read first.

    what the client sends -> sample windows for the model          `audio`, `flush`, `reset`, `configure`
    what the model says   -> messages for the client               `judge`

The two sides may run at different speeds: what has to happen at a place in the stream (echo a marker, forget the
past, change the rules) is queued under the number of tokens that lie before it, and happens when `judge` gets there.

Positions are 16 kHz samples since the stream began; a token is `token_samples` of them. Knows no socket, no engine,
no clock.
"""

from __future__ import annotations

import base64
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from models.features import FrameStream
from service.audio import SAMPLE_RATE, Array, Decoder
from service.detector import Detector, Hit, Rule
from service.errors import BadMessage, QueueFull, UnknownModel
from service.protocol import (
    Checkpoint,
    Configure,
    Detection,
    Feedback,
    Heartbeat,
    KeywordSettings,
    Limits,
    Marker,
    Ready,
    Scores,
    ServerMessage,
    Totals,
    Warned,
    WarningCode,
)
from service.resume import Position

if TYPE_CHECKING:
    from models.config import ModelConfig

WORD_S = 0.55
"""Typical length of a keyword; the posterior tells where it ended, not where it began."""
RISE_S = 0.10
"""Typical time from a word's end to the rise of its posterior."""


KNOWN = 100
"""Detections that feedback may still speak of."""
ACTIONS = 10_000
"""Markers and changes that may wait for their audio to be judged."""
HEARD_SAMPLES = 10 * SAMPLE_RATE
"""Audio kept for clips: the longest pre-roll, a word, and what may lie in the queue."""


@dataclass(frozen=True, slots=True)
class Spec:
    """What a session has to know of a model.

    Attributes:
        name: as in `/v1/models`.
        fingerprint: of its weights.
        config: shapes and labels.
        points: names of the operating points.
        calibration: as in `models.checkpoint.Checkpoint`.
    """

    name: str
    fingerprint: str
    config: ModelConfig
    points: tuple[str, ...]
    calibration: Mapping[str, Any]

    @property
    def default_point(self) -> str:
        """The point that streams get: `shipped` where there is one."""
        return "shipped" if "shipped" in self.points else self.points[0]

    def rule(self, word: str, wish: KeywordSettings) -> Rule:
        """A keyword's calibrated rule, changed as the client wishes."""
        own = self.calibration.get("keywords", {}).get(word, {})
        refractory_ms = _first(wish.refractory_ms, self.calibration.get("refractory_ms", 500))
        return Rule(
            threshold=_first(wish.threshold, own.get("threshold", 0.6)),
            patience=_first(wish.patience, own.get("patience", 2)),
            refractory=round(refractory_ms * SAMPLE_RATE / 1000 / self.config.token_samples),
        )

    def settings(self, rule: Rule) -> KeywordSettings:
        """A rule in the words of the protocol."""
        refractory_ms = round(rule.refractory * self.config.token_samples * 1000 / SAMPLE_RATE)
        return KeywordSettings(threshold=rule.threshold, patience=rule.patience, refractory_ms=refractory_ms)


class Macs(Protocol):
    """Multiply-accumulates over a stretch of audio; `models.counting.Count` is one."""

    @property
    def total(self) -> int:
        """Those done."""

    @property
    def skipped_vs_window(self) -> float:
        """Share saved against recomputing whole windows."""

    @property
    def skipped_vs_causal(self) -> float:
        """Share saved against dense arithmetic on new tokens."""


class Vitals(Protocol):
    """What the engine knows of a stream at the moment its posteriors arrive."""

    @property
    def latency_ms(self) -> float:
        """Age of the newest judged audio."""

    @property
    def lag_ms(self) -> float:
        """Age of the oldest audio not yet judged."""

    @property
    def compute_s(self) -> float:
        """Time the model has spent on this stream."""

    @property
    def scale(self) -> float:
        """Factor on the delta thresholds."""

    @property
    def cache_bytes(self) -> int:
        """Memory inside the model."""

    @property
    def macs(self) -> Macs:
        """Work since the stream began."""

    def work(self) -> list[float]:
        """Share of dense work done since the last call: stem, blocks in order, read-out."""


class Session:
    """The state of one stream outside the model.

    Attributes:
        id: names it in logs.
        fed: tokens handed to the model.
        judged: tokens whose posteriors came back.
    """

    def __init__(self, session_id: str, spec: Spec, configure: Configure, limits: Limits) -> None:
        """Begin a stream, or go on with one that broke.

        Raises:
            BadMessage: for keywords, points or resume tokens that make no sense here.
        """
        self.id, self.spec, self.limits = session_id, spec, limits
        self.asked = configure
        self.fed = self.judged = self.chunks = self.detections = 0
        self._decoder = Decoder(configure.encoding, configure.channels, configure.sample_rate)
        self._frames = FrameStream(spec.config)
        self._overlap = spec.config.frontend.window - spec.config.frontend.hop
        self._queue: deque[tuple[int, Callable[[], list[ServerMessage]]]] = deque()
        self._start = configure.resume.sample if configure.resume else 0
        self._origin = self._position(0)
        self._rules = self._checked(configure)
        calibration = spec.calibration
        window, margin = calibration.get("window_tokens", 5), calibration.get("margin", 0.1)
        self._detector = Detector(spec.config.labels, self._rules, window, margin)
        self._known: dict[int, Detection] = {}
        self._next_id, self._last_end_s = 0, 0.0
        self._mute_until = 0
        self._restore: Mapping[str, Any] = {}
        self._heard = _Heard(self._origin) if configure.preroll_ms else None
        self._next_heartbeat = 0.0
        if configure.resume:
            self._resume(Position.parse(configure.resume.token))

    # --- from the client

    def audio(self, data: bytes) -> Array:
        """Take a chunk of bytes; return the windows of the tokens it completes: (N, stride, window)."""
        self.chunks += 1
        return self.samples(self._decoder.feed(data))

    def samples(self, samples: Array) -> Array:
        """Take 16 kHz samples; return windows as `audio` does."""
        if self._heard is not None:
            self._heard.feed(samples)
        return self._out(self._frames.feed(samples))

    def flush(self) -> Array:
        """Return the windows of everything that still waits to fill a token, followed by silence."""
        tail = self.samples(self._decoder.flush())
        windows = np.concatenate((tail, self._out(self._frames.flush())))
        self._shift(self._position(self._decoder.samples) - self.fed * self.spec.config.token_samples - self._overlap)
        return windows

    def reset(self) -> None:
        """Forget what was heard, when the model gets here; the model's own row is the caller's to reset."""
        self._decoder.flush()
        self._frames.reset()
        self._at(self._forget)
        self._shift(self._position(self._decoder.samples) - self.fed * self.spec.config.token_samples)

    def marker(self, marker: Marker) -> list[ServerMessage]:
        """Echo a marker once everything before it has been judged."""
        self._at(lambda: [marker])
        return self.due()

    def configure(self, wish: Configure) -> list[ServerMessage]:
        """Change keywords, scores, heartbeat or operating point from here on.

        Raises:
            BadMessage: for a change of the audio's format, the model or the resume token.
        """
        for name in ("sample_rate", "encoding", "channels", "model"):
            if getattr(wish, name) != getattr(self.asked, name):
                raise BadMessage(f"{name} cannot change within a stream", name)
        if wish.resume is not None:
            raise BadMessage("only a stream's first configure may resume", "resume")
        rules = self._checked(wish)
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
        if self.asked.scores:
            messages.append(self._scores(posteriors, vitals))
        done, total = self.judged, self.judged + len(posteriors)
        while self.judged < total:
            until = min(self._queue[0][0], total) if self._queue else total
            messages += self._listen(posteriors[self.judged - done : until - done], vitals)
            messages += self.due()
        if (now := self._end_s(self.judged)) >= self._next_heartbeat:
            self._next_heartbeat = now + self.asked.heartbeat_ms / 1000
            messages.append(self._heartbeat(vitals))
        return messages

    def due(self) -> list[ServerMessage]:
        """Do what was asked for at the place that the model has reached."""
        messages: list[ServerMessage] = []
        while self._queue and self._queue[0][0] <= self.judged:
            messages += self._queue.popleft()[1]()
        return messages

    def _listen(self, posteriors: Array, vitals: Vitals) -> list[ServerMessage]:
        """Detect in posteriors between two queued actions; nothing is said of what an earlier connection told."""
        mute = min(max(self._mute_until - self.judged, 0), len(posteriors))
        self._detector.hear(posteriors[:mute])
        self.judged += mute
        if self._restore and self.judged >= self._mute_until:
            self._detector.restore(self._restore)
            self._restore = {}
        messages: list[ServerMessage] = []
        for hit in self._detector.feed(posteriors[mute:]):
            self.judged = hit.token + 1
            messages.append(self._detection(hit, vitals))
        self.judged = self._detector.token
        return messages

    # --- what is said

    def ready(self) -> Ready:
        """Answer to `configure`."""
        config = self.spec.config
        replay = config.receptive_samples // config.token_samples + 1
        return Ready(
            session=self.id,
            model=self.spec.name,
            fingerprint=self.spec.fingerprint,
            labels=config.labels,
            keywords={word: self.spec.settings(rule) for word, rule in self._rules.items()},
            point=self.point,
            points=self.spec.points,
            hop_samples=config.token_samples,
            replay_samples=-(-replay * config.token_samples * self.asked.sample_rate // SAMPLE_RATE),
            sample=self._start + self._decoder.samples,
            limits=self.limits,
        )

    @property
    def point(self) -> str:
        """Name of the operating point asked for."""
        return self.asked.point or self.spec.default_point

    @property
    def audio_s(self) -> float:
        """Seconds of audio received."""
        return self._decoder.samples / self.asked.sample_rate

    @property
    def near_misses(self) -> Mapping[str, int]:
        """Times that a keyword came close to its threshold, by keyword."""
        return self._detector.near_misses

    @property
    def suppressed(self) -> Mapping[str, int]:
        """Runs of hits that were held back, by reason."""
        return self._detector.suppressed

    def totals(self, vitals: Vitals) -> Totals:
        """The stream so far, in numbers."""
        macs = vitals.macs
        return Totals(
            audio_s=self.judged * self.spec.config.token_samples / SAMPLE_RATE,
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
        position = self.judged * self.spec.config.token_samples + self._origin
        token = Position(self.id, position, self._next_id, self._detector.state()).encode()
        return Checkpoint(sample=max(0, -(-position * self.asked.sample_rate // SAMPLE_RATE)), token=token)

    def _detection(self, hit: Hit, vitals: Vitals) -> Detection:
        at_s = self._end_s(hit.token + 1)
        end_s = min(max(self._end_s(hit.rise + 1) - RISE_S, self._last_end_s), at_s)
        start_s = max(end_s - WORD_S, self._last_end_s, 0.0)
        identity, self._next_id, self._last_end_s = self._next_id, self._next_id + 1, end_s
        self.detections += 1
        detection = Detection(
            id=identity,
            keyword=hit.keyword,
            score=min(hit.score, 1.0),
            start_s=start_s,
            end_s=end_s,
            at_s=at_s,
            latency_ms=vitals.latency_ms,
            checkpoint=self.checkpoint(),
            clip=self._clip(start_s - self.asked.preroll_ms / 1000, at_s),
        )
        self._known[identity] = detection
        self._known.pop(identity - KNOWN, None)
        return detection

    def _clip(self, start_s: float, end_s: float) -> str | None:
        if self._heard is None:
            return None
        return base64.b64encode(self._heard.cut(round(start_s * SAMPLE_RATE), round(end_s * SAMPLE_RATE))).decode()

    def _scores(self, posteriors: Array, vitals: Vitals) -> Scores:
        return Scores(
            at_s=self._end_s(self.judged + len(posteriors)),
            hop_s=self.spec.config.token_samples / SAMPLE_RATE,
            posteriors=np.round(posteriors.astype(np.float64), 4).tolist(),
            work=vitals.work(),
        )

    def _heartbeat(self, vitals: Vitals) -> Heartbeat:
        macs = vitals.macs
        audio_s = self.judged * self.spec.config.token_samples / SAMPLE_RATE
        return Heartbeat(
            at_s=self._end_s(self.judged),
            lag_ms=vitals.lag_ms,
            real_time_factor=vitals.compute_s / audio_s,
            macs_done=macs.total,
            macs_skipped_vs_window=macs.skipped_vs_window,
            macs_skipped_vs_causal=macs.skipped_vs_causal,
            delta_scale=vitals.scale,
            cache_bytes=vitals.cache_bytes,
            checkpoint=self.checkpoint(),
        )

    # --- inside

    def _out(self, windows: Array) -> Array:
        self.fed += len(windows)
        return windows

    def _at(self, action: Callable[[], list[ServerMessage]]) -> None:
        """Let something happen once all tokens fed so far have been judged."""
        if len(self._queue) >= ACTIONS:
            raise QueueFull(f"more than {ACTIONS} markers and changes wait for their audio to be judged")
        self._queue.append((self.fed, action))

    def _shift(self, origin: int) -> None:
        """From here on, token t begins at position `origin + t * token_samples`."""

        def shift() -> list[ServerMessage]:
            self._origin = origin
            return []

        self._at(shift)

    def _forget(self) -> list[ServerMessage]:
        self._detector.reset()
        return []

    def _apply(self, wish: Configure, rules: dict[str, Rule]) -> list[ServerMessage]:
        self.asked, self._rules = wish, rules
        self._detector.configure(rules)
        if wish.preroll_ms and self._heard is None:
            self._heard = _Heard(self._position(self._decoder.samples))
        return [self.ready()]

    def _checked(self, wish: Configure) -> dict[str, Rule]:
        """The rules of the keywords asked for."""
        if wish.point is not None and wish.point not in self.spec.points:
            raise UnknownModel(f"this model has the points {', '.join(self.spec.points)}", "point")
        own = self.spec.config.keywords
        wishes = dict.fromkeys(own, KeywordSettings()) if wish.keywords is None else wish.keywords
        if strange := next((word for word in wishes if word not in own), None):
            raise BadMessage(f"this model does not know {strange!r}, it knows {', '.join(own)}", f"keywords.{strange}")
        return {word: self.spec.rule(word, settings) for word, settings in wishes.items() if settings.enabled}

    def _resume(self, position: Position) -> None:
        """Go on after `position`: say nothing up to there, then let the detector be as it was."""
        self.id, self._next_id = position.session, position.next_id
        self._mute_until = max(0, round((position.sample - self._origin) / self.spec.config.token_samples))
        self._restore = position.state
        self._next_heartbeat = position.sample / SAMPLE_RATE

    def _position(self, samples: int) -> int:
        """Samples received at the client's rate -> 16 kHz position in the stream."""
        return round((self._start + samples) * SAMPLE_RATE / self.asked.sample_rate)

    def _end_s(self, tokens: int) -> float:
        """Stream time at which this many tokens are complete."""
        return max(0.0, (tokens * self.spec.config.token_samples + self._overlap + self._origin) / SAMPLE_RATE)


class _Heard:
    """The newest seconds of a stream, for clips."""

    def __init__(self, position: int) -> None:
        self._end = position
        self._samples = np.zeros(0, np.int16)

    def feed(self, samples: Array) -> None:
        self._end += len(samples)
        self._samples = np.concatenate((self._samples, samples.astype(np.int16)))[-HEARD_SAMPLES:]

    def cut(self, start: int, end: int) -> bytes:
        """s16le of the positions from `start` to `end`, as far as they are still here."""
        first = self._end - len(self._samples)
        return self._samples[max(0, start - first) : max(0, end - first)].astype("<i2").tobytes()


def _first(wish: Any, otherwise: Any) -> Any:  # noqa: ANN401 (a number of either kind)
    return otherwise if wish is None else wish
