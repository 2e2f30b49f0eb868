"""A model card tells what was measured, of these weights, and its limits."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from models.card import SETS, CardError, write_card
from models.checkpoint import load_checkpoint, shipped_path
from models.config import KEYWORDS
from models.evaluate_streams import Tally
from service.commands.model import app, describe


def point(name: str, accuracy: float) -> dict:
    shares = {"accuracy": accuracy, "keywords": 0.98, "unknown": 0.9, "silence": None}
    bounds = {share: value and (value - 0.01, value + 0.01) for share, value in shares.items()}
    skipped = {"macs_skipped_vs_window": 0.97, "macs_skipped_vs_causal": 0.25}
    speakers = {"count": 40, "faultless": 31, "half": 2, "bounds": (0.931, 0.988)}
    rest = {"balanced": 0.9432, **skipped, "speakers": speakers}
    return {"name": name, "clips": 321, **shares, "bounds": bounds, **rest}


@pytest.fixture
def facts() -> dict:
    return describe(load_checkpoint(shipped_path()), shipped_path())


@pytest.fixture
def evaluation(facts: dict) -> dict:
    words = Tally(hours=1.5, covered=0.5, latencies=[100.0, 200.0])
    words.keywords.update({"yes": 40})
    words.missed.update({"yes": 3})
    words.off["yes"] = [(-40.0, 80.0), (60.0, -20.0)]
    quiet = Tally(hours=0.747).report()
    return {
        "model": {"fingerprint": facts["fingerprint"]},
        "calibration": facts["calibration"],
        "protocol": {"streams": 9, "minutes": 10.0, "seed": 0, "recordings": 40, "noise_minutes": 6.71},
        "clips": [point("dense", 0.9712), point("shipped", 0.9654)],
        "streams": {"target": words.report(), "keywords": words.report(), "speech": quiet},
        "points": {"aggressive": words.report()},
        "sweeps": {
            "snr_db": {"20": words.report()},
            "gain_db": {"-30": words.report()},
            "line": {"8 kHz": words.report()},
            "room": {"0.6": words.report()},
        },
    }


def test_the_card_tells_what_was_measured(facts: dict, evaluation: dict) -> None:
    card = write_card(facts, evaluation)
    assert facts["fingerprint"] in card
    shares = "96.54 % | 95.5 - 97.5 % | 98.00 % | 97.0 - 99.0 % | 90.00 % | 89.0 - 91.0 % | - | - | 94.32 %"
    assert f"| shipped | {shares} |" in card
    figures = "1.50 | 1.00 | 40 | 7.50 % | 1.6 - 20.4 % | 0.00 | 0.00 | 0.00 - 3.69 | 150 / 190"
    assert f"| {SETS['target']} | {figures} |" in card
    assert f"| aggressive | {figures} |" in card
    assert f"| {SETS['speech']} | 0.75 | 0.75 | 0 | - | - | 0.00 | 0.00 | 0.00 - 4.94 | - |" in card
    assert "within 50 and 50 ms of the word's own for half of them, within 58 and 74 ms for 90 %" in card
    assert "40 recordings of 0 speakers say keywords, over 6.7 minutes of noise" in card
    assert SETS["noise"] not in card
    assert "Of 40 speakers 31 are always understood at `shipped`; half of all errors are made with 2 of them." in card
    assert "is within 93.1 - 98.8 %" in card
    for word in KEYWORDS:
        assert f"| {word} | {facts['calibration']['keywords'][word]['threshold']:.3f} |" in card
    for promise in ("CC BY 4.0", "accents", "(confusion.png)", "(trade_off.png)"):
        assert promise in card


def test_a_card_names_no_speakers_where_nobody_is_known(facts: dict, evaluation: dict) -> None:
    for report in evaluation["clips"]:
        report["speakers"] = None
    assert "are always understood" not in write_card(facts, evaluation)


def test_a_card_names_the_point_that_thresholds_were_chosen_at(facts: dict, evaluation: dict) -> None:
    assert "those that were chosen at `shipped`" in write_card(facts, evaluation)
    made_for = {"point": "aggressive", "false_alarms_per_hour": 0.5, "exposed_hours": 6.88, "seed": 7}
    facts["calibration"] = evaluation["calibration"] = {**facts["calibration"], "made_for": made_for}
    card = write_card(facts, evaluation)
    assert "those that were chosen at `aggressive`" in card
    assert "chosen at `aggressive` for 0.5 unprovoked false alarms an exposed hour, on streams of 6.88 such" in card


def test_an_evaluation_of_other_weights_is_refused(facts: dict, evaluation: dict) -> None:
    evaluation["model"]["fingerprint"] = "0123456789ab"
    with pytest.raises(CardError, match="0123456789ab"):
        write_card(facts, evaluation)


def test_an_evaluation_of_other_thresholds_is_refused(facts: dict, evaluation: dict) -> None:
    evaluation["calibration"] = {**facts["calibration"], "window_tokens": 1}
    with pytest.raises(CardError, match="other thresholds"):
        write_card(facts, evaluation)


def test_the_training_log_is_in_the_card(facts: dict, evaluation: dict, tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps({"step": 100 * i, "loss": 3 / i, "note": "x"}) + "\n" for i in range(1, 200)))
    card = write_card(facts, evaluation, log)
    assert "| step | loss |" in card
    assert "| 100 | 3 |" in card
    assert "| 12900 | 0.02326 |" in card
    assert "| 19900 | 0.01508 |" in card, "where it ended"


def test_whatever_trained_a_model_is_in_its_card(facts: dict, evaluation: dict) -> None:
    facts = {**facts, "metadata": {**facts["metadata"], "taught": "teacher 0a1b2c, tutor 3d4e5f"}}
    assert "- taught: teacher 0a1b2c, tutor 3d4e5f" in write_card(facts, evaluation)


def test_the_shipped_card_says_what_a_new_one_would(facts: dict, evaluation: dict) -> None:
    """But for what was measured: every paragraph of a new card that has no figures of an evaluation is in it."""
    shipped = (shipped_path().parent / "README.md").read_text()
    measured = ("## Clips", "## Streams", "## Harder conditions")
    for section in write_card(facts, evaluation).split("\n\n## "):
        if not f"## {section}".startswith(measured):
            assert section.strip() in shipped


def test_the_command_writes_the_card(evaluation: dict, tmp_path: Path) -> None:
    (tmp_path / "evaluation.json").write_text(json.dumps(evaluation))
    words = ["card", str(tmp_path / "evaluation.json"), "--output", str(tmp_path / "new" / "CARD.md")]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    assert (tmp_path / "new" / "CARD.md").read_text().startswith("# Model card")


POINTLESS = '{"model": {}, "calibration": {}, "protocol": {}, "clips": [], "streams": {}, "sweeps": {}}'


@pytest.mark.parametrize("text", ["# Model card", "{}", "[]", "\xff", POINTLESS])
def test_another_file_is_no_evaluation(tmp_path: Path, text: str) -> None:
    (tmp_path / "other.json").write_bytes(text.encode("latin-1"))
    with pytest.raises(CardError, match=r"other\.json is no evaluation"):
        CliRunner().invoke(app, ["card", str(tmp_path / "other.json")], catch_exceptions=False)
