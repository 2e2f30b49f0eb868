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

from models.bounds import binomial_bounds
from models.checkpoint import Checkpoint, CheckpointError, load_checkpoint, shipped_path
from models.checkpoint import save as save_checkpoint
from models.config import KEYWORDS, ModelConfig
from models.data import DataError, split_of, walk
from models.evaluate import judge_clips, read_clips
from models.evaluate_enroll import WORDS
from models.features import log_mel
from models.folding import network_of
from models.kwt_weights import save as save_stock
from models.offline import tokens_of
from models.streams import read_labels
from service.commands.evaluate import app
from service.protocol import Configure, Limits
from service.session import Session
from service.spec import Spec
from tests.test_evaluate import archives, save
from tests.test_kwt_sliding import SMALL, random_weights

CONFIG = ModelConfig()
SAMPLE = Path(__file__).resolve().parent.parent / "client" / "samples"
TRAINING, VALIDATION = (next(n for n in map(str, range(99)) if split_of(n) == s) for s in ("training", "validation"))
"""A speaker of that split."""


def run(*words: str) -> dict:
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def test_clips_are_reported_at_every_operating_point(network, tmp_path: Path) -> None:
    save(tmp_path / "yes/a_nohash_0.wav")
    save(tmp_path / "_silence_/b.wav")
    words = ("--split", "all", "--confusion", str(tmp_path / "new" / "c.png"), "--json")
    points = run("clips", "--data", str(tmp_path), *words)["points"]
    assert [point["name"] for point in points] == list(network.points)
    for point in points:
        assert point["clips"] == 2
        assert point["unknown"] is None
        assert point["accuracy"] == point["balanced"] == (point["keywords"] + point["silence"]) / 2
        for name, clips in {"accuracy": 2, "keywords": 1, "silence": 1}.items():
            assert point["bounds"][name] == list(binomial_bounds(round(clips * point[name]), clips))
        assert point["bounds"]["unknown"] is None
        assert 0 < point["macs_skipped_vs_causal"] < point["macs_skipped_vs_window"] < 1 or point["name"] == "dense"
        assert np.sum(point["confusion"]) == 2
    table = CliRunner().invoke(app, ["clips", "--data", str(tmp_path), "--split", "all"], catch_exceptions=False).stdout
    assert "95 % bounds" in table
    assert "{:.1%}..{:.1%}".format(*points[0]["bounds"]["accuracy"]) in table
    assert "balanced: the mean of each label's share" in " ".join(table.split())
    assert (tmp_path / "new" / "c.png").read_bytes().startswith(b"\x89PNG")


def test_clips_are_those_of_validation_speakers_where_no_others_are_asked_for(tmp_path: Path) -> None:
    training = next(name for name in map(str, range(99)) if split_of(name) == "training")
    save(tmp_path / "yes" / f"{training}_nohash_0.wav")
    with pytest.raises(DataError, match="validation.*--split all judges all"):
        run("clips", "--data", str(tmp_path))
    save(tmp_path / "yes" / f"{VALIDATION}_nohash_0.wav")
    for split, count in ((), 1), (("--split", "all"), 2):
        judged = run("clips", "--data", str(tmp_path), *split, "--json")
        assert (judged["split"], judged["points"][0]["clips"]) == (split[-1] if split else "validation", count)
    told = CliRunner().invoke(app, ["clips", "--data", str(tmp_path)])
    assert "1 clips, split: validation" in told.stdout


def test_a_clip_of_the_real_thing_is_judged_right(network, shared_data: Path, tmp_path: Path) -> None:
    items = list(walk(archives(shared_data, tmp_path / "data", "validation")))
    clips = read_clips(items[::20], CONFIG, "validation")
    report = judge_clips(network, clips, network.points[0])
    assert report.clips == len(clips.targets) > 100
    assert report.accuracy > 0.85
    assert np.trace(report.confusion) == round(report.accuracy * report.clips)


def test_the_sample_recording_is_judged_with_its_labels_and_without(tmp_path: Path) -> None:
    audio = str(SAMPLE / "commands.flac")
    curve = tmp_path / "new" / "curve.png"
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


def test_a_word_at_the_very_end_of_a_recording_is_heard_as_a_server_hears_it(tmp_path: Path) -> None:
    labels = read_labels(SAMPLE / "commands.tsv")
    samples, rate = soundfile.read(SAMPLE / "commands.flac", dtype="int16")
    samples = samples[: labels[-1].end]
    soundfile.write(tmp_path / "cut.wav", samples, rate)
    report = run("stream", "--audio", str(tmp_path / "cut.wav"), "--labels", str(SAMPLE / "commands.tsv"), "--json")
    assert report["by_keyword"][labels[-1].word]["missed"] == 0
    assert report["hours"] == round(len(samples) / rate / 3_600, 5), "silence that follows is no audio"
    ended = tokens_of(CONFIG, samples.astype(np.float32), ended=True)
    spec = Spec("default", "0" * 12, CONFIG, {"dense": "dense"}, {"keywords": {}})
    session = Session("x", spec, Configure(), Limits(frame_bytes=1 << 20, stream_s=10, idle_s=1, speed=10))
    served = [session.audio(samples.tobytes()), session.end()]
    np.testing.assert_array_equal(ended, log_mel(served, CONFIG))


def test_a_stock_network_is_judged_on_the_same_streams(tmp_path: Path) -> None:
    save_stock(stock := tmp_path / "stock.safetensors", SMALL, random_weights())
    asked = ("stream", "--audio", str(SAMPLE / "commands.flac"), "--stock", str(stock), "--json")
    report = run(*asked, "--labels", str(SAMPLE / "commands.tsv"))
    assert report["keywords"] == 10
    assert report["unprovoked"] == 0, "its thresholds are chosen so"
    with pytest.raises(DataError, match="name their labels"):
        run(*asked)
    fitted = run(
        "stream", "--audio", str(SAMPLE / "commands.flac"), "--labels", str(SAMPLE / "commands.tsv"), "--fit", "--json"
    )
    assert (fitted["missed"], fitted["unprovoked"]) == (0, 0)
    for beside in (("--point", "dense"), ("--model", "other.safetensors")):
        told = CliRunner().invoke(app, [*asked, *beside])
        assert told.exit_code == 2
        assert "leave them" in told.output


def test_a_trade_off_without_keywords_is_refused(tmp_path: Path) -> None:
    save(tmp_path / "quiet.wav")
    with pytest.raises(DataError, match="needs recordings in which keywords are said"):
        run("stream", "--audio", str(tmp_path / "missing.wav"), "--curve", str(tmp_path / "curve.png"))
    (tmp_path / "quiet.tsv").touch()
    words = ("--labels", str(tmp_path / "quiet.tsv"), "--curve", str(tmp_path / "curve.png"))
    with pytest.raises(DataError, match="needs recordings in which keywords are said"):
        run("stream", "--audio", str(tmp_path / "quiet.wav"), *words)


def test_data_without_keywords_or_running_speech_says_so(tmp_path: Path) -> None:
    save(tmp_path / "bed/a_nohash_0.wav")
    with pytest.raises(DataError, match="no keyword is said"):
        run("socket", "--data", str(tmp_path))
    with pytest.raises(DataError, match="too few recordings of bed, cat, happy"):
        run("enroll", "--data", str(tmp_path))
    bare = tmp_path / "bare.safetensors"
    save_checkpoint(replace(load_checkpoint(), calibration={}), bare)
    with pytest.raises(CheckpointError, match="model calibrate"):
        run("enroll", "--data", str(tmp_path), "--model", str(bare))
    for speaker in [name for name in map(str, range(999)) if split_of(name) == "validation"][:40]:
        for word in WORDS:
            save(tmp_path / word / f"{speaker}_nohash_0.wav", 0.1, value=9)
    with pytest.raises(DataError, match="no running speech"):
        run("enroll", "--data", str(tmp_path))


def test_a_range_begins_below_its_end(tmp_path: Path) -> None:
    for command in ("socket", "enroll", "make-stream"):
        words = [command, "--data", str(tmp_path), "--snr", "20", "0"]
        told = CliRunner().invoke(app, [*words, *(["--output", "x"] if command == "make-stream" else [])])
        assert told.exit_code == 2
        assert "lower number first" in told.output


def test_made_streams_are_what_the_evaluation_reads(tmp_path: Path, shared_data: Path) -> None:
    data, made = archives(shared_data, tmp_path / "data", "validation"), tmp_path / "made"
    words = ("make-stream", "--data", str(data), "--output", str(made), "--minutes", "0.5", "--seed", "7")
    result = CliRunner().invoke(app, list(words), catch_exceptions=False)
    assert result.exit_code == 0
    report = run("stream", "--audio", str(made), "--labels", str(made), "--json")
    assert report["hours"] == pytest.approx(0.5 / 60, abs=1e-5)
    assert report["keywords"] + report["other_words"] == len(read_labels(made / "stream-007.tsv"))


def test_made_streams_have_the_keywords_of_the_model(tmp_path: Path) -> None:
    for word in ("yes", "bed"):
        save(tmp_path / "data" / word / f"{VALIDATION}_nohash_0.wav", value=1)
    config = replace(CONFIG, labels=("_silence_", "_unknown_", "bed"))
    weights = {name: value.numpy() for name, value in network_of(config).state_dict().items()}
    save_checkpoint(Checkpoint(config, weights), tmp_path / "bed.safetensors")
    common = ["make-stream", "--data", str(tmp_path / "data"), "--minutes", "0.2", "--unknown-share", "0"]
    for word, model in (("yes", ()), ("bed", ("--model", str(tmp_path / "bed.safetensors")))):
        result = CliRunner().invoke(app, [*common, "--output", str(tmp_path / word), *model], catch_exceptions=False)
        assert result.exit_code == 0
        assert "no noise: words lie in digital silence" in result.stderr
        assert {said.word for said in read_labels(tmp_path / word / "stream-000.tsv")} == {word}


def test_made_streams_are_of_the_split_that_is_named(tmp_path: Path) -> None:
    for word, speaker in (("yes", VALIDATION), ("no", TRAINING)):
        save(tmp_path / "data" / word / f"{speaker}_nohash_0.wav", value=1)
    common = ["make-stream", "--data", str(tmp_path / "data"), "--minutes", "0.2", "--output", str(tmp_path)]
    for split, word in (("training", "no"), ("validation", "yes")):
        result = CliRunner().invoke(app, [*common, "--split", split], catch_exceptions=False)
        assert result.exit_code == 0
        assert {said.word for said in read_labels(tmp_path / "stream-000.tsv")} == {word}
    told = CliRunner().invoke(app, [*common, "--split", "train"])
    assert told.exit_code == 2
    assert "training, validation, testing" in " ".join(told.output.split())


def test_recordings_of_one_name_are_judged_apart_each_with_its_own_labels(tmp_path: Path) -> None:
    for folder, word in (("a", "yes"), ("b", "no")):
        save(tmp_path / folder / "x.wav")
        (tmp_path / folder / "x.tsv").write_text(f"0.2\t0.6\t{word}\n")
    report = run("stream", "--audio", str(tmp_path), "--labels", str(tmp_path), "--json")
    assert {name: list(part["by_keyword"]) for name, part in report["files"].items()} == {"a/x": ["yes"], "b/x": ["no"]}
    save(tmp_path / "a" / "x.flac")
    report = run("stream", "--audio", str(tmp_path), "--labels", str(tmp_path), "--json")
    assert list(report["files"]) == ["a/x.flac", "a/x.wav", "b/x"]


def test_labels_that_cannot_belong_and_recordings_without_sound_are_refused(tmp_path: Path) -> None:
    save(tmp_path / "audio" / "x.wav")
    with pytest.raises(DataError, match="its labels must be one, too"):
        run("stream", "--audio", str(tmp_path / "audio"), "--labels", str(SAMPLE / "commands.tsv"))
    (tmp_path / "late.tsv").write_text("0.2\t9.0\tyes\n")
    with pytest.raises(DataError, match=r"late\.tsv, line 1: 'yes' ends at 9 s, the recording at 1 s"):
        run("stream", "--audio", str(tmp_path / "audio" / "x.wav"), "--labels", str(tmp_path / "late.tsv"))
    save(tmp_path / "audio" / "empty.wav", 0.0)
    with pytest.raises(DataError, match=r"empty\.wav is empty"):
        run("stream", "--audio", str(tmp_path / "audio"))


def test_checkpoint_without_thresholds_is_refused(tmp_path: Path) -> None:
    """And before the first recording is read, of which there is none here."""
    save_checkpoint(replace(load_checkpoint(shipped_path()), calibration={}), tmp_path / "new.safetensors")
    missing = ("--audio", str(tmp_path / "x.wav")), ("--data", str(tmp_path), "--output", str(tmp_path / "report"))
    for command, where in zip(("stream", "report"), missing, strict=True):
        with pytest.raises(CheckpointError, match="deltaspot model calibrate"):
            run(command, *where, "--model", str(tmp_path / "new.safetensors"))
