"""Work counted by the kernels against masks of the reference network, and the baselines against plain loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.cache import Cache
from models.checkpoint import Checkpoint
from models.config import ModelConfig, gate_names
from models.counting import GROUPS, REASONS, Count, causal_macs, count, nothing, window_macs
from models.network import Network
from models.operating import prune_names
from models.transformer import Gates, Past, StreamingKWT

CONFIG = ModelConfig(channels=32, heads=2, layers=2, hidden=64, span=16, pool_span=32, filters=(16, 32))
C, H, D = CONFIG.channels, CONFIG.heads, CONFIG.head_channels
W, P = CONFIG.span, CONFIG.pool_span
TOKENS = 50
POINTS = {
    "dense": dict.fromkeys(gate_names(CONFIG), 0.0),
    "mild": {name: 0.003 if name.endswith("weights") else 0.05 for name in gate_names(CONFIG)},
    "strong": {name: 0.05 if name.endswith("weights") else 0.5 for name in gate_names(CONFIG)},
}


@pytest.fixture(scope="module")
def model() -> StreamingKWT:
    torch.manual_seed(0)
    model = StreamingKWT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
            parameter.copy_(parameter.bfloat16())  # as checkpoints hold matrices
    return model.eval()


@pytest.fixture(scope="module")
def network(model: StreamingKWT) -> Network:
    return Network(Checkpoint(CONFIG, {name: tensor.numpy() for name, tensor in model.state_dict().items()}, POINTS))


def noise(tokens: int = TOKENS, seed: int = 0) -> np.ndarray:
    """Frames that wander and now and then stand still: (tokens, stride, bands)."""
    rng = np.random.default_rng(seed)
    frames = np.cumsum(rng.normal(0, 0.1, (tokens, CONFIG.stride, CONFIG.frontend.bands)), axis=0)
    frames[20:28] = frames[20:21]
    return frames.astype(np.float32)


def run(network: Network, point: str, frames: np.ndarray) -> tuple[Cache, Count]:
    cache = network.new_cache(1, point)
    network.step(cache, np.zeros(1, np.int64), frames, np.array([len(frames)]))
    return cache, count(cache, 0)


class Masks(Gates):
    """Gates that note how many channels moved at each token."""

    def __init__(self, thresholds: dict[str, float], past: Past) -> None:
        super().__init__(thresholds, past, past)
        self.moved: dict[str, Tensor] = {}
        self.channels: dict[str, Tensor] = {}

    def __call__(self, name: str, x: Tensor, window: Tensor | None = None) -> Tensor:
        held = super().__call__(name, x, window)
        before = torch.cat((torch.zeros_like(held[..., :1, :]), held[..., :-1, :]), dim=-2)
        moved = held != before
        if window is not None:  # to be forgotten is another thing
            moved &= window
        self.channels[name] = moved
        self.moved[name] = moved.transpose(-2, -1).flatten(0, -2).sum(dim=0)
        return held


def stem_by_loop() -> dict[str, list[int]]:
    """MACs of every channel behind the stem's gates, output by output: 48 bands, then 22 places, then 10."""
    stem, first, second = np.full((CONFIG.kernel, 48), C), np.zeros((22, 16), int), np.full((10, 32), C)
    for output in range(22):
        stem[:, 2 * output : 2 * output + 6] += 16
    for output in range(10):
        first[2 * output : 2 * output + 4] += 32
    return {"stem": stem.ravel().tolist(), "filters1": first.ravel().tolist(), "filters2": second.ravel().tolist()}


@torch.no_grad()
def by_masks(model: StreamingKWT, frames: np.ndarray, thresholds: dict[str, float]) -> dict[str, int]:
    """MACs by group, from the reference's masks."""
    gates = Masks(thresholds, Past())
    model.run(torch.from_numpy(frames).flatten(0, 1)[None], Past(), Past(), gates)
    token = torch.arange(len(frames))
    older, forgotten, unpooled = token.clamp(max=W - 1), (token >= W) * H, (token >= P) * H
    macs = dict.fromkeys(GROUPS, 0)
    macs["stem"] = sum(int((gates.channels[name] * torch.tensor(cost)).sum()) for name, cost in stem_by_loop().items())
    for layer in range(CONFIG.layers):
        moved = {kind: gates.moved[f"block{layer}.{kind}"] for kind in ("qkv", "query", "weights", "out", "up", "down")}
        macs["qkv"] += int(moved["qkv"].sum()) * 3 * C
        macs["scores"] += int((moved["query"] * older + C).sum())
        macs["values"] += int((moved["weights"] + forgotten).sum()) * D
        macs["out"] += int(moved["out"].sum()) * C
        macs["up"] += int(moved["up"].sum()) * CONFIG.hidden
        macs["down"] += int(moved["down"].sum()) * C
    moved = {kind: gates.moved[f"readout.{kind}"] for kind in ("query", "weights", "head")}
    macs["readout"] = int(moved["query"].sum()) * H + int((moved["weights"] + unpooled).sum()) * D
    macs["readout"] += int(moved["head"].sum()) * len(CONFIG.labels)
    return macs


@pytest.mark.parametrize("point", POINTS)
def test_work_done_is_what_the_masks_say(point: str, model: StreamingKWT, network: Network) -> None:
    """Up to a few values within rounding of their threshold."""
    _, counted = run(network, point, noise())
    wanted = by_masks(model, noise(), POINTS[point])
    for group in GROUPS:
        assert counted.done[group] == pytest.approx(wanted[group], rel=5e-3), group
    assert counted.total == sum(counted.done.values())
    assert counted.tokens == TOKENS


def by_loop(tokens: int, *, judged: int | None = None) -> dict[str, int]:
    """Dense MACs, token by token; `judged` tokens at the end get a verdict."""
    macs = dict.fromkeys(GROUPS, 0)
    for token in range(tokens):
        seen, pooled = min(token + 1, W), min(token + 1, P)
        macs["stem"] += CONFIG.kernel * CONFIG.frontend.bands * C
        macs["stem"] += 22 * 16 * (6 * CONFIG.kernel) + 10 * 32 * (4 * 16) + 10 * 32 * C
        macs["readout"] += C * H
        if judged is None or token >= tokens - judged:
            macs["readout"] += pooled * C + C * len(CONFIG.labels)
        for _ in range(CONFIG.layers):
            for _ in range(H):
                macs["scores"] += seen * D
                macs["values"] += seen * D
            macs["qkv"] += C * 3 * C
            macs["out"] += C * C
            macs["up"] += C * CONFIG.hidden
            macs["down"] += CONFIG.hidden * C
    return macs


@given(st.integers(0, 60))
def test_causal_baseline(tokens: int) -> None:
    assert causal_macs(CONFIG, tokens) == by_loop(tokens)


@given(st.integers(0, 60))
def test_window_baseline_is_a_whole_window_at_every_token(tokens: int) -> None:
    window = by_loop(P, judged=1)
    assert window_macs(CONFIG, tokens) == {group: tokens * window[group] for group in GROUPS}


def test_dense_network_does_the_causal_baselines_work(network: Network) -> None:
    """Less, where values stand still or are zero behind the ReLU; more only by forgetting and rebuilding."""
    _, counted = run(network, "dense", noise())
    for group in set(GROUPS) - {"values", "readout"}:
        assert counted.done[group] <= counted.causal[group], group
    for group in ("values", "readout"):
        assert counted.done[group] <= counted.causal[group] * (1 + 1 / W), group
    assert counted.done["down"] < 0.9 * counted.causal["down"]


def test_stronger_gates_skip_more(network: Network) -> None:
    skipped = [run(network, point, noise())[1].skipped_vs_causal for point in POINTS]
    assert skipped == sorted(skipped)
    assert skipped[-1] > skipped[0] + 0.2


def test_silence_costs_next_to_nothing(network: Network) -> None:
    """The same frame for ever: nothing moves, and the new key and the ring's turning are all that is left."""
    frames = CONFIG.stride, CONFIG.frontend.bands
    cache, _ = run(network, "mild", np.full((200, *frames), -1.0, np.float32))
    before = count(cache, 0)
    network.step(cache, np.zeros(1, np.int64), np.full((20, *frames), -1.0, np.float32), np.array([20]))
    assert (count(cache, 0) - before).skipped_vs_causal > 0.9


def test_rebuilding_the_sums_is_work(network: Network) -> None:
    from models.step import REBASE_TOKENS

    frames = np.full((REBASE_TOKENS, CONFIG.stride, CONFIG.frontend.bands), 0.5, np.float32)
    cache, before = run(network, "mild", frames)
    work = []
    for _ in range(2):
        network.step(cache, np.zeros(1, np.int64), frames[:1])
        work.append((count(cache, 0) - before).total)
        before = count(cache, 0)
    assert work[0] > 5 * work[1]


def test_reasons_share_what_the_window_baseline_would_do(model: StreamingKWT) -> None:
    """Pruning is told apart from the gate, with which it runs."""
    names = [name for pair in prune_names(CONFIG) for name in pair]
    pruning = {name: 0.3 if "head" in name else 0.0 for name in names}
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    both = Network(Checkpoint(CONFIG, weights, {"both": {**POINTS["mild"], **pruning}}))
    counted = nothing(CONFIG)
    for seed in range(3):
        counted += run(both, "both", noise(seed=seed))[1]
    assert set(counted.skipped) == set(REASONS)
    assert sum(counted.skipped.values()) == pytest.approx(counted.skipped_vs_window)
    assert min(counted.skipped.values()) > 0
    for reason, macs in counted.pruned.items():
        assert sum(macs.values()) == pytest.approx(counted.skipped[reason] * sum(counted.window.values()))
    assert sum(counted.left) + counted.done["values"] <= counted.causal["values"] * (1 + 1 / W)


def test_counts_add_up_and_begin_anew(network: Network) -> None:
    cache, first = run(network, "mild", noise())
    network.step(cache, np.zeros(1, np.int64), noise(7, seed=1), np.array([7]))
    whole = count(cache, 0)
    later = whole - first
    assert later.tokens == 7
    assert later.total == whole.total - first.total
    both = first + later
    assert (both.tokens, both.done, both.causal, both.window) == (whole.tokens, whole.done, whole.causal, whole.window)
    cache.reset(0)
    assert (count(cache, 0).total, count(cache, 0).tokens) == (0, 0)


def test_shares_of_no_work_are_none() -> None:
    empty = nothing(CONFIG)
    assert (empty.tokens, empty.total, empty.skipped_vs_causal, empty.skipped_vs_window) == (0, 0, 0.0, 0.0)


def test_window_share_is_far_above_the_causal_one(network: Network) -> None:
    _, counted = run(network, "mild", noise())
    assert counted.skipped_vs_window == pytest.approx(1 - counted.total / sum(window_macs(CONFIG, TOKENS).values()))
    assert counted.skipped_vs_window > 0.9 > counted.skipped_vs_causal
