"""The clip stage: resumable to the bit, it learns, and what it leaves can teach."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from models.checkpoint import load_checkpoint
from models.clip_cnn import load_clip_cnn
from models.clip_stage import TUTOR, Clip, verdicts
from models.data import load_corpus
from models.train import LOG, MODEL, train
from models.train_state import STATE, State, TrainingError, load_state, new_state, save_state
from models.validation import Validation
from service.commands.train import Stage, app, begin, go_on
from tests.test_train import CONFIG, RECIPE, SCHEDULE, cache, data, numbers, one_thread, start  # noqa: F401 (fixtures)


def clip_start() -> State:
    return new_state(CONFIG, RECIPE, replace(SCHEDULE, shards=1), Clip(CONFIG, RECIPE))


def test_interrupted_run_reaches_the_same_weights_to_the_bit(
    data: Path,  # noqa: F811
    cache: Path,  # noqa: F811
    tmp_path: Path,
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    list(train(clip_start(), data, whole, cache))
    for report in train(clip_start(), data, parts, cache):
        if report.step == 5:
            break
    resumed = go_on(parts)
    assert (resumed.step, resumed.objective.stage) == (3, "clip")
    torch.rand(7)  # nothing may depend on torch's own generator
    assert [report.step for report in train(resumed, data, parts, cache)] == [4, 5, 6]
    for name, wanted in numbers(whole / STATE).items():
        np.testing.assert_array_equal(numbers(parts / STATE)[name], wanted, err_msg=name)
    assert (whole / LOG).read_text() == (parts / LOG).read_text()


def test_learns_what_two_words_sound_like(data: Path, cache: Path, tmp_path: Path) -> None:  # noqa: F811 (fixtures)
    state = begin(Stage.CLIP, words=CONFIG.keywords, steps=60)
    state.schedule = replace(state.schedule, streams=16, report_every=60, average=0.9)
    *_, last = train(state, data, tmp_path, cache)
    assert last.validation is not None
    assert last.validation["whole"]["keywords"] > 0.9
    network, config = load_clip_cnn(tmp_path / TUTOR)
    validation = Validation(load_corpus(data, "validation", cache), config)
    right = verdicts(network, validation.clips) == validation.labels
    assert right.mean() == last.validation["whole"]["accuracy"]


def test_command_trains_a_tutor_and_a_student_of_it(data: Path, cache: Path, tmp_path: Path) -> None:  # noqa: F811
    save_state(clip_start(), tmp_path / STATE)
    common = ["--data", str(data), "--cache", str(cache), "--resume"]
    done = CliRunner().invoke(app, [*common, "--out", str(tmp_path)])
    assert done.exit_code == 0, done.output
    assert "--tutor has it teach" in done.output
    tutor = ["--tutor", str(tmp_path / TUTOR)]
    weights = []
    for asked in ([], tutor):
        out = tmp_path / str(len(asked))
        out.mkdir()
        save_state(start("dense"), out / STATE)
        assert CliRunner().invoke(app, [*common, "--out", str(out), *asked]).exit_code == 0
        weights.append(load_checkpoint(out / MODEL).weights["readout.head.weight"])
    assert not np.array_equal(*weights)
    refused = CliRunner().invoke(app, [*common, "--out", str(tmp_path), *tutor])
    assert "leave out --tutor" in str(refused.exception)


def test_begins_with_nothing(tmp_path: Path) -> None:
    for asked in ({"init": tmp_path / MODEL}, {"folds": (1, 2)}):
        with pytest.raises(TrainingError, match="begins with nothing"):
            begin(Stage.CLIP, **asked)
    assert begin(Stage.CLIP).schedule == Clip.SCHEDULE
    settings = tmp_path / "settings.toml"
    settings.write_text("[schedule]\nshards = 2\n")
    with pytest.raises(TrainingError, match="one shard"):
        begin(Stage.CLIP, settings=settings)
    save_state(clip_start(), tmp_path / STATE)
    with pytest.raises(TrainingError, match="not 'dense'"):
        load_state(tmp_path / STATE, start("dense").objective)
