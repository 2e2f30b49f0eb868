"""The story of one stream, told without a socket: what goes in, what comes out, in which order and at which time."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import ModelConfig
from models.counting import Count, nothing
from models.features import log_mel
from models.network import Network
from models.offline import softmax
from service.errors import BadMessage, QueueFull, UnknownModel
from service.protocol import (
    Configure,
    Detection,
    Feedback,
    Heartbeat,
    KeywordSettings,
    Limits,
    Marker,
    Resume,
    ServerMessage,
)
from service.session import ACTIONS, Session
from service.spec import Spec

CONFIG = ModelConfig()
LIMITS = Limits(frame_bytes=1 << 20, stream_s=10, idle_s=1, speed=10)
CALIBRATION = {"window_tokens": 1, "margin": 0.1, "refractory_ms": 0, "keywords": {}}
SPEC = Spec("default", "0" * 12, CONFIG, ("dense", "shipped"), CALIBRATION)
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


def test_flush_completes_the_last_token_and_the_clock_goes_on() -> None:
    one = session(keywords={"yes": KeywordSettings(patience=1)})
    fed = len(one.audio(pcm(1_000)))
    fed += len(one.flush())
    assert fed * TOKEN + TAIL >= 1_000
    assert one.judge(said(*[None] * fed), Vitals()) == []
    fed += len(one.audio(pcm(TOKEN)))
    (detection,) = one.judge(said("yes"), Vitals())
    assert detection.at_s == pytest.approx((1_000 + TOKEN) / 16_000, abs=1e-6)


def test_reset_forgets_the_past_but_not_the_time() -> None:
    one = session(keywords={"yes": KeywordSettings(patience=2)})
    one.audio(pcm(TOKEN + TAIL))
    one.reset()
    one.audio(pcm(TOKEN + TAIL))
    assert one.judge(said("yes", "yes"), Vitals()) == []
    one.audio(pcm(TOKEN))
    (detection,) = one.judge(said("yes"), Vitals())
    assert detection.at_s == pytest.approx((3 * TOKEN + 2 * TAIL) / 16_000)


def test_new_rules_hold_from_where_they_were_asked_for() -> None:
    one = session(keywords={"yes": KeywordSettings(patience=1)})
    one.audio(pcm(2 * TOKEN + TAIL))
    assert one.configure(Configure(keywords={"no": KeywordSettings(patience=1)}, scores=True)) == []
    one.audio(pcm(2 * TOKEN))
    messages = one.judge(said("yes", None, "yes", "no"), Vitals())
    assert kinds(messages) == ["detection", "ready", "detection"]
    assert kinds(one.judge(said(None), Vitals())) == ["scores"]


@pytest.mark.parametrize("change", [{"sample_rate": 8_000}, {"channels": 2}, {"encoding": "f32le"}, {"model": "x"}])
def test_audio_format_and_model_stay(change: dict[str, object]) -> None:
    with pytest.raises(BadMessage) as refused:
        session().configure(Configure.model_validate(change, strict=False))
    assert refused.value.field == next(iter(change))


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


def test_clip_holds_the_word_and_what_came_before() -> None:
    one = session(keywords={"yes": KeywordSettings(patience=1)}, preroll_ms=200)
    ramp = np.arange(16_000, dtype="<i2")
    one.audio(ramp.tobytes())
    (detection,) = one.judge(said(*[None] * 25, "yes"), Vitals())
    clip = np.frombuffer(base64.b64decode(detection.clip), "<i2")
    assert clip[0] == round((detection.start_s - 0.2) * 16_000)
    assert clip[-1] == round(detection.at_s * 16_000) - 1


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


@pytest.mark.parametrize("token", ["", "?", "bm8=", base64.b64encode(b'["a",0,0,{"yes":[0,2,0,0,0]}]').decode()])
def test_resume_token_of_another_kind_is_refused(token: str) -> None:
    with pytest.raises(BadMessage) as refused:
        session(resume=Resume(token=token, sample=0))
    assert refused.value.field == "resume.token"


WORDS = st.lists(st.sampled_from([None, None, None, "yes", "no"]), min_size=5, max_size=80)
RULES = {
    "yes": KeywordSettings(threshold=0.5, patience=2, refractory_ms=90),
    "no": KeywordSettings(threshold=0.3, patience=1, refractory_ms=60),
}
SMOOTH = Spec("default", "0", CONFIG, ("dense",), {**CALIBRATION, "window_tokens": 3})


def listen(one: Session, words: list[str | None], start: int = 0) -> list[ServerMessage]:
    """The stream's words from token `start` on, a token at a time."""
    messages = []
    for word in words[start:]:
        one.audio(pcm(TOKEN))
        messages += one.judge(said(word), Vitals())
    return messages


@given(WORDS, st.integers(0, 10_000))
def test_resumed_stream_tells_the_rest_and_nothing_twice(words: list[str | None], seed: int) -> None:
    """Cut anywhere, go on from the newest checkpoint that was received, on a server that knows nothing."""
    asked = {"keywords": RULES, "heartbeat_ms": 210}
    whole = session(SMOOTH, **asked)
    whole.audio(pcm(TAIL))
    told = listen(whole, words)
    cut = seed % (len(told) + 1)
    before = told[:cut]
    checkpoint = next((m.checkpoint for m in reversed(before) if m.type in ("detection", "heartbeat")), None)
    heard = [m for m in before if isinstance(m, Detection)]
    if checkpoint is not None:
        at = max(0, checkpoint.sample // TOKEN - 5)
        rest = session(SMOOTH, **asked, resume=Resume(token=checkpoint.token, sample=at * TOKEN))
        rest.audio(pcm(TAIL))
        heard += [m for m in listen(rest, words, at) if isinstance(m, Detection)]
        assert rest.id == whole.id
        wanted = [m for m in told if isinstance(m, Detection)]
        assert [(m.id, m.keyword, m.at_s) for m in heard] == [(m.id, m.keyword, pytest.approx(m.at_s)) for m in wanted]


@settings(max_examples=15, deadline=None)
@given(number=st.integers(1, 60), slack=st.integers(0, 5_000), piece=st.sampled_from([100, 1_600, 4_000]))
def test_replay_from_anywhere_is_heard_alike(
    network: Network, spoken: np.ndarray, number: int, slack: int, piece: int
) -> None:
    """The earlier connection's tokens do not begin where the replay does."""
    words = spoken[: 8 * 16_000]
    whole = hear(network, words, piece)
    checkpoints = [m.checkpoint for m in whole if isinstance(m, Detection | Heartbeat)]
    checkpoint = checkpoints[number % len(checkpoints)]
    first = session(SMOOTH).ready().replay_samples + slack
    start = max(0, checkpoint.sample - first)
    told = hear(network, words[start:], piece, resume=Resume(token=checkpoint.token, sample=start))
    after = [m for m in whole if isinstance(m, Detection) and m.at_s * 16_000 > checkpoint.sample + TAIL]
    assert [(m.id, m.keyword, m.at_s) for m in told if isinstance(m, Detection)] == [
        (m.id, m.keyword, pytest.approx(m.at_s)) for m in after
    ]


def hear(network: Network, samples: np.ndarray, piece: int, **asked: object) -> list[ServerMessage]:
    """A recording in pieces, through a session and the dense network."""
    checkpoint = network.checkpoint
    spec = Spec("default", checkpoint.fingerprint, network.config, network.points, checkpoint.calibration)
    one, cache, messages = session(spec, point="dense", heartbeat_ms=300, **asked), network.new_cache(1), []
    for at in range(0, len(samples), piece):
        tokens = one.samples(samples[at : at + piece])
        if len(tokens):
            frames = log_mel([tokens], network.config)
            messages += one.judge(
                softmax(network.step(cache, np.array([0]), frames, np.array([len(tokens)]))), Vitals()
            )
    return messages


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(1, 9_000), max_size=12), rate=st.sampled_from([8_000, 16_000, 48_000]))
def test_speech_is_heard_alike_however_it_is_cut(
    network: Network, spoken: np.ndarray, cuts: list[int], rate: int
) -> None:
    """Bytes to detections, with the real model and no engine."""
    data = spoken[: 6 * 16_000].astype("<i2").tobytes()
    assert detections(network, data, cuts, rate) == detections(network, data, [], rate) != []


def detections(network: Network, data: bytes, cuts: list[int], rate: int) -> list[tuple[str, float]]:
    checkpoint = network.checkpoint
    spec = Spec("default", checkpoint.fingerprint, network.config, network.points, checkpoint.calibration)
    one = Session("abc", spec, Configure(sample_rate=rate), LIMITS)
    cache, found, at = network.new_cache(1), [], 0
    if rate != 16_000:
        samples = np.frombuffer(data, "<i2").astype(np.float32)
        data = np.clip(soxr.resample(samples, 16_000, rate), -32_768, 32_767).astype("<i2").tobytes()
    chunks = []
    for cut in [*cuts, len(data)]:
        chunks.append(one.audio(data[at : at + cut]))
        at += cut
    for tokens in [*chunks, one.flush()]:
        if len(tokens):
            frames = log_mel([tokens], network.config)
            posteriors = softmax(network.step(cache, np.array([0]), frames, np.array([len(tokens)])))
            found += one.judge(posteriors, Vitals())
    return [(m.keyword, round(m.at_s, 6)) for m in found if isinstance(m, Detection)]
