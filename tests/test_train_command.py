"""`deltaspot train`: begins as told, goes on as it was set up, and refuses what it cannot do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from models.checkpoint import load_checkpoint, save
from models.gated import Gated
from models.train import MODEL, checkpoint_of
from models.train_state import STATE, be_taught, load_state, save_state
from service.commands.train import Stage, app, begin, objective_of
from tests.test_train import CONFIG, cache, data, objective, one_thread, start  # noqa: F401 (one is for every test)


def test_command_refuses_what_it_cannot_do(data: Path, tmp_path: Path) -> None:  # noqa: F811 (fixtures)
    def run(*arguments: str) -> Exception:
        return CliRunner().invoke(app, ["--data", str(data), "--out", str(tmp_path), *arguments]).exception

    assert "nothing to resume" in str(run("--resume"))
    assert "no training clips of up, down" in str(run("--steps", "1"))
    save_state(start("dense"), tmp_path / STATE)
    assert "holds a run" in str(run())
    for asked in (("--steps", "9"), ("--rate", "0.1"), ("--fold", "1,2")):
        assert "leave out" in str(run("--resume", *asked))
    (tmp_path / STATE).unlink()
    assert "whole numbers between commas" in str(run("--fold", "1,x"))


def test_command_begins_a_stage_as_told(tmp_path: Path) -> None:
    dense = begin(Stage.DENSE, None, steps=50, seed=3)
    assert (dense.schedule.steps, dense.schedule.warmup, dense.schedule.seed) == (50, 5, 3)
    save(checkpoint_of(start("dense")), tmp_path / MODEL)
    gated = begin(Stage.GATED, tmp_path / MODEL, steps=None, seed=None)
    assert (gated.config, gated.objective.stage) == (CONFIG, "gated")
    assert gated.schedule == Gated.SCHEDULE
    save_state(gated, tmp_path / STATE)
    assert load_state(tmp_path / STATE, objective_of(tmp_path)).objective.stage == "gated"


def test_command_has_the_streams_judged_by_a_tutor(data: Path, cache: Path, tmp_path: Path) -> None:  # noqa: F811 (fixtures)
    """Weights with a tutor differ from those without, and a tutor of other labels is refused before the first step."""
    save(checkpoint_of(start("dense")), tmp_path / MODEL)
    weights = []
    for tutor in ((), ("--tutor", str(tmp_path / MODEL))):
        out = tmp_path / str(len(tutor))
        out.mkdir()
        save_state(start("gated"), out / STATE)
        arguments = ["--data", str(data), "--out", str(out), "--cache", str(cache), "--resume", *tutor]
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        weights.append(load_checkpoint(out / MODEL).weights["readout.head.weight"])
    assert not np.array_equal(*weights)
    forgotten = CliRunner().invoke(app, [*arguments[:-2]])
    assert "this run had tutor" in str(forgotten.exception)
    old = load_state(out / STATE, objective("gated"))
    old.taught = None  # of a version that did not note it
    be_taught(old, [])
    assert old.taught == ""
    save_state(start("gated"), out / STATE)
    save(replace(checkpoint_of(start("dense")), config=replace(CONFIG, stride=2)), tmp_path / MODEL)
    refused = CliRunner().invoke(app, [*arguments[:-2], "--tutor", str(tmp_path / MODEL)])
    assert "its student's stride" in str(refused.exception)


def test_command_goes_on_with_a_run(data: Path, cache: Path, tmp_path: Path) -> None:  # noqa: F811 (fixtures)
    save_state(start("dense"), tmp_path / STATE)
    arguments = ["--data", str(data), "--out", str(tmp_path), "--cache", str(cache), "--resume"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "accuracy" in done.output
    assert load_state(tmp_path / STATE, objective("dense")).step == 6
    assert load_checkpoint(tmp_path / MODEL).config == CONFIG
