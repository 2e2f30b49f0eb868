"""`deltaspot train`: begins as told, goes on as it was set up, and refuses what it cannot do."""

from __future__ import annotations

import json
import re
import shlex
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from models.checkpoint import load_checkpoint, save
from models.config import ConfigError
from models.gated import Gated
from models.train import MODEL, Report, checkpoint_of
from models.train_state import STATE, TrainingError, be_taught, load_state, save_state
from service.commands.evaluate import app as evaluate
from service.commands.train import Stage, app, begin, go_on, judged
from tests.test_train import CONFIG, cache, data, objective, one_thread, start  # noqa: F401 (one is for every test)

SETTINGS = """
[model]
channels = 32
heads = 2
layers = 1
hidden = 32
filters = [16, 16]

[recipe]
segments = 1
named = ["yes", "no", "tree"]

[schedule]
streams = 4
"""


def test_command_refuses_what_it_cannot_do(data: Path, tmp_path: Path) -> None:  # noqa: F811 (fixtures)
    def run(*arguments: str) -> Exception:
        return CliRunner().invoke(app, ["--data", str(data), "--out", str(tmp_path), *arguments]).exception

    assert "nothing to resume" in str(run("--resume"))
    assert "no training clips of up, down" in str(run("--steps", "1"))
    save_state(start("dense"), tmp_path / STATE)
    assert "holds a run" in str(run())
    for asked in (("--steps", "9"), ("--rate", "0.1"), ("--fold", "1,2"), ("--target", "0.3")):
        assert "leave out" in str(run("--resume", *asked))
    assert "learns yes, no: other keywords need a folder" in str(run("--resume", "--keywords", "bed,no"))
    assert "of the dense stage: leave out --stage" in str(run("--resume", "--stage", "gated"))
    (tmp_path / STATE).unlink()
    assert "whole numbers between commas" in str(run("--fold", "1,x"))
    for text in ("bed,", "bed no"):
        assert "words between commas" in str(run("--keywords", text))
    assert "labels must be distinct" in str(run("--keywords", "bed,bed"))
    assert "no training clips of tree" in str(run("--keywords", "bed,tree"))
    assert "name it with --init" in str(run("--stage", "gated"))
    assert "--target is for the gated stage" in str(run("--target", "0.3"))


def test_command_begins_a_stage_as_told(tmp_path: Path) -> None:
    dense = begin(Stage.DENSE, None, steps=50, seed=3)
    assert (dense.schedule.steps, dense.schedule.warmup, dense.schedule.seed) == (50, 5, 3)
    save(checkpoint_of(start("dense"), {}), tmp_path / MODEL)
    gated = begin(Stage.GATED, tmp_path / MODEL, steps=None, seed=None)
    assert (gated.config, gated.objective.stage) == (CONFIG, "gated")
    assert gated.schedule == Gated.SCHEDULE
    save_state(gated, tmp_path / STATE)
    assert go_on(tmp_path).objective.stage == "gated"
    with pytest.raises(TrainingError, match="for the dense stage"):
        begin(Stage.GATED, tmp_path / MODEL, words=("bed",))
    other = begin(Stage.DENSE, tmp_path / MODEL, words=("bed",))
    assert other.config.keywords == ("bed",)
    assert begin(Stage.DENSE, tmp_path / MODEL).config == CONFIG
    np.testing.assert_array_equal(other.model.state_dict()["stem.bias"], gated.model.state_dict()["stem.bias"])


def test_other_keywords_and_settings_go_through_both_stages(data: Path, cache: Path, tmp_path: Path) -> None:  # noqa: F811 (fixtures)
    """From a file of settings to a model that the command printed last judges, by its own keywords."""
    settings = tmp_path / "settings.toml"
    settings.write_text(SETTINGS)
    common = ["--data", str(data), "--cache", str(cache), "--steps", "2"]
    dense, gated = tmp_path / "dense", tmp_path / "gated"
    words = ["--out", str(dense), "--keywords", "bed,no", "--config", str(settings)]
    done = CliRunner().invoke(app, [*common, *words])
    assert done.exit_code == 0, done.output
    made = load_checkpoint(dense / MODEL)
    assert made.config == replace(CONFIG, labels=("_silence_", "_unknown_", "bed", "no"))
    assert json.loads(made.metadata["recipe"])["named"] == ["yes", "tree"]
    settings.write_text('{"recipe": {"segments": 1}, "schedule": {"streams": 4}}')
    settings = settings.rename(settings.with_suffix(".json"))
    words = ["--out", str(gated), "--stage", "gated", "--init", str(dense / MODEL), "--target", "0.5"]
    done = CliRunner().invoke(app, [*common, *words, "--config", str(settings)])
    assert done.exit_code == 0, done.output
    run = go_on(gated, Stage.GATED)
    assert (run.config, run.schedule.streams, run.objective.target) == (made.config, 4, 0.5)
    program, command, *arguments = shlex.split(done.output.splitlines()[-1])
    assert (program, command) == ("deltaspot", "evaluate")
    judged = CliRunner().invoke(evaluate, [*arguments, "--json"])
    assert judged.exit_code == 0, judged.output
    assert len(json.loads(judged.stdout)["points"][0]["confusion"]) == 4
    save(checkpoint_of(start("dense"), {}), tmp_path / MODEL)
    taught = [*common, "--out", str(tmp_path / "taught"), "--keywords", "bed", "--teacher", str(tmp_path / MODEL)]
    assert "must know the labels _silence_, _unknown_, bed" in str(CliRunner().invoke(app, taught).exception)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("[modl]", "no 'modl', but model, recipe, schedule"),
        ("[model.frontend]\nband = 40", "model.frontend has no 'band', but sample_rate"),
        ("[model.frontend]\ntop_hz = 7000.0", "leave model.frontend out"),
        ("[model]\nchannels = 97", "must be a multiple of heads"),
        ("[model]\nspan = 20", "span must be a multiple of 16 to be compiled, got 20"),
        ("[model]\nchannels = 80\nheads = 2", "head_channels must be a multiple of 16 to be compiled, got 40"),
        ("[model]\nhidden = 200", "hidden must be a multiple of 16 to be compiled, got 200"),
        ("[model]\nfilters = [24, 48]", "filters must be multiples of 16 to be compiled"),
        ("[model]\nfolds = [1, 1, 2, 2, 1, 1]\nhidden = 400", "hidden folded by 2 must be a multiple of 16"),
        ("[recipe]\nsnr_db = [0]", "recipe.snr_db.1"),
        ("[schedule]\nsteps = 'many'", "schedule.steps"),
        ("recipe = 3", "recipe holds names and values"),
        ("[[", "settings.toml"),
    ],
)
def test_settings_that_are_none_are_refused(text: str, told: str, tmp_path: Path) -> None:
    path = tmp_path / "settings.toml"
    path.write_text(text)
    with pytest.raises((ConfigError, TrainingError), match=re.escape(told)):
        begin(Stage.DENSE, settings=path)


def test_work_that_is_done_is_not_told_as_how_far_the_run_is() -> None:
    report = Report(2, {}, {"dense": {"accuracy": 0.5, "silence": None, "done": 0.8}})
    assert judged(report) == "step 2, dense: accuracy 50.00%, silence -, causal work done 80.00%"


def test_shape_comes_with_the_checkpoint(tmp_path: Path) -> None:
    save(checkpoint_of(start("dense"), {}), tmp_path / MODEL)
    path = tmp_path / "settings.yaml"
    path.write_text('{"model": {"channels": 64}}')
    with pytest.raises(TrainingError, match="json or"):
        begin(Stage.DENSE, tmp_path / MODEL, settings=path)
    with pytest.raises(TrainingError, match="leave the section model out"):
        begin(Stage.DENSE, tmp_path / MODEL, settings=path.rename(path.with_suffix(".json")))


def test_command_has_the_streams_judged_by_a_tutor(data: Path, cache: Path, tmp_path: Path) -> None:  # noqa: F811 (fixtures)
    """Weights with a tutor differ from those without, and a tutor of other labels is refused before the first step."""
    save(checkpoint_of(start("dense"), {}), tmp_path / MODEL)
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
    save(replace(checkpoint_of(start("dense"), {}), config=replace(CONFIG, stride=2)), tmp_path / MODEL)
    refused = CliRunner().invoke(app, [*arguments[:-2], "--tutor", str(tmp_path / MODEL)])
    assert "its student's stride" in str(refused.exception)


def test_command_goes_on_with_a_run(data: Path, cache: Path, tmp_path: Path) -> None:  # noqa: F811 (fixtures)
    """For the keywords that it has, if any are named, in whatever order."""
    save_state(start("dense"), tmp_path / STATE)
    arguments = ["--data", str(data), "--out", str(tmp_path), "--cache", str(cache), "--resume", "--keywords", "no,yes"]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    assert "accuracy" in done.output
    assert load_state(tmp_path / STATE, objective("dense")).step == 6
    assert load_checkpoint(tmp_path / MODEL).config == CONFIG
