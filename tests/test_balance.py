"""The bias is that by which all labels together are judged best, and nothing else in the weights moves."""

from __future__ import annotations

import numpy as np
import pytest

from models.balance import BIAS, GRID, balance, best
from models.checkpoint import Checkpoint
from models.config import SILENCE, ModelConfig
from models.data import CLIP_FRAMES, Corpus, DataError
from models.network import Network
from models.transformer import StreamingKWT
from models.validation import Validation, posteriors_on

CONFIG = ModelConfig(channels=32, heads=2, layers=1, hidden=32, span=16)


def test_a_prior_that_was_moved_is_moved_back() -> None:
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 4_000)
    logits = rng.normal(size=(4_000, 4)) + 2.5 * np.eye(4)[labels]
    skewed = np.exp(logits + np.array([0.0, 1.5, 0.0, 0.0]))
    assert best(skewed / skewed.sum(axis=1, keepdims=True), labels, 1) == pytest.approx(-1.5, abs=0.5)


def test_what_is_right_already_is_left_alone() -> None:
    assert best(np.eye(12, dtype=np.float32) * 0.98 + 0.001, np.arange(12), 0) == 0


def test_a_rare_label_weighs_as_much_as_a_frequent_one() -> None:
    """One clip of silence against ninety of a keyword that a bias would lose one of."""
    posteriors = np.tile(np.float32([0.01, 0.99]), (91, 1))
    posteriors[0] = posteriors[1] = [0.4, 0.6]
    labels = np.array([0, *[1] * 90])
    assert best(posteriors, labels, 0) >= np.log(0.6 / 0.4)


def test_only_one_bias_of_the_checkpoint_changes_and_the_verdicts_follow() -> None:
    rng = np.random.default_rng(1)
    weights = {name: value.numpy() for name, value in StreamingKWT(CONFIG).state_dict().items()}
    checkpoint = Checkpoint(CONFIG, weights)
    bands = CONFIG.frontend.bands
    pixels = rng.integers(0, 120, (24, CLIP_FRAMES, bands)).astype(np.uint8)
    words = np.array(["yes", "no", "bed", "cat"] * 6)
    noise = [rng.integers(0, 40, (5 * CLIP_FRAMES, bands)).astype(np.uint8)]
    heard = Validation(Corpus(pixels, words, np.ones(24, bool), noise), CONFIG)
    with pytest.raises(DataError, match="no training noise"):
        balance(Network(checkpoint), "dense", Validation(Corpus(pixels, words, np.ones(24, bool), []), CONFIG))
    balanced, moved = balance(Network(checkpoint), "dense", heard)
    assert moved in GRID
    difference = balanced.weights[BIAS] - weights[BIAS]
    assert difference == pytest.approx([moved if label == SILENCE else 0.0 for label in CONFIG.labels])
    assert all(np.array_equal(balanced.weights[name], checkpoint.weights[name]) for name in weights if name != BIAS)
    before, after = (posteriors_on(Network(one), "dense", pixels)[0] for one in (checkpoint, balanced))
    shifted = before * np.exp(difference)
    assert after == pytest.approx(shifted / shifted.sum(axis=1, keepdims=True), abs=1e-5)
