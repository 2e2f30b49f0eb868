"""The compiled step against the torch reference: the same logits for every split, batch and past.

Gated streams get a word of caution: a value within rounding of its threshold may fall on either side of it, here
and there, and the two networks then hold different values for a while. So of many streams, one may part.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.cache import Cache
from models.checkpoint import Checkpoint
from models.config import FrontEndConfig, ModelConfig, gate_names
from models.features import Array
from models.network import Network
from models.step import REBASE_TOKENS
from models.transformer import Gates, Past, StreamingKWT

CONFIG = ModelConfig(channels=32, heads=2, layers=2, hidden=64, span=16, filters=(16, 32))
TOLERANCE = 1e-4
STREAMS, TOKENS = 8, 48


@torch.no_grad()
def randomise(model: StreamingKWT, bias: float = 0.1) -> StreamingKWT:
    """Random weights, every gain and bias included; those by distance spread by `bias`."""
    for name, parameter in model.named_parameters():
        parameter.add_(torch.randn_like(parameter) * (bias if name.endswith("attend.bias") else 0.1))
        parameter.copy_(parameter.bfloat16())  # as checkpoints hold matrices
    return model.eval()


def reference(config: ModelConfig = CONFIG) -> StreamingKWT:
    torch.manual_seed(0)
    return randomise(StreamingKWT(config))


def points(config: ModelConfig) -> dict[str, dict[str, float]]:
    """A mild and a strong operating point, each gate at a threshold of its own."""
    rng = np.random.default_rng(0)
    names = gate_names(config)
    scale = [0.02 if name.endswith("weights") else 1.0 for name in names]
    strong = dict(zip(names, (rng.uniform(0.1, 0.4, len(names)) * scale).tolist(), strict=True))
    return {"mild": {name: theta / 10 for name, theta in strong.items()}, "strong": strong}


def checkpoint_of(model: StreamingKWT) -> Checkpoint:
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    return Checkpoint(model.config, weights, points(model.config))


def compiled(model: StreamingKWT) -> Network:
    return Network(checkpoint_of(model))


MODEL = reference()
NETWORK = compiled(MODEL)


def noise(streams: int, tokens: int = TOKENS, seed: int = 0, config: ModelConfig = CONFIG) -> Array:
    """Frames that wander, now and then jump and now and then stand still: (streams, tokens, stride, bands)."""
    rng = np.random.default_rng(seed)
    shape = (streams, tokens, config.stride, config.frontend.bands)
    frames = (
        np.cumsum(rng.normal(0, 0.1, shape), axis=1)
        + rng.normal(0, 1.0, shape) * (rng.random(shape[:2]) < 0.3)[..., None, None]
    )
    still = rng.random(shape[:2]) < 0.2
    frames[:, 1:][still[:, 1:]] = frames[:, :-1][still[:, 1:]]
    return frames.astype(np.float32)


@torch.no_grad()
def expected(frames: Array, point: str = "dense", scale: float = 1.0, model: StreamingKWT = MODEL) -> Array:
    """The reference's logits for whole streams: (B, N, K)."""
    theta = None if point == "dense" else {name: t * scale for name, t in points(model.config)[point].items()}
    return model(torch.from_numpy(frames).flatten(1, 2), None, theta)[0].numpy()


def stream(network: Network, cache: Cache, row: int, frames: Array, cuts: Sequence[int] = ()) -> Array:
    """One stream's logits (N, K), its tokens cut into parts."""
    parts = np.split(frames, list(cuts))
    return np.concatenate([network.step(cache, np.array([row]), part, np.array([len(part)])) for part in parts])


def fresh(point: str = "dense", capacity: int = STREAMS, scale: float = 1.0) -> Cache:
    return NETWORK.new_cache(capacity, point, scale)


def deviations(got: Array, wanted: Array) -> Array:
    """Largest difference of each stream: (B,)."""
    return np.abs(got - wanted).max(axis=(1, 2))


@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        ModelConfig(channels=48, heads=1, layers=1, hidden=128, span=32),
        ModelConfig(channels=96, heads=3, layers=2, hidden=112, span=16, stride=2, kernel=5),
        ModelConfig(channels=64, heads=4, layers=1, hidden=16, span=48, labels=("_silence_", "_unknown_", "hey")),
        ModelConfig(channels=32, heads=2, layers=1, hidden=16, span=16, filters=(16, 16, 48)),
        ModelConfig(FrontEndConfig(bands=37), channels=32, heads=2, layers=1, hidden=16, span=16, filters=(32,)),
    ],
    ids=["small", "one head", "three heads", "three labels", "three convolutions", "bands left over"],
)
def test_dense_network_equals_the_reference(config: ModelConfig) -> None:
    model, tokens = reference(config), 3 * config.span
    network, frames = compiled(model), noise(2, tokens, config=config)
    cache = network.new_cache(2)
    got = network.step(cache, np.arange(2), frames.reshape(-1, *frames.shape[2:]), np.array([tokens, tokens]))
    np.testing.assert_allclose(got.reshape(2, tokens, -1), expected(frames, model=model), atol=TOLERANCE)


def test_working_memory_has_room_for_all_channels() -> None:
    wide = compiled(reference(ModelConfig(channels=512, heads=2, layers=1, hidden=16, filters=())))._scratch().wide
    assert len(wide) > 512


@pytest.mark.parametrize("point", ["mild", "strong"])
@pytest.mark.parametrize("scale", [0.0, 0.5, 1.0, 2.0])
def test_gated_network_equals_the_reference(point: str, scale: float) -> None:
    frames, cache = noise(STREAMS), fresh(point, scale=scale)
    got = np.stack([stream(NETWORK, cache, row, frames[row]) for row in range(STREAMS)])
    off = deviations(got, expected(frames, point, scale))
    assert np.count_nonzero(off > TOLERANCE) <= 1, off
    if scale:
        assert deviations(got, expected(frames)).min() > 10 * TOLERANCE, "the gates did nothing"


class Overhearing(Gates):
    """The reference's gates, which note what the read-out's head is about to read."""

    def __call__(self, name: str, x: torch.Tensor, window: torch.Tensor | None = None) -> torch.Tensor:
        if name == "readout.head":
            self.pooled = x
        return super().__call__(name, x, window)


@torch.no_grad()
def pooled(frames: Array, point: str) -> Array:
    """What the reference's read-out pools at each token: (B, N, C)."""
    past, future = Past(), Past()
    gates = Overhearing(None if point == "dense" else points(CONFIG)[point], past, future)
    MODEL.run(torch.from_numpy(frames).flatten(1, 2), past, future, gates)
    return gates.pooled.numpy()


@pytest.mark.parametrize("point", ["dense", "mild", "strong"])
def test_embedding_is_what_the_reference_pools(point: str) -> None:
    """Of every token of a step, however many it has."""
    frames, cache = noise(STREAMS), fresh(point)
    counts = np.full(STREAMS, TOKENS)
    logits, got = NETWORK.embed(cache, np.arange(STREAMS), frames.reshape(-1, *frames.shape[2:]), counts)
    off = deviations(got.reshape(STREAMS, TOKENS, -1), pooled(frames, point))
    assert np.count_nonzero(off > TOLERANCE) <= (point != "dense"), off
    again = NETWORK.step(fresh(point), np.arange(STREAMS), frames.reshape(-1, *frames.shape[2:]), counts)
    np.testing.assert_array_equal(logits, again)


@settings(max_examples=25)
@given(st.sets(st.integers(1, TOKENS - 1)).map(sorted), st.sampled_from(["dense", "mild", "strong"]))
def test_any_split_gives_the_same_embeddings(cuts: list[int], point: str) -> None:
    frames = noise(1)[0]
    parts, cache, row = np.split(frames, cuts), fresh(point), np.array([3])
    got = np.concatenate([NETWORK.embed(cache, row, part, np.array([len(part)]))[1] for part in parts])
    np.testing.assert_array_equal(got, NETWORK.embed(fresh(point), row, frames, np.array([TOKENS]))[1])


@pytest.mark.parametrize("name", gate_names(CONFIG))
def test_each_gate_alone_equals_the_reference(name: str) -> None:
    thresholds = {**dict.fromkeys(gate_names(CONFIG), 0.0), name: 0.01 if name.endswith("weights") else 0.3}
    network = Network(Checkpoint(CONFIG, NETWORK.checkpoint.weights, {"one": thresholds}))
    frames, cache = noise(4), network.new_cache(4, "one")
    got = np.stack([stream(network, cache, row, frames[row]) for row in range(4)])
    with torch.no_grad():
        wanted = MODEL(torch.from_numpy(frames).flatten(1, 2), None, thresholds)[0].numpy()
    assert np.count_nonzero(deviations(got, wanted) > TOLERANCE) <= 1
    assert deviations(got, expected(frames)).min() > 10 * TOLERANCE, "the gate did nothing"


@settings(max_examples=25)
@given(st.sets(st.integers(1, TOKENS - 1)).map(sorted), st.sampled_from(["dense", "mild", "strong"]))
def test_any_split_gives_the_whole(cuts: list[int], point: str) -> None:
    frames = noise(1)[0]
    got = stream(NETWORK, fresh(point), 3, frames, cuts)
    np.testing.assert_array_equal(got, stream(NETWORK, fresh(point), 3, frames))


@settings(max_examples=25)
@given(st.data())
def test_any_mix_of_streams_gives_each_its_own(data: st.DataObject) -> None:
    """Streams at different points join in any order, some with many tokens, and never notice each other."""
    frames, at = noise(STREAMS), np.zeros(STREAMS, np.int64)
    cache, chosen = fresh(), [data.draw(st.sampled_from(NETWORK.points)) for _ in range(STREAMS)]
    for row, point in enumerate(chosen):
        cache.configure(row, NETWORK.points.index(point))
    got = np.zeros((STREAMS, TOKENS, len(CONFIG.labels)), np.float32)
    for _ in range(data.draw(st.integers(1, 12))):
        rows = np.array(data.draw(st.lists(st.integers(0, STREAMS - 1), min_size=1, unique=True)))
        counts = np.array([data.draw(st.integers(0, min(9, TOKENS - at[row]))) for row in rows])
        batch = np.concatenate([frames[r, at[r] : at[r] + n] for r, n in zip(rows, counts, strict=True)])
        parts = np.split(NETWORK.step(cache, rows, batch, counts), np.cumsum(counts)[:-1])
        for row, count, part in zip(rows, counts, parts, strict=True):
            got[row, at[row] : at[row] + count] = part
            at[row] += count
    for row, point in enumerate(chosen):
        alone = stream(NETWORK, fresh(point), row, frames[row, : at[row]])
        np.testing.assert_array_equal(got[row, : at[row]], alone)
    np.testing.assert_array_equal(cache.tokens, at)


@pytest.mark.parametrize("point", ["dense", "mild", "strong"])
def test_row_of_the_cache_makes_no_difference(point: str) -> None:
    """To the bit: rounding decides a gate now and then, and what follows is another stream's verdict."""
    frames = noise(1, 3 * REBASE_TOKENS)[0]
    cache = fresh(point)
    first = stream(NETWORK, cache, 0, frames)
    for row in range(1, STREAMS):
        np.testing.assert_array_equal(stream(NETWORK, cache, row, frames), first)


@pytest.mark.parametrize("tokens", [1, CONFIG.span - 1, CONFIG.span, TOKENS])
@pytest.mark.parametrize("point", ["dense", "strong"])
def test_reset_is_a_new_stream(tokens: int, point: str) -> None:
    cache, frames = fresh(point), noise(2)
    stream(NETWORK, cache, 5, frames[1, :tokens])
    cache.reset(5)
    np.testing.assert_array_equal(stream(NETWORK, cache, 5, frames[0]), stream(NETWORK, fresh(point), 5, frames[0]))


def test_reset_leaves_the_neighbours_alone() -> None:
    cache, frames = fresh(), noise(2)
    stream(NETWORK, cache, 0, frames[0, :20])
    stream(NETWORK, cache, 1, frames[1, :20])
    cache.reset(1)
    got = stream(NETWORK, cache, 0, frames[0, 20:])
    np.testing.assert_array_equal(got, stream(NETWORK, fresh(), 0, frames[0])[20:])


def test_operating_point_may_change_within_a_stream() -> None:
    """Back at the dense point, everything held catches up at the next token, but keys and values stay as they were."""
    cache, frames = fresh("strong"), noise(1, 4 * CONFIG.receptive_tokens)[0]
    stream(NETWORK, cache, 0, frames[: len(frames) // 2])
    cache.configure(0, NETWORK.points.index("dense"))
    got = stream(NETWORK, cache, 0, frames[len(frames) // 2 :])
    np.testing.assert_allclose(got[-8:], expected(frames[None])[0, -8:], atol=TOLERANCE)
