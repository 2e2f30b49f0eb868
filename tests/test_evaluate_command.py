"""`deltaspot evaluate`: recordings and labels are found, judged and reported; what cannot be judged is refused."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from models.checkpoint import CheckpointError, load_checkpoint, shipped_path
from models.checkpoint import save as save_checkpoint
from models.config import KEYWORDS, ModelConfig
from models.data import DataError, walk
from models.evaluate import judge_clips, read_clips
from models.kwt_weights import save as save_stock
from models.streams import read_labels
from service.commands.evaluate import app
from tests.test_evaluate import archives, save
from tests.test_kwt_sliding import SMALL, random_weights

CONFIG = ModelConfig()
SAMPLE = Path(__file__).resolve().parent.parent / "client" / "samples"


def run(*words: str) -> dict:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_clips_are_reported_at_every_operating_point(network, tmp_path: Path) -> None:
    save(tmp_path / "yes/a_nohash_0.wav")
    save(tmp_path / "_silence_/b.wav")
    points = run("clips", "--data", str(tmp_path), "--confusion", str(tmp_path / "c.png"), "--json")["points"]
    assert [point["name"] for point in points] == list(network.points)
    for point in points:
        assert point["clips"] == 2
        assert point["unknown"] is None
        assert point["accuracy"] == (point["keywords"] + point["silence"]) / 2
        assert 0 < point["macs_skipped_vs_causal"] < point["macs_skipped_vs_window"] < 1 or point["name"] == "dense"
        assert np.sum(point["confusion"]) == 2
    assert (tmp_path / "c.png").read_bytes().startswith(b"\x89PNG")


def test_a_clip_of_the_real_thing_is_judged_right(network, shared_data: Path, tmp_path: Path) -> None:
    items = list(walk(archives(shared_data, tmp_path / "data", "validation")))
    clips = read_clips(items[::20], CONFIG, "validation")
    report = judge_clips(network, clips, network.points[0])
    assert report.clips == len(clips.targets) > 100
    assert report.accuracy > 0.85
    assert np.trace(report.confusion) == round(report.accuracy * report.clips)


def test_the_sample_recording_is_judged_with_its_labels_and_without(tmp_path: Path) -> None:
    audio = str(SAMPLE / "commands.flac")
    curve = tmp_path / "curve.png"
    report = run("stream", "--audio", audio, "--labels", str(SAMPLE / "commands.tsv"), "--curve", str(curve), "--json")
    rows = list(csv.DictReader(curve.with_suffix(".csv").read_text().splitlines()))
    assert [float(row["offset"]) for row in rows] == sorted(float(row["offset"]) for row in rows)
    assert report["missed"] in {int(row["missed"]) for row in rows}
    assert curve.read_bytes().startswith(b"\x89PNG")
    said = [word.word for word in read_labels(SAMPLE / "commands.tsv")]
    assert report["keywords"] == sum(word in KEYWORDS for word in said)
    assert report["other_words"] == sum(word not in KEYWORDS for word in said)
    assert report["hours"] == pytest.approx(soundfile.info(audio).duration / 3_600, abs=1e-5)
    assert {"missed", "miss_rate", "false_alarms", "false_alarms_per_hour", "latency_ms_p50"} <= set(report)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "commands.flac").symlink_to(audio)
    nothing = run("stream", "--audio", str(tmp_path / "folder"), "--json")
    assert nothing["keywords"] == 0
    assert nothing["false_alarms"] == report["false_alarms"] + report["keywords"] - report["missed"]
    assert list(nothing["files"]) == ["commands"]


def test_a_stock_network_is_judged_on_the_same_streams(tmp_path: Path) -> None:
    save_stock(stock := tmp_path / "stock.safetensors", SMALL, random_weights())
    asked = ("stream", "--audio", str(SAMPLE / "commands.flac"), "--stock", str(stock), "--json")
    report = run(*asked, "--labels", str(SAMPLE / "commands.tsv"))
    assert report["keywords"] == 10
    assert report["unprovoked"] == 0, "its thresholds are chosen so"
    with pytest.raises(DataError, match="name their labels"):
        run(*asked)


def test_a_trade_off_without_keywords_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "quiet.wav")
    with pytest.raises(DataError, match="needs recordings in which keywords are said"):
        run("stream", "--audio", str(tmp_path / "quiet.wav"), "--curve", str(tmp_path / "curve.png"))


def test_data_without_keywords_or_running_speech_says_so(tmp_path: Path) -> None:
    save(tmp_path / "bed/a_nohash_0.wav")
    with pytest.raises(DataError, match="no keyword is said"):
        run("socket", "--data", str(tmp_path))
    with pytest.raises(DataError, match="no running speech"):
        run("enroll", "--data", str(tmp_path))


def test_made_streams_are_what_the_evaluation_reads(tmp_path: Path, shared_data: Path) -> None:
    data, made = archives(shared_data, tmp_path / "data", "validation"), tmp_path / "made"
    words = ("make-stream", "--data", str(data), "--output", str(made), "--minutes", "0.5", "--seed", "7")
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0
    report = run("stream", "--audio", str(made), "--labels", str(made), "--json")
    assert report["hours"] == pytest.approx(0.5 / 60, abs=1e-5)
    assert report["keywords"] + report["other_words"] == len(read_labels(made / "stream-007.tsv"))


def test_recordings_of_one_name_are_judged_apart_each_with_its_own_labels(tmp_path: Path) -> None:
    for folder, word in (("a", "yes"), ("b", "no")):
        save(tmp_path / folder / "x.wav")
        (tmp_path / folder / "x.tsv").write_text(f"0.2\t0.6\t{word}\n")
    report = run("stream", "--audio", str(tmp_path), "--labels", str(tmp_path), "--json")
    assert {name: list(part["by_keyword"]) for name, part in report["files"].items()} == {"a/x": ["yes"], "b/x": ["no"]}


def test_labels_that_cannot_belong_and_recordings_without_sound_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "audio" / "x.wav")
    with pytest.raises(DataError, match="its labels must be one, too"):
        run("stream", "--audio", str(tmp_path / "audio"), "--labels", str(SAMPLE / "commands.tsv"))
    save(tmp_path / "audio" / "empty.wav", 0.0)
    with pytest.raises(DataError, match=r"empty\.wav is empty"):
        run("stream", "--audio", str(tmp_path / "audio"))


def test_checkpoint_without_thresholds_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "x.wav")
    save_checkpoint(replace(load_checkpoint(shipped_path()), calibration={}), tmp_path / "new.safetensors")
    with pytest.raises(CheckpointError, match="deltaspot model calibrate"):
        run("stream", "--audio", str(tmp_path / "x.wav"), "--model", str(tmp_path / "new.safetensors"))
