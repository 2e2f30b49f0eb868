"""Folded layers in the compiled step against the torch reference and the torch engine: logits, counts, every split.

As for plain layers (`test_kernels`), of many gated streams one may part, by a value within rounding of its threshold.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.cache import Cache, block_layout
from models.checkpoint import Checkpoint
from models.config import ConfigError, ModelConfig, gate_names
from models.counting import count
from models.engines import AnyNetwork, make_network
from models.features import Array
from models.folding import FoldedKWT, network_of
from models.network import Network
from models.operating import prune_names
from models.step import REBASE_TOKENS
from models.torch_network import TorchNetwork
from tests.parity.test_kernels import TOLERANCE, checkpoint_of, deviations, randomise
from tests.parity.test_kernels import expected as judged
from tests.parity.test_kernels import noise as wandering

CONFIG = ModelConfig(channels=32, heads=2, layers=3, hidden=64, span=16, folds=(2, 1, 2), filters=(16,))
BY_THREE = ModelConfig(channels=48, heads=1, layers=2, hidden=48, span=16, folds=(1, 3))
STREAMS, TOKENS = 6, 48


def reference(config: ModelConfig = CONFIG) -> FoldedKWT:
    """Random weights; biases by distance are so large that no two may be confused."""
    torch.manual_seed(0)
    return randomise(network_of(config), bias=1.0)


MODEL = reference()
NETWORK = Network(checkpoint_of(MODEL))
FOLDED_GATES = [name for name in gate_names(CONFIG) if name.startswith(("block0", "block2"))]


def noise(streams: int = STREAMS, tokens: int = TOKENS, seed: int = 0) -> Array:
    return wandering(streams, tokens, seed, CONFIG)


def expected(frames: Array, point: str = "dense", scale: float = 1.0, model: FoldedKWT = MODEL) -> Array:
    return judged(frames, point, scale, model)


def whole(network: AnyNetwork, frames: Array, point: str = "dense", scale: float = 1.0) -> tuple:
    """Streams (B, N, stride, M) in one call: logits (B, N, K), what was pooled (B, N, C), and the cache."""
    cache, streams = network.new_cache(len(frames), point, scale), np.arange(len(frames))
    counts = np.full(len(frames), frames.shape[1])
    answers = network.embed(cache, streams, frames.reshape(-1, *frames.shape[2:]), counts)
    return *(answer.reshape(*frames.shape[:2], -1) for answer in answers), cache


@pytest.mark.parametrize(
    ("shape", "folds"),
    [
        ({"channels": 96, "heads": 3, "hidden": 384}, (1, 2)),
        ({"channels": 96, "heads": 3, "hidden": 96}, (6, 6)),
        ({"channels": 64, "heads": 4, "hidden": 64, "span": 32}, (2, 2)),
        ({"channels": 48, "heads": 1, "hidden": 48}, (3, 1)),
    ],
    ids=["as shipped, one folded", "by six, none plain", "two heads in a folded layer", "by three"],
)
def test_dense_network_equals_the_reference(shape: dict[str, int], folds: tuple[int, ...]) -> None:
    model = reference(ModelConfig(**shape, layers=2, folds=folds))
    frames = noise(2, 3 * model.config.span)
    got, _, _ = whole(make_network(checkpoint_of(model), "kernels"), frames)
    np.testing.assert_allclose(got, expected(frames, model=model), atol=TOLERANCE)


@pytest.mark.parametrize("config", [CONFIG, BY_THREE], ids=["by two", "by three"])
@pytest.mark.parametrize("point", ["mild", "strong"])
def test_gated_network_equals_the_reference(config: ModelConfig, point: str) -> None:
    model, frames = reference(config), noise()
    network = Network(checkpoint_of(model))
    for scale in (0.0, 0.5, 1.0, 2.0):
        got, _, _ = whole(network, frames, point, scale)
        off = deviations(got, expected(frames, point, scale, model))
        assert np.count_nonzero(off > TOLERANCE) <= 1, off
        if scale:
            assert deviations(got, expected(frames, model=model)).min() > 10 * TOLERANCE, "the gates did nothing"


@pytest.mark.parametrize("name", FOLDED_GATES)
def test_each_folded_gate_alone_equals_the_reference(name: str) -> None:
    thresholds = {**dict.fromkeys(gate_names(CONFIG), 0.0), name: 0.01 if name.endswith("weights") else 0.3}
    network = Network(Checkpoint(CONFIG, NETWORK.checkpoint.weights, {"one": thresholds}))
    frames = noise(4)
    got, _, _ = whole(network, frames, "one")
    with torch.no_grad():
        wanted = MODEL(torch.from_numpy(frames).flatten(1, 2), None, thresholds)[0].numpy()
    assert np.count_nonzero(deviations(got, wanted) > TOLERANCE) <= 1
    assert deviations(got, expected(frames)).min() > 10 * TOLERANCE, "the gate did nothing"


@pytest.mark.parametrize("point", ["dense", "mild", "strong"])
def test_equals_the_torch_engine_and_counts_what_it_counts(point: str) -> None:
    """MACs by layer and product, and so the bytes that they read; few tokens, of which none rebuilds sums."""
    frames = noise()
    logits, pooled, cache = whole(NETWORK, frames, point)
    wanted, wanted_pooled, torchs = whole(TorchNetwork(NETWORK.checkpoint), frames, point)
    for ours, theirs in ((logits, wanted), (pooled, wanted_pooled)):
        assert np.count_nonzero(deviations(ours, theirs) > TOLERANCE) <= (point != "dense")
    close = 0.0 if point == "dense" else 0.005  # a channel may move in one rounding only
    for row in range(STREAMS):
        np.testing.assert_allclose(cache.macs[row], torchs.macs[row], rtol=close)
        ours, theirs = count(cache, row), count(torchs, row)
        assert ours.bytes_read == pytest.approx(theirs.bytes_read, rel=close)
        assert (ours.causal, ours.window, ours.tokens) == (theirs.causal, theirs.window, theirs.tokens)


def test_points_that_prune_leave_folded_layers_alone() -> None:
    pruned = {name: -0.1 if "score" in name else 0.2 for pair in prune_names(CONFIG) for name in pair}
    gates = dict.fromkeys(gate_names(CONFIG), 0.0)
    checkpoint = Checkpoint(CONFIG, NETWORK.checkpoint.weights, {"pruned": {**gates, **pruned}})
    frames = noise()
    got, _, cache = whole(Network(checkpoint), frames, "pruned")
    wanted, _, torchs = whole(TorchNetwork(checkpoint), frames, "pruned")
    assert np.count_nonzero(deviations(got, wanted) > TOLERANCE) <= 1
    assert deviations(got, expected(frames)).min() > 10 * TOLERANCE, "pruning did nothing"
    np.testing.assert_allclose(cache.pruned, torchs.pruned, rtol=0.01)
    folded = {name: value for name, value in pruned.items() if not name.startswith("block1")}
    checkpoint = Checkpoint(CONFIG, NETWORK.checkpoint.weights, {"pruned": {**gates, **folded}})
    np.testing.assert_array_equal(whole(Network(checkpoint), frames, "pruned")[0], whole(NETWORK, frames)[0])


@settings(max_examples=25)
@given(st.data())
def test_any_split_and_any_company_give_each_its_own(data: st.DataObject) -> None:
    """Streams at different points join in any order, some with many tokens, and never notice each other."""
    frames, at = noise(), np.zeros(STREAMS, np.int64)
    cache, chosen = NETWORK.new_cache(STREAMS), [data.draw(st.sampled_from(NETWORK.points)) for _ in range(STREAMS)]
    for row, point in enumerate(chosen):
        cache.configure(row, NETWORK.points.index(point))
    got = np.zeros((STREAMS, TOKENS, len(CONFIG.labels)), np.float32)
    for _ in range(data.draw(st.integers(1, 12))):
        rows = np.array(data.draw(st.lists(st.integers(0, STREAMS - 1), min_size=1, unique=True)))
        counts = np.array([data.draw(st.integers(0, min(9, TOKENS - at[row]))) for row in rows])
        batch = np.concatenate([frames[r, at[r] : at[r] + n] for r, n in zip(rows, counts, strict=True)])
        parts = np.split(NETWORK.step(cache, rows, batch, counts), np.cumsum(counts)[:-1])
        for row, n, part in zip(rows, counts, parts, strict=True):
            got[row, at[row] : at[row] + n] = part
            at[row] += n
    for row, point in enumerate(chosen):
        alone, _, _ = whole(NETWORK, frames[row : row + 1], point)
        np.testing.assert_array_equal(got[row, : at[row]], alone[0, : at[row]])


@pytest.mark.parametrize("tokens", [1, CONFIG.span - 1, CONFIG.span, TOKENS])
@pytest.mark.parametrize("point", ["dense", "strong"])
def test_reset_is_a_new_stream(tokens: int, point: str) -> None:
    frames = noise(2)
    _, _, cache = whole(NETWORK, frames[1:, :tokens], point)
    cache.reset(0)
    again = NETWORK.step(cache, np.zeros(1, np.int64), frames[0], np.array([TOKENS]))
    fresh, _, new = whole(NETWORK, frames[:1], point)
    np.testing.assert_array_equal(again, fresh[0])
    np.testing.assert_array_equal(cache.macs, new.macs)


def test_rebuilt_sums_are_what_they_were() -> None:
    frames = noise(1, 2 * REBASE_TOKENS)
    got, _, _ = whole(NETWORK, np.repeat(frames, 3, axis=0))
    np.testing.assert_allclose(got, np.repeat(expected(frames), 3, axis=0), atol=TOLERANCE)


@pytest.mark.parametrize("point", ["mild", "strong"])
def test_sums_stay_what_the_held_values_add_up_to(point: str) -> None:
    """y = W r + b for each sub-token of a folded layer, however many small changes went into y."""
    _, _, cache = whole(NETWORK, noise(1, 3 * REBASE_TOKENS, seed=1) * 5, point)
    for name, held, sums, factor in folded_parts():
        weight, bias = (MODEL.state_dict()[f"{name}.{part}"].double().numpy() for part in ("weight", "bias"))
        (outputs, inputs), row = weight.shape, cache.state[0]
        for part in range(factor):
            wanted = weight @ row[held + part * inputs : held + (part + 1) * inputs] + bias
            got = row[sums + part * outputs : sums + (part + 1) * outputs]
            np.testing.assert_allclose(got, wanted, atol=TOLERANCE, err_msg=f"{name} of sub-token {part}")


def folded_parts() -> list[tuple[str, int, int, int]]:
    """Every folded matrix: its name, where a row of the cache keeps its held inputs and its sums, and its factor."""
    pairs = {
        "attention.qkv": ("held_in", "sum_qkv"),
        "attention.out": ("held_mixed", "sum_out"),
        "up": ("held_up", "sum_up"),
        "down": ("held_down", "sum_down"),
    }
    return [
        (f"blocks.{i}.{name}", *(place + getattr(NETWORK.net.folded.layout.block, part) for part in parts), factor)
        for i, (factor, _, place) in enumerate(NETWORK.net.layers.tolist())
        if factor > 1
        for name, parts in pairs.items()
    ]


def test_a_folded_layer_takes_the_same_memory_but_for_its_rows_of_scores() -> None:
    plain, folded = block_layout(CONFIG), block_layout(CONFIG, 2)
    more = (2 * 2 * CONFIG.folded(2).heads - CONFIG.heads) * CONFIG.span
    assert folded.size - plain.size == 2 * more
    assert Cache(CONFIG, 1).layout.size == NETWORK.net.layout.size


@pytest.mark.parametrize(("channels", "folds", "match"), [(32, (4,), "head_channels folded by 4"), (96, (5,), "of 5")])
def test_widths_that_do_not_fit_are_refused(channels: int, folds: tuple[int, ...], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        Cache(ModelConfig(channels=channels, heads=2, layers=1, folds=folds), 1)


def test_factors_may_not_be_mixed() -> None:
    checkpoint = checkpoint_of(reference(ModelConfig(layers=2, folds=(2, 3))))
    with pytest.raises(ConfigError, match="by one factor to be compiled, got \\(2, 3\\)"):
        make_network(checkpoint)
