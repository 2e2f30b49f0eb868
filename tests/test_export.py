"""ONNX Runtime gives what the network gives: for a whole second, and token by token with the cache handed over."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from models.checkpoint import Checkpoint, CheckpointError, save
from models.config import ModelConfig
from models.data import pad_clip
from models.folding import network_of
from models.offline import softmax, tokens_of
from service.commands.model import app

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

from models.export import CACHE, empty_cache  # noqa: E402 (needs onnx)


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    """Both graphs of the shipped model; the path is the clip graph's."""
    path = tmp_path_factory.mktemp("onnx") / "skwt.onnx"
    result = CliRunner().invoke(app, ["export", "--onnx", str(path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return path


def session(path: Path):
    return onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])


def dense(network, tokens: np.ndarray) -> np.ndarray:
    """Logits (N, K) of the compiled step at the dense point, for tokens (N, stride, M)."""
    cache = network.new_cache(1, "dense")
    return network.step(cache, np.zeros(1, np.int64), tokens, np.array([len(tokens)]))


def test_a_second_through_onnx_is_a_second_through_ours(exported: Path, network, spoken: np.ndarray) -> None:
    tokens = tokens_of(network.config, pad_clip(spoken[:16_000].astype(np.float32)))
    frames = tokens.reshape(1, -1, tokens.shape[-1])
    theirs = session(exported).run(None, {"frames": np.repeat(frames, 2, axis=0)})[0]
    assert theirs.shape[0] == 2
    assert np.abs(theirs[1] - dense(network, tokens)).max() < 1e-3


def test_steps_through_onnx_are_steps_through_ours(exported: Path, network, spoken: np.ndarray) -> None:
    tokens = tokens_of(network.config, spoken[: 5 * 16_000].astype(np.float32))
    ours = dense(network, tokens)
    runner, cache = session(exported.with_suffix(".step.onnx")), empty_cache(network.config, 1)
    for token, logits in zip(tokens, ours, strict=True):
        theirs, *after = runner.run(None, {"frames": token[None], **cache})
        cache = dict(zip(CACHE, after, strict=True))
        assert np.abs(softmax(theirs[0]) - softmax(logits)).max() < 1e-4
    assert cache["keys"].shape[3] == network.config.span - 1


def test_a_graph_says_what_it_is(exported: Path, network) -> None:
    for path, form in ((exported, "clip"), (exported.with_suffix(".step.onnx"), "step")):
        facts = {prop.key: prop.value for prop in onnx.load(path).metadata_props}
        assert facts["form"] == form
        assert facts["fingerprint"] == network.checkpoint.fingerprint
        assert json.loads(facts["labels"]) == list(network.config.labels)


def test_help_says_that_graphs_take_no_audio() -> None:
    said = " ".join(CliRunner().invoke(app, ["export", "--help"]).stdout.split())
    assert "log-mel frames, pixel / 64 - 1" in said
    assert "no audio" in said


def test_a_folded_network_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    config = ModelConfig(channels=32, heads=2, layers=2, hidden=32, span=16, folds=(1, 2))
    weights = {name: tensor.detach().numpy() for name, tensor in network_of(config).state_dict().items()}
    save(Checkpoint(config, weights), tmp_path / "folded.safetensors")
    command = ["export", "--onnx", str(tmp_path / "a.onnx"), "--model", str(tmp_path / "folded.safetensors")]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, CheckpointError)
    assert "layers fold cannot be exported" in str(result.exception)
    assert not list(tmp_path.glob("*.onnx"))
