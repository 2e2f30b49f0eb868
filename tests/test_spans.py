"""A keyword's place, learned from streams: its own median, else everyone's, where nothing was heard the usual one."""

from __future__ import annotations

import numpy as np
import pytest

from models.config import KEYWORDS, ModelConfig
from models.evaluate_streams import Heard, total
from models.spans import FEW, USUAL_MS, learn
from models.streams import Stream, Utterance
from service.commands.replay import detector

CONFIG = ModelConfig()
DETECT = detector(CONFIG)
TOKEN = CONFIG.token_samples
TOKEN_MS = TOKEN / 16
RULES = {word: {"threshold": 0.5, "patience": 1} for word in KEYWORDS}
CALIBRATION = {"window_tokens": 1, "margin": 0.1, "refractory_ms": 300, "keywords": RULES}


def stream(words: list[tuple[str, int, int]]) -> Heard:
    """Words, one every 60 tokens: each (word, tokens from its start to the rise, tokens from its end to the rise)."""
    posteriors = np.full((60 * len(words) + 60, len(CONFIG.labels)), 0.01, np.float32)
    said = []
    for number, (word, before, behind) in enumerate(words):
        rise = 60 * number + 40
        posteriors[rise : rise + 8, CONFIG.labels.index(word)] = 0.9
        place = (rise + 1) * TOKEN + CONFIG.frontend.window - CONFIG.frontend.hop
        said.append(Utterance(place - before * TOKEN, place - behind * TOKEN, word))
    return Heard(Stream("s", np.zeros(len(posteriors) * TOKEN, np.float32), tuple(said)), posteriors)


def test_a_keyword_that_is_heard_often_has_its_own_place_and_others_everyone_s() -> None:
    often = [("yes", before, 2) for before in (19, 20, 20, 21, 30) * (FEW // 5)]
    one = stream([*often, ("no", 12, 5)])
    learned = learn([one], CALIBRATION, DETECT, CONFIG)
    spans = {word: rule["span_ms"] for word, rule in learned["keywords"].items()}
    own = pytest.approx((-20 * TOKEN_MS, -2 * TOKEN_MS), abs=1)
    assert spans["yes"] == own
    assert spans["no"] == spans["stop"] == own
    assert {**learned, "keywords": RULES} == CALIBRATION
    outcome, _ = total([one], learned, DETECT, CONFIG)
    assert outcome.report()["start_off_ms_p50"] == pytest.approx(TOKEN_MS / 2, abs=TOKEN_MS / 2 + 1)
    assert outcome.report()["end_off_ms_p50"] == pytest.approx(0, abs=1)


def test_enough_detections_of_its_own_are_believed() -> None:
    one = stream([*[("yes", 20, 2)] * (3 * FEW), *[("no", 10, 4)] * FEW])
    spans = {word: rule["span_ms"] for word, rule in learn([one], CALIBRATION, DETECT, CONFIG)["keywords"].items()}
    assert spans["no"] == pytest.approx((-10 * TOKEN_MS, -4 * TOKEN_MS), abs=1)


def test_what_is_known_of_a_keyword_holds_until_it_is_heard_often() -> None:
    before = {"keywords": {"no": {"span_ms": [-123.0, 4.0]}, "yes": {"span_ms": [-123.0, 4.0]}}}
    one = stream([*[("yes", 20, 2)] * FEW, ("no", 10, 4)])
    learned = learn([one], CALIBRATION, DETECT, CONFIG, before)
    spans = {word: rule["span_ms"] for word, rule in learned["keywords"].items()}
    assert spans["yes"] == spans["stop"] == pytest.approx((-20 * TOKEN_MS, -2 * TOKEN_MS), abs=1)
    assert spans["no"] == (-123.0, 4.0)
    silent = learn([stream([])], CALIBRATION, DETECT, CONFIG, before)
    assert silent["keywords"]["no"]["span_ms"] == (-123.0, 4.0)


def test_where_nothing_was_heard_words_are_where_they_usually_are() -> None:
    learned = learn([stream([])], CALIBRATION, DETECT, CONFIG)
    assert {rule["span_ms"] for rule in learned["keywords"].values()} == {USUAL_MS}
