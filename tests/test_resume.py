"""A stream that broke goes on elsewhere: everything is told once, however it is cut and replayed."""

from __future__ import annotations

import base64

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st

from models.features import log_mel
from models.network import Network
from models.offline import softmax
from models.operating import offered
from service.errors import BadMessage
from service.protocol import (
    Checkpoint,
    Configure,
    Detection,
    Enrolled,
    Heartbeat,
    KeywordSettings,
    Resume,
    Scores,
    ServerMessage,
    encode,
    parse_client,
)
from service.resume import Position
from service.session import Session
from service.spec import Spec
from tests.test_session import CALIBRATION, CONFIG, LIMITS, TAIL, TOKEN, Vitals, pcm, said, session


@pytest.mark.parametrize("letter", ["w", "\u0434", "\u6f22", "\U0001f5e3"])
def test_as_many_own_keywords_as_there_may_be_can_be_resumed(letter: str) -> None:
    """Whatever script their names are written in."""
    names = [f"{letter * 31}{i}" for i in range(8)]
    state = {name: [3_999, 0.1234, 99, 0, 3_999] for name in (*CONFIG.keywords, *names)}
    checkpoint = Checkpoint(sample=2**40, token=Position("f" * 16, 2**39, 2**39, state).encode())
    assert Position.parse(checkpoint.token).state.keys() == state.keys()
    own = [
        Enrolled(
            name=name,
            fingerprint="f" * 12,
            recordings=10,
            prototype=(-1.2345678901234567,) * CONFIG.channels,
            weights=(-1.2345678901234567,) * (CONFIG.channels + 1),
        )
        for name in names
    ]
    rules = {word: KeywordSettings(threshold=0.1234567890123, patience=100, refractory_ms=60_000) for word in state}
    again = Configure(enrolled=tuple(own), keywords=rules, resume=Resume(token=checkpoint.token, sample=2**40))
    assert parse_client(encode(again)) == again


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
SMOOTH = Spec("default", "0", CONFIG, {"dense": "dense"}, {**CALIBRATION, "window_tokens": 3})


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
    whole = hear(network, words, piece, scores=True)
    checkpoints = [m.checkpoint for m in whole if isinstance(m, Detection | Heartbeat)]
    checkpoint = checkpoints[number % len(checkpoints)]
    first = session(SMOOTH).ready().replay_samples + slack
    start = max(0, checkpoint.sample - first)
    told = hear(network, words[start:], piece, scores=True, resume=Resume(token=checkpoint.token, sample=start))
    after = [m for m in whole if isinstance(m, Detection) and m.at_s * 16_000 > checkpoint.sample + TAIL]
    assert [(m.id, m.keyword, m.at_s) for m in told if isinstance(m, Detection)] == [
        (m.id, m.keyword, pytest.approx(m.at_s)) for m in after
    ]
    rows = scored(whole)
    news = rows[rows[:, 0] * 16_000 > checkpoint.sample + TAIL + 1]
    np.testing.assert_allclose(scored(told).reshape(news.shape), news, atol=2e-4, err_msg="time, posteriors")


def scored(messages: list[ServerMessage]) -> np.ndarray:
    """Scores -> time and posteriors of each token (N, 1 + K)."""
    return np.array(
        [
            [m.at_s - (len(m.posteriors) - 1 - place) * m.hop_s, *row]
            for m in messages
            if isinstance(m, Scores)
            for place, row in enumerate(m.posteriors)
        ]
    )


def hear(network: Network, samples: np.ndarray, piece: int, **asked: object) -> list[ServerMessage]:
    """A recording in pieces, through a session and the dense network."""
    checkpoint = network.checkpoint
    spec = Spec("default", checkpoint.fingerprint, network.config, offered(checkpoint), checkpoint.calibration)
    one, cache, messages = session(spec, point="dense", heartbeat_ms=300, **asked), network.new_cache(1), []
    for at in range(0, len(samples), piece):
        tokens = one.samples(samples[at : at + piece])
        if len(tokens):
            frames = log_mel([tokens], network.config)
            messages += one.judge(
                softmax(network.step(cache, np.array([0]), frames, np.array([len(tokens)]))), Vitals()
            )
    return messages


@pytest.mark.parametrize(("kind", "gap_s"), [("flush", 0.25), ("flush", 0.5), ("reset", 1.7)])
def test_replay_with_its_flushes_and_resets_tells_every_word_once(
    network: Network, spoken: np.ndarray, kind: str, gap_s: float
) -> None:
    whole = interrupted(network, spoken, 0, kind, gap_s)
    told = [m for m in whole if isinstance(m, Detection)]
    assert len(told) >= 3
    for number, message in enumerate(whole):
        if isinstance(message, Detection | Heartbeat):
            checkpoint = message.checkpoint
            start = max(0, checkpoint.sample - 60_000)
            resume = Resume(token=checkpoint.token, sample=start)
            again = interrupted(network, spoken, start, kind, gap_s, resume=resume)
            heard = [m for m in [*whole[: number + 1], *again] if isinstance(m, Detection)]
            assert [(m.id, m.keyword) for m in heard] == [(m.id, m.keyword) for m in told], checkpoint.sample


def interrupted(
    network: Network, samples: np.ndarray, start: int, kind: str, gap_s: float, **asked: object
) -> list[ServerMessage]:
    """A recording from `start` on, flushed or reset every `gap_s` of it, through a session and the dense network."""
    checkpoint = network.checkpoint
    spec = Spec("default", checkpoint.fingerprint, network.config, offered(checkpoint), checkpoint.calibration)
    one, cache, messages = session(spec, point="dense", heartbeat_ms=300, **asked), network.new_cache(1), []
    gap = round(gap_s * 16_000)
    for end in [*range((start // gap + 1) * gap, len(samples), gap), len(samples)]:
        parts, start = [one.audio(samples[start:end].astype("<i2").tobytes())], end
        if kind == "flush":
            parts.append(one.flush())
        for tokens in filter(len, parts):
            frames = log_mel([tokens], network.config)
            posteriors = softmax(network.step(cache, np.array([0]), frames, np.array([len(tokens)])))
            messages += one.judge(posteriors, Vitals())
        messages += one.due()
        if kind == "reset":
            one.reset()
            messages += one.due()
            cache.reset(0)
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
    spec = Spec("default", checkpoint.fingerprint, network.config, offered(checkpoint), checkpoint.calibration)
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
