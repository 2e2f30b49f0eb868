"""Thresholds meet their target on what they were chosen on, and the shortcut agrees with the detector."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from typer.testing import CliRunner

from models.calibrate import Goal, Scores, calibrate, compose, fall, gather, met, optimise, peaks, smooth
from models.checkpoint import load_checkpoint, shipped_path
from models.config import KEYWORDS, SILENCE, ModelConfig
from models.evaluate_streams import Heard, Tally, expit, logit, total
from models.streams import SAMPLE_RATE, Stream, Utterance
from service.commands.model import app
from service.commands.replay import detector
from service.detector import Detector, Rule

CONFIG = ModelConfig()
TOKEN = CONFIG.token_samples
COLUMN = {word: CONFIG.labels.index(word) for word in KEYWORDS}


@given(
    arrays(np.float32, st.tuples(st.integers(1, 60), st.just(3)), elements=st.floats(0, 1, width=16)),
    st.integers(1, 6),
    st.integers(1, 4),
    st.floats(0.05, 0.95),
)
def test_a_token_fires_at_any_threshold_up_to_its_level(
    posteriors: np.ndarray, window: int, patience: int, threshold: float
) -> None:
    level = smooth(posteriors, window, patience)
    rules = {word: Rule(threshold, patience, 0) for word in "abc"}
    fired = list(Detector("abc", rules, window, 0.0).feed(posteriors))
    for column, word in enumerate("abc"):
        reached = np.flatnonzero(level[:, column] >= threshold + 1e-6)
        first = min((hit.token for hit in fired if hit.keyword == word), default=None)
        if reached.size:
            assert first is not None
            assert first <= reached[0]
        if first is not None:
            assert level[: first + 1, column].max() >= threshold - 1e-6


def test_peaks_are_the_highest_of_their_neighbourhood() -> None:
    level = np.zeros(100)
    level[[10, 12, 40, 41, 90]] = 0.5, 0.9, 0.6, 0.3, 0.1
    assert peaks(level, 5) == [0.9, 0.6]
    assert peaks(level, 1) == [0.9, 0.6, 0.5]


def test_a_detection_lasts_until_its_level_falls() -> None:
    level = np.array([0.9, 0.9, 0.5, 0.1, 0.8])
    assert fall(level, 1) == 3
    assert fall(level, 4) == 5


def stream(words: dict[int, tuple[str, float]], alarms: dict[int, tuple[str, float]], tokens: int = 4_000) -> Heard:
    """Words and false alarms, each at a token with a level; a word's posterior stands for 20 tokens after it."""
    posteriors = np.full((tokens, len(CONFIG.labels)), 0.01, np.float32)
    for token, (word, level) in (words | alarms).items():
        posteriors[token : token + 20, COLUMN[word]] = level
    said = tuple(Utterance((t - 16) * TOKEN, t * TOKEN, word) for t, (word, _) in words.items())
    return Heard(Stream("s", np.zeros(tokens * TOKEN, np.float32), said), posteriors)


GOAL = Goal(false_alarms_per_hour=0.5, windows=(4, 8), silences=(0.0,), latency_ms=300)
EASY = {100 * i: (KEYWORDS[i % 10], 0.95) for i in range(1, 39)}


def test_what_a_word_leaves_behind_is_no_alarm() -> None:
    scores = gather([stream(EASY, {})], 4, 1, 0.0, CONFIG, GOAL)
    assert sum(len(s.spoken) for s in scores.values()) == len(EASY)
    assert all(s.spoken.min() > logit(0.9) for s in scores.values())
    assert sum(len(s.alarms) + len(s.swaps) for s in scores.values()) == 0


def test_a_keyword_in_anothers_place_is_an_error_and_no_false_alarm() -> None:
    heard = stream(EASY, {})
    heard.posteriors[102:122, COLUMN["up"]] = 0.97
    scores = gather([heard], 4, 1, 0.0, CONFIG, GOAL)
    assert len(scores["up"].swaps) == 1
    _, outcome = calibrate([heard], detector(CONFIG), CONFIG, GOAL)
    assert outcome.unprovoked == 0
    assert outcome.missed.total() + outcome.substitutions <= 2


def test_a_keyword_that_outlasts_the_word_it_was_taken_for_is_one_error() -> None:
    heard = stream(EASY, {})
    heard.posteriors[118:136, COLUMN["up"]] = 0.97
    assert detector(CONFIG)(compose(dict.fromkeys(KEYWORDS, 0.9), 4, 1, 0.0, GOAL), heard.posteriors[100:160])
    scores = gather([heard], 4, 1, 0.0, CONFIG, GOAL)
    assert [len(s.swaps) for s in scores.values()].count(1) == 1
    assert not any(len(s.alarms) for s in scores.values())


def test_thresholds_rise_above_the_alarms_of_their_own_keyword_only() -> None:
    alarms = {3_950: ("yes", 0.8), 3_850 + 60: ("yes", 0.85)}
    calibration, outcome = calibrate([stream(EASY, alarms)], detector(CONFIG), CONFIG, GOAL)
    rules = calibration["keywords"]
    assert outcome.false_alarms.total() == 0
    assert outcome.missed.total() == 0
    assert 0.95 > rules["yes"]["threshold"] > 0.85
    assert rules["no"]["threshold"] < rules["yes"]["threshold"]


def test_the_target_is_met_at_the_price_of_misses() -> None:
    words = EASY | {100 * i: ("go", 0.6) for i in range(30, 39)}
    alarms = {100 * i + 50: ("go", 0.7) for i in range(1, 30)}
    heard = [stream(words, alarms)]
    calibration, outcome = calibrate(heard, detector(CONFIG), CONFIG, GOAL)
    assert outcome.unprovoked <= GOAL.false_alarms_per_hour * outcome.exposed_hours
    assert outcome.missed == {"go": 9}
    again, _ = total(heard, calibration, detector(CONFIG), CONFIG)
    assert again.report() == outcome.report()


def test_in_minutes_one_keywords_false_alarms_are_not_another_ones() -> None:
    """Less than one is allowed, so thresholds are balanced for more, and each keyword owes its own only."""
    words = {at: (word, 0.5 if word == "yes" else 0.95) for at, (word, _) in EASY.items()}
    alarms = {100 * i + 60: (("go", "up", "off")[i % 3], 0.9) for i in range(1, 30)}
    calibration, outcome = calibrate([stream(words, alarms)], detector(CONFIG), CONFIG, GOAL)
    assert (outcome.unprovoked, outcome.missed.total()) == (0, 0)
    assert calibration["keywords"]["yes"]["threshold"] < 0.5


def test_hours_in_which_keywords_are_said_allow_no_false_alarms() -> None:
    words = EASY | {100 * i: ("go", 0.6) for i in range(30, 39)}
    heard = [stream(words, {2_950: ("go", 0.7)})]
    goal = replace(GOAL, false_alarms_per_hour=1.1 / heard[0].stream.hours)
    assert calibrate(heard, detector(CONFIG), CONFIG, goal)[1].unprovoked == 0


def test_early_enough_comes_before_fewer_misses() -> None:
    calibration, outcome = calibrate(
        [stream(EASY, {})], detector(CONFIG), CONFIG, Goal(windows=(4, 30), latency_ms=200)
    )
    assert calibration["window_tokens"] == 4
    assert np.median(outcome.latencies) <= 200


def test_silence_gains_where_noises_sound_a_little_like_it() -> None:
    words = EASY | {100 * i: ("go", 0.6) for i in range(30, 39)}
    alarms = {100 * i + 50: ("go", 0.7) for i in range(1, 30)}
    heard = stream(words, alarms)
    for token in alarms:
        heard.posteriors[token : token + 20, CONFIG.labels.index(SILENCE)] = 0.3
    calibration, outcome = calibrate([heard], detector(CONFIG), CONFIG, replace(GOAL, silences=(0.0, 3.0)))
    assert calibration["silence"] == 3.0
    assert outcome.unprovoked == outcome.missed.total() == 0
    again, _ = total([heard], calibration, detector(CONFIG), CONFIG)
    assert again.report() == outcome.report()


def test_smoothing_is_chosen_by_the_errors_at_the_target_and_above_it(monkeypatch: pytest.MonkeyPatch) -> None:
    missed = {4: (10, 60), 8: (30, 30), 16: (60, 10)}  # at the target, above it

    def settle(_heard: object, calibration: dict, *others: Any) -> tuple[dict, Tally]:
        count = missed[calibration["window_tokens"]][others[-1].false_alarms_per_hour > GOAL.false_alarms_per_hour]
        return calibration, Tally(missed=Counter(yes=count))

    monkeypatch.setattr("models.calibrate.settle", settle)
    goal = replace(GOAL, windows=(4, 8, 16))
    chosen, _ = calibrate([stream(EASY, {})], detector(CONFIG), CONFIG, goal)
    assert chosen["window_tokens"] == 8, "neither the best at one target nor the best at the other"


def test_a_keyword_nobody_said_gets_the_threshold_that_suits_the_others() -> None:
    scores = {word: Scores(logit(np.full(20, 0.9)), np.zeros(0), logit(np.full(5, 0.5))) for word in KEYWORDS}
    scores["off"] = Scores(np.zeros(0), np.zeros(0), np.zeros(0))
    thresholds = optimise(scores, 0.1, 0.1)
    assert 0.5 < thresholds["off"] < 0.9


def test_odds_and_shares_are_inverse() -> None:
    shares = np.array([0.001, 0.3, 0.999])
    assert expit(logit(shares)) == pytest.approx(shares)


def test_a_keyword_nobody_said_keeps_the_threshold_that_it_had() -> None:
    before = {"keywords": {word: {"threshold": 0.123, "patience": 2} for word in KEYWORDS}}
    words = {at: (word, level) for at, (word, level) in EASY.items() if word not in {"off", "up"}}
    calibration, outcome = calibrate([stream(words, {})], detector(CONFIG), CONFIG, GOAL, before)
    kept = {word for word, rule in calibration["keywords"].items() if rule == before["keywords"][word]}
    assert kept == {"off", "up"}
    assert list(calibration["keywords"]) == list(KEYWORDS)
    assert outcome.missed.total() == 0
    lost = {3_950 - 200 * i: ("up", 0.9) for i in range(10)}
    strict, whole = calibrate([stream(words, lost)], detector(CONFIG), CONFIG, GOAL, before)
    assert strict["keywords"]["up"] == before["keywords"]["up"]
    assert not met(whole, GOAL)


def test_a_keyword_nobody_said_has_no_part_in_what_the_others_are_allowed() -> None:
    before = {"keywords": {word: {"threshold": 0.999, "patience": 1} for word in KEYWORDS}}
    words = {at: (word, level) for at, (word, level) in EASY.items() if word != "up"}
    lost = {3_950 - 200 * i: ("up", 0.9) for i in range(10)}
    alone, beside = (
        calibrate([stream(words, alarms)], detector(CONFIG), CONFIG, GOAL, before)[0]["keywords"]
        for alarms in ({}, lost)
    )
    assert alone == beside


def test_false_alarms_of_a_keyword_nobody_said_make_no_other_stricter() -> None:
    before = {"keywords": {word: {"threshold": 0.5, "patience": 1} for word in KEYWORDS}}
    words = {at: (word, level) for at, (word, level) in EASY.items() if word != "up"}
    quiet, loud = (
        calibrate([stream(words, alarms)], detector(CONFIG), CONFIG, GOAL, before)
        for alarms in ({}, {3_950: ("up", 0.9)})
    )
    assert loud[0] == quiet[0]
    assert loud[1].report()["by_keyword"]["up"]["false_alarms"] == loud[1].unprovoked == 1, "it is told of all the same"


def test_a_keyword_nobody_said_and_nobody_knew_gets_no_lax_threshold() -> None:
    words = {at: (word, level) for at, (word, level) in EASY.items() if word != "up"}
    calibration, _ = calibrate([stream(words, {3_950: ("yes", 0.85)})], detector(CONFIG), CONFIG, GOAL)
    rules = calibration["keywords"]
    assert rules["up"]["threshold"] == max(rule["threshold"] for rule in rules.values()) > 0.8


def test_what_meets_the_target_comes_before_fewer_misses(monkeypatch: pytest.MonkeyPatch) -> None:
    def settle(_heard: object, calibration: dict, *_: object) -> tuple[dict, Tally]:
        wide = calibration["window_tokens"] == 8
        return calibration, Tally(1.0, missed=Counter(yes=5 * wide), false_alarms=Counter(yes=0 if wide else 9))

    monkeypatch.setattr("models.calibrate.settle", settle)
    chosen, _ = calibrate([stream(EASY, {})], detector(CONFIG), CONFIG, GOAL)
    assert chosen["window_tokens"] == 8


def test_own_recordings_calibrate_a_checkpoint_and_nothing_else_changes(tmp_path: Path) -> None:
    sample = Path(__file__).resolve().parent.parent / "client" / "samples"
    quiet = tmp_path / "quiet.wav"
    soundfile.write(quiet, np.zeros(60 * SAMPLE_RATE, np.int16), SAMPLE_RATE)
    output = tmp_path / "own.safetensors"
    words = ["calibrate", "--output", str(output), "--audio", str(sample / "commands.flac")]
    words += ["--labels", str(sample / "commands.tsv"), "--negatives", str(quiet), "--point", "aggressive"]
    elsewhere = str(tmp_path / "none")
    result = CliRunner().invoke(app, words, catch_exceptions=False, env={"DELTASPOT_DATA": elsewhere})
    assert result.exit_code == 0, result.output
    assert "no folder" in str(CliRunner().invoke(app, [*words, "--data", elsewhere]).exception)
    before, after = load_checkpoint(shipped_path()), load_checkpoint(output)
    assert after.fingerprint == before.fingerprint
    assert set(after.calibration) == {*before.calibration, "silence", "made_for"}
    made_for = dict(after.calibration["made_for"])
    assert 0 < made_for.pop("exposed_hours") < 1
    assert made_for == {"point": "aggressive", "false_alarms_per_hour": 0.5, "seed": 50_000}
    assert set(after.calibration["keywords"]) == set(KEYWORDS)
    told = json.loads(CliRunner().invoke(app, ["info", str(output), "--json"], catch_exceptions=False).stdout)
    assert told["calibration"] == json.loads(json.dumps(dict(after.calibration)))
    page = CliRunner().invoke(app, ["info", str(output)], catch_exceptions=False).stdout
    assert "chosen at `aggressive` for 0.5 unprovoked false alarms" in page


def refused(*words: str) -> str:
    """What a calibration that does not happen says."""
    result = CliRunner().invoke(app, ["calibrate", *words], env={"DELTASPOT_DATA": "", "COLUMNS": "200"})
    assert result.exit_code
    return f"{result.output} {result.exception}"


def test_calibration_needs_keywords_and_where_they_are_said(tmp_path: Path) -> None:
    sample = Path(__file__).resolve().parent.parent / "client" / "samples" / "commands.flac"
    output = tmp_path / "own.safetensors"
    assert "--audio and --labels together" in refused("--output", str(output), "--audio", str(sample))
    soundfile.write(tmp_path / "quiet.wav", np.zeros(SAMPLE_RATE, np.int16), SAMPLE_RATE)
    told = refused("--output", str(output), "--negatives", str(tmp_path / "quiet.wav"))
    assert "no keyword is said" in told
    assert "streams" not in told, "nothing has to be heard for that"
    data = tmp_path / "data" / "yes"
    data.mkdir(parents=True)
    for name in ("plain.wav", "other.wav"):
        soundfile.write(data / name, np.ones(SAMPLE_RATE, np.int16), SAMPLE_RATE)
    told = refused("--output", str(output), "--data", str(data.parent), "--negatives", str(tmp_path / "quiet.wav"))
    assert "left out: 2 recordings, as yes/other.wav: not named" in told
    assert not output.exists()


def test_what_a_calibration_could_not_do_is_told(tmp_path: Path) -> None:
    sample = Path(__file__).resolve().parent.parent / "client" / "samples" / "commands"
    lines = sample.with_suffix(".tsv").read_text().splitlines()
    (tmp_path / "some.tsv").write_text("\n".join(line for line in lines if line.endswith(("yes", "no"))))
    words = ["--audio", str(sample.with_suffix(".flac")), "--labels", str(tmp_path / "some.tsv")]
    result = CliRunner().invoke(app, ["calibrate", "--output", str(tmp_path / "own.safetensors"), *words])
    assert result.exit_code == 0, result.output
    assert "keep the thresholds that they had: up, down, left" in result.stderr
    assert "the target is missed" in result.stderr
    before, after = (load_checkpoint(path).calibration for path in (shipped_path(), tmp_path / "own.safetensors"))
    assert after["keywords"]["up"] == before["keywords"]["up"]


@pytest.mark.parametrize("command", ["points", "balance", "prune", "calibrate", "background"])
def test_a_folder_is_no_checkpoint_to_write_and_that_is_said_before_the_work(command: str, tmp_path: Path) -> None:
    words = [command, "--output", str(tmp_path), "--data", str(tmp_path), "--model", str(tmp_path / "missing")]
    result = CliRunner().invoke(app, words, env={"COLUMNS": "200"})
    assert result.exit_code == 2
    assert "is a directory" in result.output


def test_calibration_needs_recordings(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["calibrate", "--output", str(tmp_path / "o")], env={"DELTASPOT_DATA": ""})
    assert result.exit_code == 2
    assert "--data" in result.output
