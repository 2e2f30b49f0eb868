"""The mean of two networks lies between them, and says what it is made of."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from models.average import average
from models.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save
from models.config import gate_names
from models.transformer import StreamingKWT
from service.commands.model import app
from tests.conftest import SMALL


def network(seed: int) -> Checkpoint:
    torch.manual_seed(seed)
    weights = {name: value.numpy() for name, value in StreamingKWT(SMALL).state_dict().items()}
    points = {"shipped": dict.fromkeys(gate_names(SMALL), 0.1 * seed)}
    return Checkpoint(SMALL, weights, points, {"window_tokens": seed}, {"stage": "gated"})


@pytest.mark.parametrize("share", [0.0, 0.25, 1.0])
def test_weights_are_the_mean_and_gates_the_first_ones(share: float) -> None:
    first, second = network(1), network(2)
    mean = average(first, second, share)
    for name, array in mean.weights.items():
        expected = (1 - share) * first.weights[name] + share * second.weights[name]
        assert np.allclose(array, expected, rtol=2**-8, atol=1e-6)
    assert mean.points == first.points
    assert (mean.calibration, mean.background) == ({}, {})
    assert mean.metadata == {"stage": "gated", "mean": f"{first.fingerprint}, and {share:g} of {second.fingerprint}"}


def test_other_shapes_have_no_mean() -> None:
    with pytest.raises(CheckpointError, match="one shape"):
        average(network(1), replace(network(2), config=replace(SMALL, labels=("_silence_", "_unknown_", "yes"))))


def test_command_writes_the_mean(tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.safetensors" for seed in (1, 2)]
    for seed, path in enumerate(paths, 1):
        save(network(seed), path)
    words = ["average", *map(str, paths), "--share", "0.3", "--output", str(tmp_path / "mean.safetensors")]
    assert CliRunner().invoke(app, words, catch_exceptions=False).exit_code == 0
    assert (
        load_checkpoint(tmp_path / "mean.safetensors").fingerprint == average(network(1), network(2), 0.3).fingerprint
    )
