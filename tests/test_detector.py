"""One event per utterance: threshold, smoothing, patience, hysteresis and refractory time, one by one and together."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.detector import Detector, Hit, Rule

LABELS = ("_silence_", "yes", "no")
YES = LABELS.index("yes")


def heard(*yes: float) -> np.ndarray:
    """Posteriors (N, 3) in which "yes" has these values and silence the rest."""
    rows = np.zeros((len(yes), len(LABELS)), np.float32)
    rows[:, YES] = yes
    rows[:, 0] = 1 - rows[:, YES]
    return rows


def detector(rule: Rule | None = None, window: int = 1, margin: float = 0.2) -> Detector:
    return Detector(LABELS, {"yes": rule or Rule(0.5)}, window, margin)


def tokens(hits: object) -> list[int]:
    return [hit.token for hit in hits]


def test_threshold() -> None:
    assert tokens(detector().feed(heard(0.49, 0.0, 0.5))) == [2]


def test_smoothing_asks_for_more_than_a_spike() -> None:
    smooth = detector(window=4)
    assert tokens(smooth.feed(heard(0, 1, 0, 0, 0, 1, 1, 0))) == [6]


def test_a_rule_may_ask_for_a_shorter_average_and_for_no_longer_one() -> None:
    said = heard(0, 0, 1, 1, 0, 0, 0, 0)
    assert tokens(detector(Rule(0.9), window=4).feed(said)) == []
    assert tokens(detector(Rule(0.9, window=2), window=4).feed(said)) == [3]
    assert tokens(detector(Rule(0.5, window=9), window=4).feed(said)) == [3]
    both = Detector(LABELS, {"yes": Rule(0.9), "no": Rule(0.9, window=2)}, 4, 0.2)
    assert [hit.keyword for hit in both.feed(np.repeat(said[:, YES : YES + 1], len(LABELS), axis=1))] == ["no"]


def test_silence_may_be_likelier_than_in_training() -> None:
    rows = np.array([[0.2, 0.8, 0.0], [0.0, 0.8, 0.2]], np.float32)
    wary = Detector(LABELS, {"yes": Rule(0.1), "no": Rule(0.1, alone=True)}, 1, 0.05, silence=np.log(4.0))
    averages, highest = wary._average(rows)
    assert averages == pytest.approx(np.array([[0.8 / 1.6, 0.0], [0.8, 0.2]]))
    assert highest == pytest.approx(0.8)
    rows[:, 2] = rows[:, 0] = 0.5
    assert wary._average(rows)[0][:, 1] == pytest.approx(0.5), "its posterior knows nothing of silence's"


def test_patience_asks_for_consecutive_hits() -> None:
    patient = detector(Rule(0.5, patience=3))
    assert tokens(patient.feed(heard(1, 1, 0.4, 1, 1, 1, 1))) == [5]
    assert patient.suppressed == {"patience": 1}


def test_one_event_while_the_posterior_stays_up_and_another_after_it_fell() -> None:
    one = detector(margin=0.2)
    assert tokens(one.feed(heard(0.9, 0.9, 0.4, 0.9, 0.9))) == [0]
    assert tokens(one.feed(heard(0.1, 0.9))) == [6]


@pytest.mark.parametrize("threshold", [0.5, 0.2, 0.1, 0.02])
def test_threshold_within_the_margin_is_armed_again_nonetheless(threshold: float) -> None:
    lax = detector(Rule(threshold), margin=0.1)
    assert tokens(lax.feed(heard(0.9, 0.001, 0.9, 0.001, 0.9))) == [0, 2, 4]


def test_refractory_time_holds_back_an_armed_keyword() -> None:
    calm = detector(Rule(0.5, refractory=5))
    assert tokens(calm.feed(heard(0.9, 0, 0.9, 0, 0, 0, 0.9))) == [0, 6]
    assert calm.suppressed == {"refractory": 1}


def test_refractory_time_goes_on_elsewhere_however_short_tokens_are() -> None:
    minute = Rule(0.5, refractory=6_000)  # of 10 ms
    first, second = detector(minute), detector(minute)
    assert tokens(first.feed(heard(0.9, *[0.0] * 5_000))) == [0]
    second.token = first.token
    second.restore(first.state())
    assert tokens(second.feed(heard(0.9))) == []


def test_the_larger_keyword_wins() -> None:
    rows = heard(0.6, 0.6)
    rows[:, 2] = [0.7, 0.5]
    both = Detector(LABELS, {"yes": Rule(0.5), "no": Rule(0.5)}, 1, 0.2)
    assert [(hit.keyword, hit.token) for hit in both.feed(rows)] == [("no", 0), ("yes", 1)]


def test_near_miss_is_counted_once_it_is_over() -> None:
    near = detector(margin=0.2)
    assert not list(near.feed(heard(0.45, 0.4)))
    assert not near.near_misses
    assert not list(near.feed(heard(0.0, 0.1)))
    assert near.near_misses == {"yes": 1}


def test_hit_tells_its_place_from_its_rise_and_its_peak() -> None:
    rule = Rule(0.5, patience=2, span=(-4.5, 0.5))
    assert list(detector(rule, margin=0.2).feed(heard(0, 0.4, 0.9, 0.8))) == [
        Hit("yes", token=3, start=-3.5, end=1.5, score=pytest.approx(0.9))
    ]


def test_a_word_does_not_end_after_what_was_heard() -> None:
    (hit,) = detector(Rule(0.5, span=(-2.0, 7.0))).feed(heard(0, 0.9))
    assert (hit.start, hit.end) == (-1, hit.token)


def test_reset_forgets_what_was_heard_and_counts_on() -> None:
    one = detector(window=2)
    assert not list(one.feed(heard(0.9)))
    one.reset()
    assert tokens(one.feed(heard(0.9, 0.9))) == [2]


def test_new_rules_keep_what_was_heard() -> None:
    one = detector(Rule(0.5, refractory=100))
    assert tokens(one.feed(heard(0.9, 0.0))) == [0]
    one.configure({"yes": Rule(0.3, refractory=100), "no": Rule(0.5)})
    assert not list(one.feed(heard(0.9)))
    one.configure({})
    assert not list(one.feed(heard(0.9, 0.9)))


POSTERIORS = arrays(np.float32, st.tuples(st.integers(0, 60), st.just(3)), elements=st.sampled_from([0, 0.25, 0.5, 1]))
RULES = {"yes": Rule(0.5, patience=2, refractory=4, span=(-3, 0.5)), "no": Rule(0.4, patience=1, refractory=3)}


def fresh() -> Detector:
    return Detector(LABELS, RULES, window=3, margin=0.15)


@given(POSTERIORS, st.lists(st.integers(0, 7)))
def test_any_split_gives_the_same_hits(posteriors: np.ndarray, cuts: list[int]) -> None:
    split, hits, at = fresh(), [], 0
    for cut in [*cuts, len(posteriors)]:
        hits += split.feed(posteriors[at : at + cut])
        at += cut
    assert hits == list(fresh().feed(posteriors))
    assert split.token == len(posteriors)


@given(POSTERIORS, st.integers(0, 60))
def test_another_detector_goes_on_from_the_state(posteriors: np.ndarray, cut: int) -> None:
    whole, first, second = fresh(), fresh(), fresh()
    hits = list(first.feed(posteriors[:cut]))
    second.hear(posteriors[:cut])
    second.restore(first.state())
    assert [*hits, *second.feed(posteriors[cut:])] == [
        replace(hit, score=pytest.approx(hit.score, abs=1e-3)) for hit in whole.feed(posteriors)
    ]


@given(POSTERIORS)
def test_state_at_a_hit_is_the_state_at_its_token(posteriors: np.ndarray) -> None:
    running = fresh()
    for hit in running.feed(posteriors):
        alone = fresh()
        assert hit in list(alone.feed(posteriors[: hit.token + 1]))
        assert running.state() == alone.state()
