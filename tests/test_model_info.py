"""A checkpoint is told to people on one page, and to programs whole."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from typer.testing import CliRunner

from models.checkpoint import load_checkpoint, save, shipped_path
from service.commands.model import app


def info(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["info", *arguments], catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def test_people_get_a_page() -> None:
    checkpoint, page = load_checkpoint(shipped_path()), info()
    assert len(page.splitlines()) < 30
    assert f"{checkpoint.parameters:,} parameters, {shipped_path().stat().st_size:,} bytes" in page
    assert f"fingerprint {checkpoint.fingerprint}" in page
    assert f"labels: {', '.join(checkpoint.config.labels)}" in page
    rows = {line.split()[0]: line.split()[1:] for line in page.splitlines() if line.startswith(" ")}
    shipped = checkpoint.points["shipped"].values()
    assert rows["shipped"] == ["delta", f"{min(shipped):.3g}", "to", f"{max(shipped):.3g}", "-", "-"]
    assert rows["dense"] == ["dense", "0", "-", "-"]
    assert set(checkpoint.points) <= set(rows)
    for word, rule in checkpoint.calibration["keywords"].items():
        start_ms, end_ms = (f"{end:.0f}" for end in rule["span_ms"])
        assert rows[word] == [f"{rule['threshold']:.3f}", str(rule["patience"]), start_ms, "to", end_ms]


def test_brackets_in_names_are_told(tmp_path: Path) -> None:
    path, shipped = tmp_path / "a [take two]", load_checkpoint(shipped_path())
    labels = (*shipped.config.labels[:-1], "[/go]")
    points = {"[loud]": shipped.points["shipped"]}
    save(replace(shipped, config=replace(shipped.config, labels=labels), points=points, calibration={}), path)
    page = info(str(path))
    assert all(name in page for name in ("a [take two]:", "[/go]", "[loud]"))


def test_programs_get_everything() -> None:
    checkpoint, facts = load_checkpoint(shipped_path()), json.loads(info("--json"))
    assert facts["points"] == checkpoint.points
    assert facts["calibration"] == checkpoint.calibration
    assert facts["config"] == json.loads(json.dumps(checkpoint.config.to_dict()))
    assert facts["methods"]["shipped"] == "delta"


def test_what_prunes_and_what_is_not_calibrated_is_said(tmp_path: Path) -> None:
    shipped = load_checkpoint(shipped_path())
    point = shipped.points["shipped"] | {"block0.score.0": -1.5, "block1.score.0": 0.25, "block0.head.0": 0.5}
    save(replace(shipped, points={"dense": shipped.points["dense"], "x": point}, calibration={}), tmp_path / "a")
    page = info(str(tmp_path / "a"))
    (row,) = (line.split() for line in page.splitlines() if line.startswith(" x "))
    assert row[1] == "delta+pruned"
    assert row[5:] == ["-1.5", "to", "0.25", "0.5"]
    assert "deltaspot model calibrate" in page
