"""Pictures get a treble that follows from what they have; audio keeps its own, and silence stays silent."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from models.data import CLIP_FRAMES, FRONTEND, Corpus
from models.guess import fit
from models.treble import widened

BASE, BANDS, STEPS = FRONTEND.base, FRONTEND.bands, 60


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    """Audio whose treble is as loud as its highest bands, and as many pictures, half of each nearly silent."""
    random = np.random.default_rng(0)
    loudness = random.uniform(80, 200, (64, CLIP_FRAMES, 1)) * (np.arange(CLIP_FRAMES) < CLIP_FRAMES // 2)[:, None]
    pixels = np.clip(loudness + random.normal(0, 5, (64, CLIP_FRAMES, BANDS)), 0, 255).astype(np.uint8)
    raw = np.arange(64) % 2 == 0
    pixels[~raw, :, BASE:] = 0
    return Corpus(pixels, np.array(["yes", "no"] * 32), raw, [])


def test_guess_is_better_than_the_mean_and_repeats_to_the_bit(corpus: Corpus) -> None:
    heard = corpus.pixels[corpus.raw]
    given, wanted = heard[..., :BASE], heard[..., BASE:].astype(np.float32)
    guess = fit(given[:24], wanted[:24], STEPS)
    missed = (guess.of(given[24:]) - wanted[24:]).std()
    assert missed < 0.2 * wanted[24:].std()
    assert np.array_equal(guess.of(given[:1]), fit(given[:24], wanted[:24], STEPS).of(given[:1]))


def test_pictures_get_a_treble_and_audio_keeps_its_own(corpus: Corpus) -> None:
    wide = widened(corpus, STEPS)
    assert wide.raw.all()
    assert np.array_equal(wide.pixels[corpus.raw], corpus.pixels[corpus.raw])
    assert np.array_equal(wide.pixels[..., :BASE], corpus.pixels[..., :BASE])
    treble = wide.pixels[~corpus.raw][..., BASE:].astype(float)
    spoken = CLIP_FRAMES // 2 - 5
    below = corpus.pixels[~corpus.raw][..., BASE - 8 : BASE].astype(float)
    assert abs(treble[:, :spoken].mean() - below[:, :spoken].mean()) < 10
    assert treble[:, -spoken:].mean() < 10


@pytest.mark.parametrize("audio", [True, False])
def test_corpus_of_one_kind_stays_as_it_is(corpus: Corpus, *, audio: bool) -> None:
    one = replace(corpus, raw=np.full(64, audio))
    assert widened(one, STEPS) is one
