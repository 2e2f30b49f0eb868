"""What the process tells Prometheus: one class, one method for each thing that happens.

Counters are exported as numerators and denominators; ratios are recording rules (`deploy/prometheus/recording.yml`).
Labels take values known when the process starts, so no series grows with users; anything else is counted as `other`.
Knows no sessions, sockets or models, only what it is told.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, GCCollector, PlatformCollector, ProcessCollector

from models.counting import GROUPS, PRUNED
from service.errors import REASONS
from service.families import Families
from service.protocol import CloseCode

if TYPE_CHECKING:
    from collections.abc import Iterable

    from models.counting import Count

OTHER = "other"

OUTCOMES = (*(code.wire for code in CloseCode), "vanished", OTHER)
"""Why a stream ended: a close code of the protocol, or a peer that went without a word."""

REFUSALS = (*(code.wire for code in CloseCode if code is not CloseCode.NORMAL), *REASONS.values(), OTHER)
SUPPRESSIONS = ("patience", "refractory", OTHER)
CORRECT = ("true", "false")
RELOADS = ("done", "failed", OTHER)
CLIP_OUTCOMES = ("judged", "refused", "vanished", "failed", OTHER)

DEADLINE_BUCKETS = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 15.0, 60.0)
"""Seconds, dense around the deadlines of the service: 25 ms for a few streams, 100 and 250 ms under load; on to what a
stream may be behind, and a long clip take."""
STEP_BUCKETS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
ROW_BUCKETS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)
ERROR_BUCKETS = (1e-6, 1e-5, 1e-4, 1e-3, 0.003, 0.01, 0.03, 0.1, 0.3, 0.5, 1.0)
LENGTH_BUCKETS = (1, 5, 15, 60, 300, 900, 3600, 14400, 86400)


class Metrics(Families):
    """Everything that is counted, on a registry of the caller's.

    Methods may be called from any thread. Seconds are wall-clock seconds unless a name says audio.
    """

    def __init__(self, registry: CollectorRegistry, keywords: Iterable[str]) -> None:
        """Register every family, with every label value known now at zero.

        Args:
            registry: receives the families; one `Metrics` for each.
            keywords: words that get a series of their own; all other words share the label `other`.
        """
        super().__init__(registry)
        self._keywords = (*keywords, OTHER)
        self._named: tuple[str, str, str] | None = None
        self._register_sessions()
        self._register_work()
        self._register_time()
        self._register_words()
        self._register_state()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        GCCollector(registry=registry)

    def tell_apart(self, keywords: Iterable[str]) -> None:
        """Give these words series of their own; those that had one before keep it."""
        for word in keywords:
            if word not in self._keywords:
                self._keywords = (*self._keywords, word)
                self._detections.labels(word)
                self._near_misses.labels(word)
                for correct in CORRECT:
                    self._feedback.labels(word, correct)

    # --- sessions, clips, refusals

    def session_opened(self) -> None:
        """A stream was admitted and configured."""
        self._sessions_open.inc()

    def session_closed(self, outcome: str, audio_seconds: float) -> None:
        """A stream that was opened has ended, after this much audio."""
        self._sessions_open.dec()
        self._sessions.labels(_known(outcome, OUTCOMES)).inc()
        self._session_length.observe(audio_seconds)

    def audio_received(self, audio_seconds: float, chunks: int = 1) -> None:
        """This many chunks were accepted, with so much audio in all."""
        self._chunks.inc(chunks)
        self._audio.inc(audio_seconds)

    def clip(self, outcome: str, seconds: float) -> None:
        """One recording was asked to be judged; `outcome` is judged, refused, vanished or failed."""
        self._clips.labels(_known(outcome, CLIP_OUTCOMES)).inc()
        self._clip_time.observe(seconds)

    def refused(self, reason: str) -> None:
        """A stream or a request was turned away."""
        self._refusals.labels(_known(reason, REFUSALS)).inc()

    # --- the engine

    def stepped(self, rows: int, seconds: float) -> None:
        """The network made one step for `rows` sessions at once."""
        self._step_time.observe(seconds)
        self._batch.observe(rows)

    def worked(self, work: Count) -> None:
        """Multiply-accumulates since the last call for the same session."""
        done, pruned = work.done, work.pruned
        for group in GROUPS:
            self._done[group].inc(done.get(group, 0))
            self._causal[group].inc(work.causal.get(group, 0))
            self._window[group].inc(work.window.get(group, 0))
            for reason in PRUNED:
                self._pruned[group, reason].inc(pruned[reason].get(group, 0))
        self._tokens.inc(work.tokens)

    def waited(self, seconds: float) -> None:
        """The longest wait of a stream in this batch."""
        self._queue_wait.observe(seconds)

    def verdict(self, seconds: float, session: str = "") -> None:
        """Time from a chunk's arrival to its posteriors; the session becomes the bucket's exemplar."""
        self._verdict_time.observe(seconds, {"session": session} if session else None)

    def lag(self, seconds: float) -> None:
        """The longest time that any stream has waited for its turn."""
        self._lag.set(seconds)

    def delta_scale(self, scale: float) -> None:
        """Factor now on every delta threshold: 1 as calibrated, more when precision is shed."""
        self._scale.set(scale)

    def self_checked(self, error: float) -> None:
        """Largest difference of a posterior between a step and its dense recomputation."""
        self._self_check.observe(error)

    # --- words

    def detected(self, keyword: str, session: str = "") -> None:
        """A keyword was reported to a client."""
        self._detections.labels(_known(keyword, self._keywords)).inc(1, {"session": session} if session else None)

    def near_missed(self, keyword: str, times: int) -> None:
        """A keyword came close to its threshold and was not reported."""
        self._near_misses.labels(_known(keyword, self._keywords)).inc(times)

    def feedback(self, keyword: str, *, correct: bool) -> None:
        """A client said whether a detection was right."""
        self._feedback.labels(_known(keyword, self._keywords), str(correct).lower()).inc()

    def suppressed(self, reason: str, times: int) -> None:
        """Posteriors over their threshold were held back; `reason` is the detector's."""
        self._suppressions.labels(_known(reason, SUPPRESSIONS)).inc(times)

    # --- state of the process

    def capacity(self, sessions: int) -> None:
        """Sessions that the process admits at most."""
        self._capacity.set(sessions)

    def cache_bytes(self, more: int) -> None:
        """So much more memory is held by the caches of all streams."""
        self._cache.inc(more)

    def ready(self, ready: bool) -> None:
        """Whether the process takes new streams."""
        self._ready.set(ready)

    def reloaded(self, outcome: str) -> None:
        """Keys and checkpoints were read again; `outcome` is done or failed."""
        self._reloads.labels(_known(outcome, RELOADS)).inc()

    def model(self, name: str, fingerprint: str, point: str) -> None:
        """The model that new sessions get; replaces the one before."""
        if self._named:
            self._model.remove(*self._named)
        self._named = (name, fingerprint, point)
        self._model.labels(name, fingerprint, point).set(1)

    # --- registration

    def _register_sessions(self) -> None:
        self._sessions_open = self._gauge("sessions_open", "Streams open now.")
        self._sessions = self._counter("sessions", "Streams ended, by outcome.", outcome=OUTCOMES)
        self._session_length = self._histogram("session_audio_seconds", "Audio in one stream.", LENGTH_BUCKETS)
        self._audio = self._counter("audio_seconds", "Audio accepted, from streams and clips.")
        self._chunks = self._counter("chunks", "Chunks of audio accepted from streams.")
        self._clips = self._counter("clips", "Recordings judged over REST, by outcome.", outcome=CLIP_OUTCOMES)
        self._clip_time = self._histogram("clip_seconds", "Time to answer for one recording.", DEADLINE_BUCKETS)
        self._refusals = self._counter("refusals", "Streams and requests turned away, by reason.", reason=REFUSALS)

    def _register_work(self) -> None:
        done = self._counter("macs_done", "Multiply-accumulates done, none for what stays zero.", group=GROUPS)
        causal = self._counter("macs_causal", "What dense arithmetic on new tokens would have done.", group=GROUPS)
        window = self._counter("macs_window", "What recomputing a window at every token would have done.", group=GROUPS)
        pruned = self._counter(
            "macs_pruned", "What dropped scores and silent heads left out.", group=GROUPS, reason=PRUNED
        )
        self._pruned = {both: pruned.labels(*both) for both in itertools.product(GROUPS, PRUNED)}
        self._done = {group: done.labels(group) for group in GROUPS}
        self._causal = {group: causal.labels(group) for group in GROUPS}
        self._window = {group: window.labels(group) for group in GROUPS}
        self._tokens = self._counter("tokens", "Tokens that the network has judged.")

    def _register_time(self) -> None:
        self._step_time = self._histogram("step_seconds", "One batched step of the network.", STEP_BUCKETS)
        self._batch = self._histogram("batch_rows", "Sessions in one step.", ROW_BUCKETS)
        self._queue_wait = self._histogram("queue_wait_seconds", "The longest wait of a batch.", DEADLINE_BUCKETS)
        self._verdict_time = self._histogram("verdict_seconds", "From a chunk to its verdict.", DEADLINE_BUCKETS)
        self._lag = self._gauge("lag_seconds", "Longest wait of any stream, even of those that push.", "livemax")

    def _register_words(self) -> None:
        self._detections = self._counter("detections", "Keywords reported.", keyword=self._keywords)
        self._near_misses = self._counter("near_misses", "Keywords just under threshold.", keyword=self._keywords)
        self._suppressions = self._counter("suppressions", "Hits held back, by reason.", reason=SUPPRESSIONS)
        self._feedback = self._counter(
            "feedback", "Detections that clients judged.", keyword=self._keywords, correct=CORRECT
        )

    def _register_state(self) -> None:
        self._capacity = self._gauge("sessions_limit", "Streams admitted at most.")
        self._cache = self._gauge("cache_bytes", "Memory of the caches of all streams.")
        self._ready = self._gauge("ready", "1 when new streams are taken.", "livemin")
        self._scale = self._gauge("delta_scale", "Factor on every delta threshold.", "livemax")
        self._reloads = self._counter("reloads", "Times that keys and models were read again.", outcome=RELOADS)
        self._self_check = self._histogram("self_check_error", "Posterior error of a checked step.", ERROR_BUCKETS)
        named = ("model", "fingerprint", "point")
        self._model = self._gauge("model_info", "1 for the model that new sessions get.", "livemax", named)


def _known(value: str, values: Iterable[str]) -> str:
    return value if value in values else OTHER
