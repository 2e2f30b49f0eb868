"""Scans: what a stream would hear, over folders; interrupted by kill -9 and resumed; refused when models differ."""

import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import soundfile
from typer.testing import CliRunner

from models.checkpoint import load_checkpoint, save
from service.commands.demo import script
from service.commands.scan import NAMED, app
from service.scan import Output, ScanError, find

ROOT = Path(__file__).parents[1]
SAMPLE = ROOT / "client" / "samples" / "commands.flac"


def scan(*arguments, status=0):
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    assert done.exit_code == status, done.output
    return done.output


@pytest.fixture
def archive(tmp_path):
    """A folder with the sample thrice, a silent recording of another rate, a broken file and a text."""
    folder = tmp_path / "archive"
    (folder / "deeper").mkdir(parents=True)
    for name in ("one.flac", "deeper/two.flac", "deeper/three.FLAC"):
        shutil.copy(SAMPLE, folder / name)
    soundfile.write(folder / "silence.wav", np.zeros(4410, np.int16), 22_050)
    (folder / "broken.mp3").write_bytes(b"no music")
    (folder / "notes.txt").write_text("no recording")
    return folder


def test_words_are_found_where_they_were_said(archive, tmp_path):
    out = tmp_path / "out.parquet"
    scan(archive / "one.flac", "--out", out)
    found = pq.read_table(out).to_pylist()
    said = {word.text: word for word in script()}
    assert len(found) >= 5
    for row in found:
        word = said[row["keyword"]]
        assert row["start_s"] < word.end_s
        assert abs(row["end_s"] - word.end_s) < 0.5


def test_every_recording_has_a_row(archive, tmp_path):
    out = tmp_path / "out.parquet"
    said = scan(archive, "--out", out)
    rows = pq.read_table(out).to_pylist()
    by_name = {
        name: [r for r in rows if r["path"].endswith(name)] for name in ("silence.wav", "broken.mp3", "one.flac")
    }
    assert "5 recordings, 5 of them new, 1 unreadable" in said
    assert f"deltaspot: {archive}/broken.mp3: not an audio file" in said
    assert [(r["audio_s"], r["keyword"], r["error"]) for r in by_name["silence.wav"]] == [(0.2, None, None)]
    assert "not an audio file" in by_name["broken.mp3"][0]["error"]
    assert (
        len({len([r for r in rows if r["path"].lower().endswith(f"{n}.flac")]) for n in ("one", "two", "three")}) == 1
    )


def test_a_scan_that_was_killed_goes_on(archive, tmp_path):
    whole, broken = tmp_path / "whole.parquet", tmp_path / "broken.parquet"
    scan(archive, "--out", whole)
    command = [sys.executable, "-m", "service.cli", "scan", archive, "--out", broken, "--batch", "1"]
    killed = subprocess.Popen(command, cwd=ROOT)
    parts = tmp_path / "broken.parquet.parts"
    while len(list(parts.glob("*.parquet"))) < 2:  # the first one is of what cannot be read, and is tried again
        assert killed.poll() in (None, 0)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    said = scan(archive, "--out", broken)
    assert "5 of them new" not in said
    assert not parts.exists()
    assert pq.read_table(broken).equals(pq.read_table(whole))


def test_a_second_scan_judges_new_recordings_only(archive, tmp_path):
    out = tmp_path / "out.parquet"
    scan(archive / "deeper", "--out", out)
    assert "5 recordings, 3 of them new" in scan(archive, "--out", out)
    (archive / "broken.mp3").unlink()
    assert "4 recordings, 0 of them new" in scan(archive, "--out", out)
    assert len(set(pq.read_table(out)["path"].to_pylist())) == 5


def test_a_recording_that_was_not_there_to_the_end_is_judged_once_it_is(archive, tmp_path):
    out, late, whole = tmp_path / "out.parquet", archive / "broken.mp3", tmp_path / "whole.parquet"
    scan(archive, "--out", out)
    late.write_bytes(b"")
    assert "5 recordings, 1 of them new, 1 unreadable" in scan(archive, "--out", out)
    assert pq.read_table(out)["path"].to_pylist().count(str(late)) == 1
    shutil.copy(SAMPLE, late)
    assert "5 recordings, 1 of them new, 0 unreadable" in scan(archive, "--out", out)
    scan(archive, "--out", whole)
    assert pq.read_table(out).equals(pq.read_table(whole))


def test_a_merge_that_was_interrupted_counts_nothing_twice(archive, tmp_path):
    out = tmp_path / "out.parquet"
    scan(archive, "--out", out)
    before = pq.read_table(out)
    identity = {key.decode(): value.decode() for key, value in before.schema.metadata.items()}
    Output(out, identity).add(before)
    scan(archive, "--out", out)
    assert pq.read_table(out).equals(before)


def test_tables_of_different_points_are_not_mixed(archive, tmp_path):
    out = tmp_path / "out.parquet"
    scan(archive / "silence.wav", "--out", out)
    with pytest.raises(ScanError, match="another model, calibration or point"):
        scan(archive / "silence.wav", "--out", out, "--point", "dense")


def test_tables_of_different_thresholds_are_not_mixed(archive, tmp_path):
    out, stricter = tmp_path / "out.parquet", tmp_path / "stricter.safetensors"
    scan(archive / "silence.wav", "--out", out)
    shipped = load_checkpoint()
    save(replace(shipped, calibration={**shipped.calibration, "margin": 0.5}), stricter)
    assert load_checkpoint(stricter).fingerprint == shipped.fingerprint
    with pytest.raises(ScanError, match="another model, calibration or point"):
        scan(archive / "silence.wav", "--out", out, "--model", stricter)
    save(replace(shipped, calibration={**shipped.calibration, "made_for": {"point": "shipped"}}), stricter)
    assert "0 of them new" in scan(archive / "silence.wav", "--out", out, "--model", stricter), "equal thresholds"


def test_a_name_that_is_no_text_costs_its_own_recording_only(tmp_path):
    folder, out = tmp_path / "old", tmp_path / "out.parquet"
    folder.mkdir()
    shutil.copy(SAMPLE, folder / os.fsdecode(b"caf\xe9.flac"))
    assert "1 recordings, 0 of them new, 1 unreadable" in scan(folder, "--out", out, status=1)
    shutil.copy(SAMPLE, folder / "caf\u00e9.flac")
    said = scan(folder, "--out", out)
    assert "2 recordings, 1 of them new, 1 unreadable" in said
    assert f"{folder}/caf\\xe9.flac: its name is not UTF-8" in said


def test_file_that_is_no_table_is_left_alone(archive, tmp_path):
    out = tmp_path / "notes.parquet"
    out.write_text("dear diary")
    with pytest.raises(ScanError, match=r"notes\.parquet is no parquet file; name another --out"):
        scan(archive / "silence.wav", "--out", out)
    assert out.read_text() == "dear diary"


def test_table_of_another_kind_is_not_promised(archive, tmp_path):
    with pytest.raises(ScanError, match=r"found\.csv: a scan is written as parquet, .* ends in \.parquet"):
        scan(archive / "silence.wav", "--out", tmp_path / "found.csv")


def test_folder_without_recordings_is_no_success(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ScanError, match=f"no recordings in {tmp_path}: expected .*wav"):
        scan(tmp_path, "--out", tmp_path / "new" / "out.parquet")
    assert not (tmp_path / "new").exists()


def test_unreadable_recordings_are_named_and_none_that_can_be_read_is_a_failure(archive, tmp_path):
    for number in range(NAMED + 2):
        (archive / f"{number}.wav").write_bytes(b"no music")
    broken = list(archive.glob("*[0-9].wav"))
    said = scan(*broken, "--out", tmp_path / "out.parquet", status=1)
    assert said.count(": not an audio file") == NAMED
    assert "... and 2 more" in said
    assert "12 unreadable" in said
    assert "1 of them new, 1 unreadable" in scan(broken[0], "--out", tmp_path / "out.parquet", status=1)
    assert "more" not in scan(archive / "one.flac", "--out", tmp_path / "out.parquet")


def test_unknown_paths_and_points_are_told(archive, tmp_path):
    with pytest.raises(ScanError, match="does not exist"):
        find([archive / "nothing"])
    with pytest.raises(ScanError, match="no operating point sharp"):
        scan(archive, "--out", tmp_path / "out.parquet", "--point", "sharp")
    assert [path.name for path in tmp_path.iterdir()] == ["archive"], "nothing is left of a scan that did not begin"
