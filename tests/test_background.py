"""What enrolled keywords rest on: the background's densities, the contrast, and which recordings are fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.background import BEGINNING, PIECE, SETTLE, Background, Embedded, embed_speech, embed_words, fit
from models.config import ModelConfig
from models.contrast import contrast
from models.data import Corpus, DataError
from models.enroll import EnrolError, EnrolledKeyword, Spotting, check_recording, ratio
from models.network import Network

SECOND = 16_000


def test_ratio_is_that_of_the_densities() -> None:
    """Against plain normal densities, one value at a time; the constant that all share cancels."""
    random = np.random.default_rng(0)
    c, n = 3, 4
    between = random.uniform(0.1, 2, c)
    spread = np.cov(random.normal(size=(c, 20)))
    rivals, speech = random.normal(size=(2, c)), random.normal(size=c)
    volume = np.array([np.linalg.slogdet(spread)[1]])
    nothing = np.zeros((1, c))
    known = Background(nothing[0], np.eye(c), between, rivals, speech, np.linalg.inv(spread), volume, nothing)
    x, prototype = random.normal(size=c), random.normal(size=c)

    def density(mean: np.ndarray, covariance: np.ndarray) -> float:
        away = x - mean
        return float(np.exp(-0.5 * away @ np.linalg.inv(covariance) @ away) / np.sqrt(np.linalg.det(covariance)))

    share = n * between / (n * between + 1)
    same = density(share * prototype, np.diag(1 + between / (n * between + 1)))
    others = [density(rival, np.eye(c)) for rival in rivals]
    other = sum([density(np.zeros(c), np.diag(1 + between)), density(speech, spread), *others])
    got = ratio(x[None], prototype[None], np.array([n]), known)
    np.testing.assert_allclose(got, np.log(same / other), rtol=1e-6)


@given(st.sets(st.integers(1, 19)).map(sorted))
def test_any_split_gives_the_same_scores(cuts: list[int]) -> None:
    random = np.random.default_rng(0)
    c = 8
    vectors = random.normal(size=(40, len(SETTLE), c)).astype(np.float32)
    embedded = Embedded(vectors, np.array([str(i % 5) for i in range(40)]), vectors[:, 0])
    known = fit(embedded, random.normal(size=(100, c)).astype(np.float32), ModelConfig())
    words = [EnrolledKeyword(n, "f", 3, *(tuple(random.normal(size=k)) for k in (c, c + 1))) for n in "ab"]
    spotting = Spotting(known, words)
    tokens = random.normal(size=(20, c)).astype(np.float32)
    parts = np.concatenate([spotting.scores(part) for part in np.split(tokens, cuts)])
    np.testing.assert_allclose(parts, spotting.scores(tokens), atol=1e-5)


def test_within_words_the_projection_scatters_by_one() -> None:
    """Of words that scatter and lie as told, the fit finds both variances."""
    random = np.random.default_rng(0)
    words, each, c = 400, 20, 4
    mix = np.eye(c) + random.normal(size=(c, c)) * 0.3
    centres = random.normal(size=(words, 1, 1, c)) * np.sqrt([0.5, 1.0, 2.0, 4.0])
    scattered = centres + random.normal(size=(words, each, len(SETTLE), c))
    embedded = Embedded(
        (scattered @ mix).reshape(-1, len(SETTLE), c).astype(np.float32),
        np.repeat(np.arange(words).astype(str), each),
        scattered.reshape(-1, c),
    )
    known = fit(embedded, random.normal(size=(50, c)), ModelConfig())
    np.testing.assert_allclose(np.sort(known.between), [0.5, 1.0, 2.0, 4.0], rtol=0.3)
    inside = known.project(embedded.vectors).reshape(words, -1, c)
    np.testing.assert_allclose(inside.var(axis=1).mean(axis=0), 1.0, rtol=0.1)


def test_clips_are_embedded_in_both_directions_and_silence_with_them(network: Network) -> None:
    random = np.random.default_rng(0)
    corpus = Corpus(
        random.integers(0, 200, (3, 98, 48), np.uint8),
        np.array(["yes", "bed", "bed"]),
        np.ones(3, bool),
        [random.integers(0, 90, (300, 48), np.uint8)],
        random.integers(0, 200, (3_600, 48), np.uint8),
    )
    embedded = embed_words(network, corpus, "dense", per_word=2)
    assert sorted(embedded.words) == sorted(["yes", "yes backwards", *["bed", "bed backwards"] * 2, *["_silence_"] * 2])
    assert embedded.vectors.shape == (8, len(SETTLE), network.config.channels)
    assert embedded.singles.shape == (8, network.config.channels)
    speech = embed_speech(network, corpus, "dense")
    assert speech.shape == (9 * PIECE + 9 * (PIECE - BEGINNING), network.config.channels)
    np.testing.assert_allclose(speech[BEGINNING:PIECE], speech[9 * PIECE :][: PIECE - BEGINNING], atol=1e-3)
    with pytest.raises(DataError, match="running_speech"):
        embed_speech(network, replace(corpus, speech=corpus.speech[:100]), "dense")


def test_a_contrast_stands_where_the_ridge_holds_the_slope() -> None:
    """At the minimum the loss of `models.contrast` has no slope, by differences; the two sides are apart."""
    random = np.random.default_rng(0)
    own, others = random.normal(1, 1, (3, 5, 4)).astype(np.float32), random.normal(0, 1, (200, 4)).astype(np.float32)
    weights = contrast(own, others).astype(np.float64)

    def loss(w: np.ndarray) -> float:
        odds = [side.reshape(-1, 4) @ w[:4] + w[4] for side in (own, others)]
        fits = np.logaddexp(0, -odds[0]).sum() / 5 + np.logaddexp(0, odds[1]).sum() * 30 / 200
        return float(fits + 0.3 * w[:4] @ w[:4] + 0.5e-4 * w[4] ** 2)

    slopes = [(loss(weights + step) - loss(weights - step)) / 2e-4 for step in np.eye(5) * 1e-4]
    np.testing.assert_allclose(slopes, 0, atol=1e-2)
    assert (own @ weights[:4]).mean() > (others @ weights[:4]).mean() + 1


# --- recordings


def tone(seconds: float, level: float) -> np.ndarray:
    """A burst in the middle of a second of hiss."""
    random = np.random.default_rng(0)
    samples = random.normal(0, 5, SECOND)
    first = (SECOND - int(seconds * SECOND)) // 2
    samples[first : first + int(seconds * SECOND)] += level * np.sin(np.arange(int(seconds * SECOND)) * 0.3)
    return np.clip(samples, -32_768, 32_767).astype(np.float32)


@pytest.mark.parametrize(
    ("samples", "trouble"),
    [
        (tone(0.5, 3_000)[:3_000], "too short"),
        (np.tile(tone(0.5, 3_000), 5), "too long"),
        (np.zeros(SECOND, np.float32), "silent"),
        (tone(0.5, 0), "silent"),
        (tone(0.03, 9_000), "click"),
        (tone(0.5, 90_000), "clipped"),
    ],
    ids=["short", "long", "zeros", "hiss", "click", "clipped"],
)
def test_a_useless_recording_is_named_with_what_to_do(samples: np.ndarray, trouble: str) -> None:
    with pytest.raises(EnrolError, match=rf"third\.wav.*{trouble}.*(record|turn|say)"):
        check_recording("third.wav", samples)


def test_a_good_recording_passes() -> None:
    check_recording("good.wav", tone(0.5, 3_000))
