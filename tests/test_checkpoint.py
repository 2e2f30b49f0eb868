"""A checkpoint comes back as it was, or is refused with a reason."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save_file
from safetensors.torch import save_file as save_torch_file

from models.checkpoint import (
    FORMAT,
    Checkpoint,
    CheckpointError,
    is_matrix,
    load_checkpoint,
    save,
    shipped_path,
)
from models.config import KEYWORDS, ModelConfig, gate_names
from models.network import Network
from models.transformer import StreamingKWT

CONFIG = ModelConfig(channels=32, heads=2, layers=1, hidden=32, span=16)


def random_checkpoint() -> Checkpoint:
    rng = np.random.default_rng(0)
    shapes = {name: tuple(tensor.shape) for name, tensor in StreamingKWT(CONFIG).state_dict().items()}
    return Checkpoint(
        CONFIG,
        {name: rng.normal(0, 0.1, shape).astype(np.float32) for name, shape in shapes.items()},
        points={"shipped": dict.fromkeys(gate_names(CONFIG), 0.1)},
        calibration={"window_tokens": 5, "keywords": {"yes": {"threshold": 0.6, "patience": 2}}},
        metadata={"recipe": "Grüße"},
    )


@pytest.fixture
def path(tmp_path: Path) -> Path:
    save(random_checkpoint(), tmp_path / "model.safetensors")
    return tmp_path / "model.safetensors"


def rewrite(path: Path, **changes: str | None) -> None:
    """Write the file again with other metadata; None takes an entry away."""
    data = path.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"] | changes
    save_file(load_file(path), path, {name: text for name, text in metadata.items() if text is not None})


def test_round_trip(path: Path) -> None:
    before, after = random_checkpoint(), load_checkpoint(path)
    for part in ("config", "points", "calibration", "metadata", "fingerprint", "parameters"):
        assert getattr(after, part) == getattr(before, part), part
    assert after.weights.keys() == before.weights.keys()
    for name, weight in before.weights.items():
        np.testing.assert_array_equal(after.weights[name], weight)
    assert not list(path.parent.glob("*.part"))


def test_reference_network_takes_the_weights(path: Path) -> None:
    weights = {name: torch.from_numpy(array.copy()) for name, array in load_checkpoint(path).weights.items()}
    StreamingKWT(CONFIG).load_state_dict(weights, strict=True)


def test_file_holds_no_code(path: Path) -> None:
    """Nothing but a JSON header and the numbers it announces."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    assert set(header.pop("__metadata__")) == {"format", "config", "points", "calibration", "metadata"}
    assert {entry["dtype"] for entry in header.values()} == {"F16", "F32"}
    weights = random_checkpoint().weights
    assert len(data) == 8 + size + sum((2 if is_matrix(name, w) else 4) * w.size for name, w in weights.items())


def test_matrices_are_what_both_half_precisions_hold(path: Path) -> None:
    """From the moment that a checkpoint is made, so that whoever computes with it has the same numbers."""
    made, read = random_checkpoint().weights, load_checkpoint(path).weights
    for name, weight in made.items():
        np.testing.assert_array_equal(weight, read[name], err_msg=name)
        assert weight.dtype == read[name].dtype == np.float32
        if is_matrix(name, weight):
            np.testing.assert_array_equal(weight, weight.astype(np.float16), err_msg=name)
            significand, _ = np.frexp(weight)
            np.testing.assert_array_equal(significand * 256 % 1, 0, err_msg=name)  # eight bits, as bfloat16 has


def test_fingerprint_follows_what_the_model_says() -> None:
    one = random_checkpoint()
    weights = {**one.weights, "stem.bias": one.weights["stem.bias"] + 1e-3}
    point = {"shipped": {**one.points["shipped"], "stem": 0.2}}
    others = [replace(one, weights=weights), replace(one, points=point), replace(one, config=ModelConfig())]
    assert len({one.fingerprint, *(other.fingerprint for other in others)}) == 4
    assert replace(one, metadata={"recipe": "other"}).fingerprint == one.fingerprint


def test_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no checkpoint at"):
        load_checkpoint(tmp_path / "absent.safetensors")


@pytest.mark.parametrize("keep", [0, 7, 100, -1])
def test_torn_file_is_refused(path: Path, keep: int) -> None:
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(CheckpointError, match="whole"):
        load_checkpoint(path)


def test_pickle_is_refused(tmp_path: Path) -> None:
    torch.save({"stem.bias": torch.zeros(3)}, tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match="whole"):
        load_checkpoint(tmp_path / "model.pt")


@pytest.mark.parametrize("metadata", [None, {"format": "another"}])
def test_foreign_file_is_refused(tmp_path: Path, metadata: dict[str, str] | None) -> None:
    save_file({"x": np.zeros(3, np.float32)}, tmp_path / "foreign.safetensors", metadata)
    with pytest.raises(CheckpointError, match=FORMAT):
        load_checkpoint(tmp_path / "foreign.safetensors")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers_are_refused(tmp_path: Path, value: float) -> None:
    checkpoint = random_checkpoint()
    checkpoint.weights["blocks.0.up.bias"][3] = value
    save(checkpoint, tmp_path / "bad.safetensors")
    with pytest.raises(CheckpointError, match=r"not finite.*blocks\.0\.up\.bias"):
        load_checkpoint(tmp_path / "bad.safetensors")


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.bfloat16])
def test_numbers_of_another_format_are_refused(tmp_path: Path, dtype: torch.dtype) -> None:
    save_torch_file({"x": torch.zeros(3, dtype=dtype)}, tmp_path / "half.safetensors", {"format": FORMAT})
    with pytest.raises(CheckpointError):
        load_checkpoint(tmp_path / "half.safetensors")


@pytest.mark.parametrize("name", ["config", "points", "calibration", "metadata"])
@pytest.mark.parametrize("text", [None, "{", '{"channels": 96'])
def test_broken_metadata_is_refused(path: Path, name: str, text: str | None) -> None:
    rewrite(path, **{name: text})
    with pytest.raises(CheckpointError, match="metadata"):
        load_checkpoint(path)


@pytest.mark.parametrize(
    "config",
    [
        '{"layers": 0}',
        '{"channels": 96.0}',
        '{"stride": 0}',
        '{"frontend": {"hop": 0}}',
        '{"frontend": {"hop": 481}}',
        '{"frontend": {"fft": 500}}',
        '{"frontend": {"window": 470}}',
        '{"frontend": {"sample_rate": 8000}}',
        '{"frontend": {"high_hz": 9000}}',
        '{"frontend": {"low_hz": NaN}}',
        "3",
        '{"heads": 0}',
        '{"heads": "two"}',
        '{"colour": 1}',
        '{"frontend": {"colour": 1}}',
        '{"labels": 3}',
    ],
)
def test_configuration_that_cannot_be_built_is_refused(path: Path, config: str) -> None:
    rewrite(path, config=config)
    with pytest.raises(CheckpointError, match="metadata"):
        load_checkpoint(path)


@pytest.mark.parametrize("value", ["null", "NaN", "Infinity", "1e39", '"0.1"', "true", "-0.1"])
def test_thresholds_that_are_none_are_refused(path: Path, value: str) -> None:
    rewrite(path, points=f'{{"shipped": {{"stem": {value}}}}}')
    with pytest.raises(CheckpointError, match="threshold .* of stem at operating point shipped"):
        load_checkpoint(path)
    rewrite(path, points='{"shipped": {"block0.score.0": -1.5}}')
    load_checkpoint(path)


def test_a_gain_of_silence_without_such_a_label_is_refused(path: Path) -> None:
    labels = replace(CONFIG, labels=("_unknown_", *KEYWORDS)).to_dict()
    rewrite(path, config=json.dumps(labels), calibration='{"silence": 0}')
    load_checkpoint(path)
    rewrite(path, calibration='{"silence": 1.5}')
    with pytest.raises(CheckpointError, match="_silence_ gain, which is no label"):
        load_checkpoint(path)


@pytest.mark.parametrize("points", ["[]", "[3]", "3", '{"shipped": 3}', '{"shipped": [1]}'])
def test_points_that_are_none_are_refused(path: Path, points: str) -> None:
    rewrite(path, points=points)
    with pytest.raises(CheckpointError, match="metadata"):
        load_checkpoint(path)


def test_weights_that_half_precision_cannot_hold_are_refused(path: Path) -> None:
    data = path.read_bytes()
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])["__metadata__"]
    weights = {name: array.astype(np.float32) for name, array in load_file(path).items()}
    weights["blocks.0.up.weight"][3, 3] = 1e6
    save_file(weights, path, metadata)
    with pytest.raises(CheckpointError, match=r"not finite in half.*blocks\.0\.up\.weight"):
        load_checkpoint(path)


@pytest.mark.parametrize("name", sorted(random_checkpoint().weights))
def test_network_misses_every_weight(name: str) -> None:
    one = random_checkpoint()
    with pytest.raises(CheckpointError, match=name):
        Network(replace(one, weights={k: w for k, w in one.weights.items() if k != name}))
    with pytest.raises(CheckpointError, match=name):
        Network(replace(one, weights={**one.weights, name: np.zeros((2, 3, 4), np.float32)}))


def test_operating_point_without_a_gate_is_refused() -> None:
    one = random_checkpoint()
    point = {name: theta for name, theta in one.points["shipped"].items() if name != "block0.up"}
    with pytest.raises(CheckpointError, match=r"block0\.up"):
        Network(replace(one, points={"shipped": point}))


def test_shipped_checkpoint_is_whole() -> None:
    checkpoint = load_checkpoint(shipped_path())
    network = Network(checkpoint)
    assert network.points[0] == "dense"
    assert set(checkpoint.config.keywords) == set(KEYWORDS)
