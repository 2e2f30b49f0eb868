"""Pruned points of the compiled step against torch, against the published method's own twin, and against no pruning."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.checkpoint import Checkpoint
from models.config import gate_names
from models.counting import Count, count
from models.features import Array
from models.methods_streaming import StreamingJudge
from models.network import Network
from models.operating import method_of, prune_names
from models.pruning import PrunedAttention
from models.torch_network import TorchNetwork
from models.transformer import StreamingKWT
from tests.conftest import SMALL

CONFIG = SMALL
TOKENS, STREAMS = 40, 6  # so few that none rebuilds its sums, which torch does not count
ZERO = dict.fromkeys(gate_names(CONFIG), 0.0)
GATED = {name: 0.02 if name.endswith("weights") else 0.3 for name in gate_names(CONFIG)}
SCORES = {score: theta for (score, _), theta in zip(prune_names(CONFIG), (-0.4, 0.1, 0.5, -0.1), strict=True)}
HEADS = {head: tau for (_, head), tau in zip(prune_names(CONFIG), (0.9, 1.1, 0.8, 1.0), strict=True)}
IDLE = {score: -1e9 for score, _ in prune_names(CONFIG)}
POINTS = {
    "scores": ZERO | SCORES,
    "heads": ZERO | HEADS,
    "both": ZERO | SCORES | HEADS,
    "gated": GATED,
    "gated scores": GATED | SCORES,
    "gated heads": GATED | HEADS,
    "gated both": GATED | SCORES | HEADS,
    "idle": ZERO | IDLE | dict.fromkeys(HEADS, 1e-9),
    "gated idle": GATED | IDLE,
}


def random_checkpoint() -> Checkpoint:
    torch.manual_seed(0)
    model = StreamingKWT(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return Checkpoint(CONFIG, {name: tensor.numpy() for name, tensor in model.state_dict().items()}, POINTS)


CHECKPOINT = random_checkpoint()
COMPILED, TORCH = Network(CHECKPOINT), TorchNetwork(CHECKPOINT)


def wandering() -> Array:
    """Input that wanders and now and then stands still: (STREAMS, TOKENS, stride, bands)."""
    random = np.random.default_rng(0)
    shape = (STREAMS, TOKENS * CONFIG.stride, CONFIG.frontend.bands)
    walk = (random.normal(0, 0.3, shape) * (random.random(shape[:2]) < 0.3)[..., None]).cumsum(axis=1)
    return walk.astype(np.float32).reshape(STREAMS, TOKENS, CONFIG.stride, -1)


FRAMES = wandering()


def run(network: Network | TorchNetwork, point: str, cuts: list[int] | None = None) -> tuple[Array, list[Count]]:
    """All streams side by side, cut alike: logits (STREAMS, TOKENS, K), and what was counted of each."""
    cache = network.new_cache(STREAMS, point)
    parts = []
    for part in np.split(FRAMES, cuts or [], axis=1):
        counts = np.full(STREAMS, part.shape[1])
        logits = network.step(cache, np.arange(STREAMS), part.reshape(-1, *part.shape[2:]), counts)
        parts.append(logits.reshape(STREAMS, part.shape[1], -1))
    return np.concatenate(parts, axis=1), [count(cache, row) for row in range(STREAMS)]


@pytest.mark.parametrize("point", POINTS)
def test_equals_torch_and_counts_alike(point: str) -> None:
    """A score or a value within rounding of its threshold may fall on either side: of many streams, one may part."""
    (ours, counted), (theirs, wanted) = run(COMPILED, point), run(TORCH, point, [7, 8, 25])
    assert np.count_nonzero(np.abs(ours - theirs).max(axis=(1, 2)) > 1e-4) <= 1
    left, expected = sum(c.left for c in counted), sum(c.left for c in wanted)
    assert left.tolist() == pytest.approx(expected.tolist(), rel=0.01)
    assert [bool(kind) for kind in left] == ["scores" in point or "both" in point, "heads" in point or "both" in point]
    assert sum(c.total for c in counted) == pytest.approx(sum(c.total for c in wanted), rel=0.01)


@pytest.mark.parametrize(("idle", "off"), [("idle", "dense"), ("gated idle", "gated")])
def test_nothing_pruned_is_the_same_to_the_bit(idle: str, off: str) -> None:
    (ours, counted), (without, wanted) = run(COMPILED, idle), run(COMPILED, off)
    np.testing.assert_array_equal(ours, without)
    assert [c.total for c in counted] == [c.total for c in wanted]
    assert not any(c.left.any() for c in counted)


@settings(max_examples=12)
@given(st.sets(st.integers(1, TOKENS - 1)).map(sorted), st.sampled_from(["scores", "both", "gated both"]))
def test_any_split_gives_the_whole(cuts: list[int], point: str) -> None:
    (whole, once), (parts, often) = run(COMPILED, point), run(COMPILED, point, cuts)
    np.testing.assert_array_equal(parts, whole)
    assert [c.left.tolist() for c in often] == [c.left.tolist() for c in once]


def test_dropped_scores_are_those_of_the_published_twin() -> None:
    judge = StreamingJudge(CHECKPOINT)
    thresholds = torch.tensor(list(SCORES.values())).view(CONFIG.layers, CONFIG.heads)
    attention = PrunedAttention(thresholds, early=False)
    with torch.no_grad():
        wanted = judge.judge(torch.from_numpy(FRAMES).flatten(1, 2), attention).numpy()
    got, counted = run(COMPILED, "scores")
    assert np.count_nonzero(np.abs(got[:, -1] - wanted).max(axis=1) > 1e-4) <= 1
    dense = sum(c.causal["values"] for c in counted)
    kept = attention.done["values"].item()
    spared = sum(c.left[0] for c in counted)
    assert 0.5 * (dense - kept) < spared <= dense - kept, "a dropped row is read at most once more, to be taken out"


def test_a_head_that_is_always_silent_is_a_head_without_values() -> None:
    """Its weights never move, its sum stays 0: the same as no output rows for it."""
    weights = dict(CHECKPOINT.weights)
    out = weights["blocks.0.attention.out.weight"].copy()
    out[:, : CONFIG.head_channels] = 0
    without = Network(Checkpoint(CONFIG, {**weights, "blocks.0.attention.out.weight": out}))
    mute = Network(replace(CHECKPOINT, points={"mute": ZERO | {"block0.head.0": 1e9}}))
    wanted, _ = run(without, "dense")
    got, counted = run(mute, "mute")
    np.testing.assert_allclose(got, wanted, atol=1e-4)
    seen = sum(min(token + 1, CONFIG.span) for token in range(TOKENS))
    assert {c.left[1] for c in counted} == {seen * CONFIG.head_channels}


def test_methods_are_read_off_the_points() -> None:
    methods = {name: method_of(point) for name, point in POINTS.items()}
    assert methods == {
        "scores": "pruned",
        "heads": "pruned",
        "both": "pruned",
        "gated": "delta",
        "gated scores": "delta+pruned",
        "gated heads": "delta+pruned",
        "gated both": "delta+pruned",
        "idle": "pruned",
        "gated idle": "delta+pruned",
    }
    assert method_of(ZERO) == "dense"
