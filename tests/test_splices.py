"""Splices are made of two words' halves, and never of a word by which enrolment is judged."""

from __future__ import annotations

import numpy as np

from models.data import Corpus
from models.evaluate_enroll import WORDS, forgetful
from models.splices import spliced


def test_a_splice_begins_as_one_word_and_ends_as_another() -> None:
    random = np.random.default_rng(0)
    pixels = np.zeros((4, 98, 48), np.uint8)
    for clip, level in enumerate((100, 120, 140, 160)):
        pixels[clip, 30:70] = level
    corpus = Corpus(pixels, np.array(["bed", "bed", "cow", "dog"]), np.array([True, False, True, False]), [])
    made = spliced(corpus, 2, random)
    assert sorted(set(made.words)) == ["bed+cow", "bed+dog", "cow+bed", "cow+dog", "dog+bed", "dog+cow"]
    assert made.pixels.shape == (12, 98, 48)
    for one, word, raw in zip(made.pixels, made.words, made.raw, strict=True):
        assert set(one[30:49].ravel()) <= set(pixels[corpus.words == word[:3]].ravel()) - {0}
        assert set(one[50:69].ravel()) <= set(pixels[corpus.words == word[4:]].ravel()) - {0}
        assert not (raw and "dog" in word)
    assert set(forgetful(corpus).words) == {"cow", "dog"}
    assert "cow" not in WORDS
