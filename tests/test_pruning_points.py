"""Points that prune: learned, kept in the checkpoint, and of a network that is what it was."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from models import pruning_points
from models.checkpoint import Checkpoint
from models.config import ModelConfig, gate_names
from models.evaluate import LabelledClips
from models.features import Array
from models.network import Network
from models.offline import judge
from models.operating import method_of
from models.pruning_points import BOTH, PRICES, PRUNED, learn, with_pruning
from models.transformer import StreamingKWT

CONFIG = ModelConfig(channels=32, heads=2, layers=2, hidden=16)


@pytest.fixture
def checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    weights = {name: value.numpy() for name, value in StreamingKWT(CONFIG).state_dict().items()}
    gates = dict.fromkeys(gate_names(CONFIG), 0.01)
    return Checkpoint(CONFIG, weights, {"dense": dict.fromkeys(gates, 0.0), "shipped": gates})


def labelled(checkpoint: Checkpoint, samples: list[Array]) -> LabelledClips:
    """Clips, labelled by what the dense network hears."""
    heard = judge(Network(checkpoint), samples, point="dense")
    return LabelledClips(samples, np.array([posteriors[-1].argmax() for posteriors, _ in heard]))


@pytest.fixture
def clips(checkpoint: Checkpoint) -> LabelledClips:
    """Noise, all of it alike."""
    rng = np.random.default_rng(0)
    return labelled(checkpoint, [rng.normal(0, 1000, 16_000).astype(np.float32) for _ in range(4)])


@pytest.fixture
def others(checkpoint: Checkpoint) -> LabelledClips:
    """Noise that swells and fades, at levels and with labels of all kinds."""
    rng = np.random.default_rng(1)
    shape = np.hanning(16_000) ** rng.integers(0, 4, (12, 1)) * 10.0 ** rng.uniform(0, 4, (12, 1))
    return labelled(checkpoint, [*(rng.normal(0, 1, (12, 16_000)) * shape).astype(np.float32)])


def test_centred_keys_are_the_same_network(checkpoint: Checkpoint, clips: LabelledClips) -> None:
    centres = np.random.default_rng(1).normal(0, 1, (2, 2, 16))
    moved = with_pruning(checkpoint, np.full((2, 2), -1e9), centres)
    for point in ("dense", "shipped", PRUNED):
        before = judge(Network(checkpoint), clips.samples, point="dense" if point == PRUNED else point)
        after = judge(Network(moved), clips.samples, point=point)
        for (ours, _), (theirs, _) in zip(after, before, strict=True):
            np.testing.assert_allclose(ours, theirs, atol=1e-4)
    assert moved.fingerprint != checkpoint.fingerprint


def test_points_carry_what_was_learned_on_top_of_the_gates(checkpoint: Checkpoint) -> None:
    points = with_pruning(checkpoint, [[1.0, 2.0], [3.0, 4.0]], tau=0.5).points
    assert {name: method_of(point) for name, point in points.items()} == {
        "dense": "dense",
        "shipped": "delta",
        PRUNED: "pruned",
        BOTH: "delta+pruned",
    }
    assert [points[BOTH][f"block1.{name}"] for name in ("score.0", "score.1", "head.1")] == [3.0, 4.0, 0.5]
    assert points[BOTH]["stem"] == 0.01
    assert BOTH not in with_pruning(replace(checkpoint, points={}), [[1.0, 2.0], [3.0, 4.0]]).points


def test_learning_stops_where_clips_that_were_held_out_are_judged_wrong(
    checkpoint: Checkpoint, clips: LabelledClips, others: LabelledClips, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(pruning_points, "PRICES", PRICES[::3])
    assert learn(checkpoint, clips, others, steps=1, tell=told.append).points.keys() == {"dense", "shipped"}
    assert len(told) == 1
    assert PRUNED in learn(checkpoint, clips, clips, steps=1, tell=told.append).points
    assert len(told) == 3
    monkeypatch.setattr(pruning_points, "ALLOWED", {"shipped": 1.0})
    learned = learn(checkpoint, clips, others, tau=5.0, steps=1, tell=told.append)
    assert len(told) == 5
    assert learned.points[BOTH]["block0.head.1"] == learned.points[PRUNED]["block0.head.1"] == 5.0
    judged = judge(Network(learned), clips.samples, point=PRUNED)
    assert sum(count.left.sum() for _, count in judged) > 0
