"""Operating points are the largest multiples of the learned thresholds that lose no more than allowed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from models.checkpoint import Checkpoint, save
from models.config import ModelConfig, gate_names
from models.data import split_of
from models.evaluate import ClipReport, LabelledClips
from models.network import Network
from models.points import GROWTH, LAXER, PointError, Trial, choose, scaled, trials
from models.transformer import StreamingKWT
from service.commands.model import app
from tests.test_evaluate import save as record

CONFIG = ModelConfig(channels=32, heads=2, layers=1, hidden=32, span=16)
LEARNED = {name: 0.1 + i for i, name in enumerate(gate_names(CONFIG))}


def tried(*accuracies: float) -> list[Trial]:
    """Trials at factors 0, 0.25, 0.5, ... with these accuracies."""
    return [
        Trial(place / 4, ClipReport(str(place), 1000, accuracy, None, None, None, {}, accuracy, 0.9, 0.8, 1.0, []))
        for place, accuracy in enumerate(accuracies)
    ]


def random_checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    weights = {name: value.numpy() for name, value in StreamingKWT(CONFIG).state_dict().items()}
    return Checkpoint(CONFIG, weights)


def factors(checkpoint: Checkpoint) -> dict[str, float]:
    return {name: point["stem"] / LEARNED["stem"] for name, point in checkpoint.points.items()}


def test_points_lose_what_is_allowed_and_no_more() -> None:
    chosen = choose(random_checkpoint(), LEARNED, tried(0.950, 0.951, 0.949, 0.947, 0.936, 0.930))
    assert factors(chosen) == pytest.approx({"dense": 0.0, "shipped": 0.5, "aggressive": 1.0})


def test_a_smaller_multiple_that_loses_more_rules_nothing_out() -> None:
    chosen = choose(random_checkpoint(), LEARNED, tried(0.950, 0.947, 0.950, 0.940, 0.900))
    assert factors(chosen) == pytest.approx({"dense": 0.0, "shipped": 0.5, "aggressive": 0.75})


def test_shipped_thresholds_stay_below_their_ceiling_whatever_clips_say() -> None:
    chosen = choose(random_checkpoint(), LEARNED, tried(*[0.950] * 9))
    assert factors(chosen) == pytest.approx({"dense": 0.0, "shipped": 0.75, "aggressive": 2.0})


def test_thresholds_that_cost_too_much_are_refused() -> None:
    with pytest.raises(PointError, match="train the gated stage longer"):
        choose(random_checkpoint(), LEARNED, tried(0.950, 0.940))


def test_trials_begin_dense_and_skip_more_and_more() -> None:
    rng = np.random.default_rng(0)
    clips = LabelledClips([rng.normal(0, 900, 16_000).astype(np.float32) for _ in range(3)], np.array([2, 3, 4]))
    checkpoint = random_checkpoint()
    judged = list(trials(checkpoint, scaled(dict.fromkeys(LEARNED, 1.0), 0.1), clips))
    skipped = [trial.report.macs_skipped_vs_causal for trial in judged]
    assert [judged[0].factor, judged[1].factor] == [0.0, GROWTH**-LAXER]
    assert skipped[-1] > skipped[1] > skipped[0]
    assert Network(checkpoint).points == ("dense",)


def test_points_are_chosen_with_silence_in_sight(tmp_path: Path) -> None:
    save(replace(random_checkpoint(), points={"learned": LEARNED}), tmp_path / "learned.safetensors")
    speaker = next(name for name in map(str, range(99)) if split_of(name) == "validation")
    record(tmp_path / "yes" / f"{speaker}_nohash_0.wav")
    words = ["points", "--data", str(tmp_path), "--model", str(tmp_path / "learned.safetensors")]
    words += ["--output", str(tmp_path / "chosen.safetensors")]
    assert "no noise to make silence of" in str(CliRunner().invoke(app, words).exception)


def test_checkpoint_without_learned_thresholds_is_refused(tmp_path: Path) -> None:
    save(random_checkpoint(), tmp_path / "dense.safetensors")
    words = ["points", "--data", str(tmp_path), "--model", str(tmp_path / "dense.safetensors"), "--output", "x"]
    assert "no learned thresholds" in str(CliRunner().invoke(app, words).exception)
