"""The torch engine says what the compiled step says, and counts what it counts."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from models.checkpoint import Checkpoint
from models.config import gate_names
from models.counting import count
from models.features import Array
from models.network import Network
from models.torch_network import Gathered, TorchNetwork
from models.transformer import StreamingKWT
from tests.conftest import SMALL

CONFIG = SMALL
TOKENS = 40
STREAMS = 3


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """Networks this small spend their time on waiting for threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    """A small network with random weights and an operating point that holds about half of the channels."""
    torch.manual_seed(0)
    model = StreamingKWT(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    thresholds = {name: 0.02 if name.endswith("weights") else 0.4 for name in gate_names(CONFIG)}
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return Checkpoint(CONFIG, weights, {"gated": thresholds})


@pytest.fixture(scope="module")
def compiled(checkpoint: Checkpoint) -> Network:
    return Network(checkpoint)


@pytest.fixture(scope="module")
def network(checkpoint: Checkpoint) -> TorchNetwork:
    network = TorchNetwork(checkpoint)
    network.warm_up()
    return network


@pytest.fixture(scope="module")
def frames() -> Array:
    """Slowly wandering input with stretches in which nothing moves: (STREAMS, TOKENS, stride, bands)."""
    random = np.random.default_rng(0)
    shape = (STREAMS, TOKENS * CONFIG.stride, CONFIG.frontend.bands)
    walk = (random.normal(0, 0.3, shape) * (random.random(shape[:2]) < 0.3)[..., None]).cumsum(axis=1)
    return walk.astype(np.float32).reshape(STREAMS, TOKENS, CONFIG.stride, -1)


def run(network: Network | TorchNetwork, frames: Array, points: list[str], cuts: list[list[int]]) -> tuple[Array, list]:
    """Streams cut at `cuts` (one list for each stream), a turn of each in every step: logits, and counts."""
    cache = network.new_cache(STREAMS)
    for row, point in enumerate(points):
        cache.configure(row, network.points.index(point))
    bounds = [[0, *sorted(cut), TOKENS] for cut in cuts]
    logits = np.zeros((STREAMS, TOKENS, len(CONFIG.labels)), np.float32)
    for turn in range(max(map(len, bounds)) - 1):
        rows = np.array([row for row in reversed(range(STREAMS)) if turn + 1 < len(bounds[row])])
        parts = [slice(bounds[row][turn], bounds[row][turn + 1]) for row in rows]
        counts = np.array([part.stop - part.start for part in parts])
        together = np.concatenate([frames[row, part] for row, part in zip(rows, parts, strict=True)])
        answers = np.split(network.step(cache, rows, together, counts), np.cumsum(counts)[:-1])
        for row, part, answer in zip(rows, parts, answers, strict=True):
            logits[row, part] = answer
    return logits, [count(cache, row) for row in range(STREAMS)]


@pytest.mark.parametrize("point", ["dense", "gated"])
def test_equals_the_compiled_step(compiled: Network, network: TorchNetwork, frames: Array, point: str) -> None:
    cuts = [[7, 20], [], list(range(1, TOKENS))]
    expected, work = run(compiled, frames, [point] * STREAMS, cuts)
    actual, counted = run(network, frames, [point] * STREAMS, cuts)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    for ours, theirs in zip(counted, work, strict=True):
        assert ours.tokens == theirs.tokens == TOKENS
        assert ours.done == pytest.approx(theirs.done, rel=0.005)  # a channel may move in one rounding only
        assert (ours.skipped_vs_causal > 0.3) == (point == "gated")


@pytest.mark.parametrize("point", ["dense", "gated"])
def test_pools_what_the_compiled_step_pools(
    compiled: Network, network: TorchNetwork, frames: Array, point: str
) -> None:
    pooled = []
    for each in (compiled, network):
        cache = each.new_cache(STREAMS, point)
        counts = np.full(STREAMS, TOKENS)
        pooled.append(each.embed(cache, np.arange(STREAMS), frames.reshape(-1, *frames.shape[2:]), counts)[1])
    assert np.ptp(pooled[0]) > 0.1
    np.testing.assert_allclose(pooled[1], pooled[0], atol=1e-4)


@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    cuts=st.lists(st.lists(st.integers(1, TOKENS - 1), unique=True, max_size=6), min_size=STREAMS, max_size=STREAMS),
    points=st.lists(st.sampled_from(["dense", "gated"]), min_size=STREAMS, max_size=STREAMS),
)
def test_any_split_and_any_company_give_the_same(
    network: TorchNetwork, frames: Array, cuts: list[list[int]], points: list[str]
) -> None:
    expected, work = run(network, frames, points, [[]] * STREAMS)
    actual, counted = run(network, frames, points, cuts)
    np.testing.assert_allclose(actual, expected, atol=1e-4)
    assert [c.total for c in counted] == pytest.approx([c.total for c in work], rel=0.02)


def test_a_reset_row_is_a_new_stream(network: TorchNetwork, frames: Array) -> None:
    cache = network.new_cache(1, "gated")
    rows = np.zeros(1, np.int64)
    fresh = network.step(cache, rows, frames[0], np.array([TOKENS]))
    cache.reset(0)
    np.testing.assert_allclose(network.step(cache, rows, frames[0], np.array([TOKENS])), fresh, atol=1e-6)
    assert cache.tokens[0] == TOKENS


def test_scale_zero_is_exact(network: TorchNetwork, frames: Array) -> None:
    cache = network.new_cache(2)
    cache.configure(0, network.points.index("gated"), scale=0.0)
    both = np.concatenate((frames[0], frames[0]))
    exact, dense = np.split(network.step(cache, np.arange(2), both, np.full(2, TOKENS)), 2)
    np.testing.assert_allclose(exact, dense, atol=1e-5)


def test_memory_of_a_stream_is_what_its_tensors_take(network: TorchNetwork) -> None:
    small, large = network.new_cache(1), network.new_cache(5)
    assert small.bytes_per_row == large.bytes_per_row
    assert large.bytes_per_row > sum(tensor[0].nbytes for tensor in large.tensors.values())


def test_gathered_layer_multiplies_each_value_once() -> None:
    layer = torch.nn.Linear(3, 2)
    seen = []
    layer.register_forward_pre_hook(lambda _layer, inputs: seen.append(inputs[0].shape[0]))
    x = torch.randn(2, 1, 3).repeat_interleave(4, dim=1)
    x[1, 2:] += 1.0
    torch.testing.assert_close(Gathered(layer)(x), layer(x))
    assert seen == [3, 2]
