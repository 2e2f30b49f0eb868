"""The story of one stream, told without a socket: what goes in, what comes out, in which order and at which time."""

from __future__ import annotations

import base64
import tracemalloc
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from models.config import ModelConfig
from models.counting import Count, nothing
from service.errors import BadMessage, QueueFull, UnknownModel
from service.protocol import (
    Configure,
    Detection,
    Feedback,
    KeywordSettings,
    Limits,
    Marker,
    Resume,
    ServerMessage,
)
from service.resume import Position
from service.session import ACTIONS, WORD_S, Session
from service.spec import Spec

CONFIG = ModelConfig()
LIMITS = Limits(frame_bytes=1 << 20, stream_s=10, idle_s=1, speed=10)
CALIBRATION = {"window_tokens": 1, "margin": 0.1, "refractory_ms": 0, "keywords": {}}
SPEC = Spec("default", "0" * 12, CONFIG, {"dense": "dense", "shipped": "delta"}, CALIBRATION)
TOKEN = CONFIG.token_samples
TAIL = 320


@dataclass
class Vitals:
    """An engine at rest."""

    latency_ms: float = 1.0
    lag_ms: float = 0.0
    compute_s: float = 0.0
    scale: float = 1.0
    cache_bytes: int = 1
    macs: Count = field(default_factory=lambda: nothing(CONFIG))

    def work(self) -> list[float]:
        return [0.0]


def session(spec: Spec = SPEC, **asked: object) -> Session:
    return Session("abc", spec, Configure(**asked), LIMITS)


def said(*words: str | None) -> np.ndarray:
    """Posteriors (N, 12), one certain word or silence for each token."""
    rows = np.zeros((len(words), len(CONFIG.labels)), np.float32)
    for row, word in zip(rows, words, strict=True):
        row[CONFIG.labels.index(word or "_silence_")] = 1
    return rows


def pcm(samples: int) -> bytes:
    return bytes(2 * samples)


def kinds(messages: Iterable[ServerMessage]) -> list[str]:
    return [message.type for message in messages]


def test_audio_becomes_whole_tokens() -> None:
    one = session()
    assert len(one.audio(pcm(TOKEN + TAIL - 1))) == 0
    assert len(one.audio(pcm(1))) == 1
    assert len(one.audio(pcm(10 * TOKEN))) == 10
    assert (one.fed, one.judged, one.chunks) == (11, 0, 3)


def test_detection_stands_at_the_end_of_the_audio_that_decided_it() -> None:
    one = session(keywords={"yes": KeywordSettings(threshold=0.5, patience=2)})
    one.audio(pcm(16_000))
    (detection,) = one.judge(said(None, None, "yes", "yes", "yes"), Vitals())
    assert isinstance(detection, Detection)
    assert (detection.id, detection.keyword, detection.score) == (0, "yes", 1.0)
    assert detection.at_s == pytest.approx((4 * TOKEN + TAIL) / 16_000)
    assert 0 <= detection.start_s < detection.end_s <= detection.at_s


def test_score_has_the_digits_that_scores_have() -> None:
    one = session(keywords={"yes": KeywordSettings(threshold=0.5, patience=1)})
    one.audio(pcm(16_000))
    (detection,) = one.judge(said("yes") * np.float32(2 / 3), Vitals())
    assert isinstance(detection, Detection)
    assert detection.score == 0.6667


def test_a_word_lies_where_its_keyword_s_span_says_and_not_before_the_one_before_it() -> None:
    keywords = {word: {"threshold": 0.5, "patience": 1, "span_ms": (-300.0, -60.0)} for word in ("yes", "no")}
    one = session(replace(SPEC, calibration=CALIBRATION | {"keywords": keywords}))
    one.audio(pcm(16_000))
    yes, no = one.judge(said(*[None] * 12, "yes", None, None, "no"), Vitals())
    assert isinstance(yes, Detection)
    assert isinstance(no, Detection)
    assert (yes.start_s, yes.end_s) == pytest.approx((yes.at_s - 0.3, yes.at_s - 0.06))
    assert (no.start_s, no.end_s) == pytest.approx((yes.end_s, no.at_s - 0.06))


def test_a_word_right_after_a_flush_does_not_end_after_the_audio_that_decided_it() -> None:
    """After a reset, too little for a window is all silence to a flush: the word before may end behind its samples."""
    keywords = {word: {"threshold": 0.5, "patience": 1, "span_ms": (0.0, 0.0)} for word in ("yes", "no")}
    one = session(replace(SPEC, calibration=CALIBRATION | {"keywords": keywords}))
    assert len(one.audio(pcm(TOKEN + TAIL))) == 1
    one.reset()
    assert [len(one.audio(pcm(10))), len(one.flush()), len(one.audio(pcm(TOKEN)))] == [0, 1, 1]
    yes, no = one.judge(said(None, "yes", "no"), Vitals())
    assert isinstance(yes, Detection)
    assert isinstance(no, Detection)
    assert no.start_s <= no.end_s <= no.at_s


def test_marker_comes_after_what_was_detected_before_it_and_before_what_came_later() -> None:
    one = session(keywords={"yes": KeywordSettings(patience=1), "no": KeywordSettings(patience=1)})
    one.audio(pcm(2 * TOKEN + TAIL))
    assert one.marker(Marker(id="here")) == []
    one.audio(pcm(2 * TOKEN))
    assert kinds(one.judge(said(None), Vitals())) == []
    messages = one.judge(said("yes", None, "no"), Vitals())
    assert kinds(messages) == ["detection", "marker", "detection"]
    assert [m.keyword for m in messages if isinstance(m, Detection)] == ["yes", "no"]


def test_marker_with_nothing_before_it_comes_back_at_once() -> None:
    assert session().marker(Marker(id=7)) == [Marker(id=7)]


def test_what_is_closed_is_judged_up_to_half_a_second_after_its_last_sample() -> None:
    one = session()
    one.audio(pcm(1_000))
    one.end()
    assert (one.fed * TOKEN + TAIL - 1_000) / 16_000 == pytest.approx(0.5, abs=TOKEN / 16_000)
    one.judge(said(*[None] * one.fed), Vitals())
    assert one.totals(Vitals()).audio_s == 1_000 / 16_000


def test_flush_completes_the_last_token_and_the_clock_goes_on() -> None:
    one = session(keywords={"yes": KeywordSettings(patience=1)})
    fed = len(one.audio(pcm(1_000)))
    fed += len(one.flush())
    assert fed * TOKEN + TAIL >= 1_000
    assert one.judge(said(*[None] * fed), Vitals()) == []
    fed += len(one.audio(pcm(TOKEN)))
    (detection,) = one.judge(said("yes"), Vitals())
    assert detection.at_s == pytest.approx((1_000 + TOKEN) / 16_000, abs=1e-6)


def test_scores_of_a_batch_know_the_time_after_a_flush() -> None:
    one = session(keywords={}, scores=True)
    fed = len(one.audio(pcm(1_000))) + len(one.flush()) + len(one.audio(pcm(TOKEN)))
    before, after = one.judge(said(*[None] * fed), Vitals())
    assert (len(before.posteriors), before.at_s) == (fed - 1, pytest.approx(1_280 / 16_000))
    assert (len(after.posteriors), after.at_s) == (1, pytest.approx((1_000 + TOKEN) / 16_000))


def test_resumed_stream_tells_no_scores_of_what_was_told() -> None:
    one = session(keywords={}, scores=True, resume=Resume(token=Position("s", 2 * TOKEN, 0, {}).encode(), sample=0))
    one.audio(pcm(4 * TOKEN + TAIL))
    assert one.judge(said(None), Vitals()) == []
    scores, _heartbeat = one.judge(said(None, "yes", "no"), Vitals())
    assert (len(scores.posteriors), scores.at_s) == (2, pytest.approx((4 * TOKEN + TAIL) / 16_000))


def test_reset_forgets_the_past_but_not_the_time() -> None:
    one = session(keywords={"yes": KeywordSettings(patience=2)})
    one.audio(pcm(TOKEN + TAIL))
    one.reset()
    one.audio(pcm(TOKEN + TAIL))
    assert one.judge(said("yes", "yes"), Vitals()) == []
    one.audio(pcm(TOKEN))
    (detection,) = one.judge(said("yes"), Vitals())
    assert detection.at_s == pytest.approx((3 * TOKEN + 2 * TAIL) / 16_000)


def test_reset_at_a_resumed_stream_s_beginning_leaves_nothing_to_skip() -> None:
    one = session(resume=Resume(token=Position("stolen", 100, 0, {}).encode(), sample=0))
    assert (one.id, one.connection) == ("stolen", "abc")
    one.audio(pcm(50))
    one.reset()
    one.audio(pcm(TOKEN + TAIL))
    assert one.fed == 1


def test_reset_right_after_a_resumed_stream_s_checkpoint_forgets_what_this_one_brought() -> None:
    fired = {"yes": (2, 0.9, 3, 0, 1)}
    one = session(
        keywords={"yes": KeywordSettings(patience=1)},
        resume=Resume(token=Position("s", TOKEN, 1, fired).encode(), sample=TOKEN),
    )
    one.reset()
    assert one.due() == []
    one.audio(pcm(TOKEN + TAIL))
    assert kinds(one.judge(said("yes"), Vitals())) == ["detection", "heartbeat"]


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_a_flush_whose_last_samples_complete_a_token_hands_on_all_of_its_windows(rate: int) -> None:
    """50 ms are a token to the sample, and the resampler keeps the last of them until the flush."""
    one = session(sample_rate=rate)
    assert len(one.audio(bytes(2 * rate // 20))) == 0
    tokens = one.flush()
    assert (len(tokens), len(tokens.data)) == (1, 4 * (TOKEN + TAIL))


def test_new_rules_hold_from_where_they_were_asked_for() -> None:
    one = session(keywords={"yes": KeywordSettings(patience=1)})
    one.audio(pcm(2 * TOKEN + TAIL))
    assert one.configure(Configure(keywords={"no": KeywordSettings(patience=1)}, scores=True)) == []
    one.audio(pcm(2 * TOKEN))
    messages = one.judge(said("yes", None, "yes", "no"), Vitals())
    assert kinds(messages) == ["detection", "ready", "scores", "detection"]
    assert len(messages[2].posteriors) == 2
    assert kinds(one.judge(said(None), Vitals())) == ["scores"]


@pytest.mark.parametrize("change", [{"sample_rate": 8_000}, {"channels": 2}, {"encoding": "f32le"}, {"model": "x"}])
def test_audio_format_and_model_stay(change: dict[str, object]) -> None:
    with pytest.raises(BadMessage) as refused:
        session().configure(Configure.model_validate(change, strict=False))
    assert refused.value.field == next(iter(change))


def test_a_configure_that_leaves_out_the_rate_is_told_to_repeat_it() -> None:
    with pytest.raises(BadMessage, match="sample_rate cannot change .* left out, .* say it again"):
        session(sample_rate=8_000).configure(Configure(scores=True))


def test_only_the_first_configure_resumes() -> None:
    with pytest.raises(BadMessage, match="resume"):
        session().configure(Configure(resume=Resume(token="", sample=0)))


def test_what_the_model_does_not_have_is_named() -> None:
    with pytest.raises(BadMessage, match="sesame") as refused:
        session(keywords={"sesame": KeywordSettings()})
    assert refused.value.field == "keywords.sesame"
    with pytest.raises(UnknownModel, match="dense"):
        session(point="sharp")


def test_ready_tells_every_setting_in_force() -> None:
    ready = session(keywords={"yes": KeywordSettings(threshold=0.9), "no": KeywordSettings(enabled=False)}).ready()
    assert list(ready.keywords) == ["yes"]
    assert None not in ready.keywords["yes"].model_dump().values()
    assert (ready.keywords["yes"].threshold, ready.point) == (0.9, "shipped")


def test_heartbeats_come_on_the_clock_of_the_stream() -> None:
    one = session(heartbeat_ms=300)
    one.audio(pcm(16_000))
    beats = [kinds(one.judge(said(None), Vitals())) for _ in range(30)]
    assert [i for i, kind in enumerate(beats) if kind] == [9, 19, 29]


def test_heartbeats_that_shall_come_sooner_do_so_at_once() -> None:
    one = session(heartbeat_ms=60_000)
    one.configure(Configure(heartbeat_ms=150))
    one.audio(pcm(16_000))
    beats = [kinds(one.judge(said(None), Vitals())) for _ in range(12)]
    assert [i for i, kind in enumerate(beats) if "heartbeat" in kind] == [4, 9]


def test_clip_holds_the_word_and_what_came_before() -> None:
    one = session(keywords={"yes": KeywordSettings(patience=1)}, preroll_ms=200)
    ramp = np.arange(16_000, dtype="<i2")
    one.audio(ramp.tobytes())
    (detection,) = one.judge(said(*[None] * 25, "yes"), Vitals())
    clip = np.frombuffer(base64.b64decode(detection.clip), "<i2")
    assert clip[0] == round((detection.start_s - 0.2) * 16_000)
    assert clip[-1] == round(detection.at_s * 16_000) - 1


def test_clips_stay_in_place_at_any_rate_however_often_a_stream_is_reset() -> None:
    """A ramp of a second tells where a clip was cut."""
    rate = 44_100
    asked = {"sample_rate": rate, "keywords": {"yes": KeywordSettings(patience=1)}}
    one = session(**asked)
    ramp = (np.arange(rate * 42) % rate // 2).astype("<i2")

    def heard(begin_s: float, end_s: float) -> Iterable[ServerMessage]:
        one.audio(ramp[round(rate * begin_s) : round(rate * end_s)].tobytes())
        waiting = one.fed - one.judged
        return one.judge(said(*[None] * (waiting - 1), "yes"), Vitals())

    heard(0, 1.4)
    one.configure(Configure(**asked, preroll_ms=200))
    for second in range(1, 40):
        (detection,) = [m for m in heard(second + 0.4, second + 0.9) if isinstance(m, Detection)]
        clip = np.frombuffer(base64.b64decode(detection.clip), "<i2")
        begin_s = detection.start_s - 0.2
        assert len(clip) == pytest.approx((detection.at_s - begin_s) * 16_000, abs=1 if second > 1 else 16_000)
        for place in (100, -100) if second > 1 else (-100,):
            at_s = (begin_s if place > 0 else detection.at_s) + place / 16_000
            assert clip[place] == pytest.approx(at_s % 1 * rate / 2, abs=10)
        heard(second + 0.9, second + 1.35)
        one.reset()
        heard(second + 1.35, second + 1.4)


def test_clips_of_a_long_frame_begin_where_its_words_do() -> None:
    one = session(keywords={"yes": KeywordSettings(patience=1)}, preroll_ms=200)
    one.audio(np.arange(16 * 16_000, dtype=np.int64).astype("<i2").tobytes())
    (detection,) = one.judge(said(*[None] * 25, "yes"), Vitals())
    clip = np.frombuffer(base64.b64decode(detection.clip), "<i2")
    assert clip[0] == round((detection.start_s - 0.2) * 16_000)


@pytest.mark.parametrize("chunk", [1_600, 16])
def test_clips_cost_no_more_memory_than_they_can_hold(chunk: int) -> None:
    one = session(keywords={"yes": KeywordSettings(patience=1)}, preroll_ms=200)
    data = pcm(chunk)
    tracemalloc.start()
    for _ in range(10 * 16_000 // chunk):
        one.audio(data)
        if waiting := one.fed - one.judged:
            one.judge(said(*[None] * waiting), Vitals())
    traces = tracemalloc.take_snapshot().filter_traces([tracemalloc.Filter(True, "*/service/audio.py")]).traces
    tracemalloc.stop()
    assert 2 * 16_000 * WORD_S < sum(trace.size for trace in traces) < 2 * 16_000 * (WORD_S + 2)


def test_no_clip_is_sent_once_none_is_wanted() -> None:
    one = session(keywords={"yes": KeywordSettings(patience=1)}, preroll_ms=200)
    one.configure(Configure(keywords={"yes": KeywordSettings(patience=1)}))
    one.audio(pcm(16_000))
    (detection,) = one.judge(said(*[None] * 25, "yes"), Vitals())
    assert detection.clip is None


def test_feedback_finds_recent_detections_only() -> None:
    one = session(keywords={"yes": KeywordSettings(patience=1)})
    one.audio(pcm(16_000))
    (detection,) = one.judge(said("yes"), Vitals())
    assert one.feedback(Feedback(detection=0, correct=True)) == (detection, [])
    known, warnings = one.feedback(Feedback(detection=1, correct=True))
    assert known is None
    assert kinds(warnings) == ["warning"]


def test_queue_of_markers_is_bounded() -> None:
    one = session()
    one.audio(pcm(16_000))
    for number in range(ACTIONS):
        one.marker(Marker(id=number))
    with pytest.raises(QueueFull):
        one.marker(Marker(id=ACTIONS))
