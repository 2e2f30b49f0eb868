"""Folded layers against a loop over sub-tokens, and the streaming invariants."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor

from client.connection import connect
from models.checkpoint import Checkpoint, load_checkpoint, save
from models.config import ConfigError, ModelConfig, gate_names
from models.counting import Count, causal_macs, count
from models.data import LAST_SAMPLES
from models.finetune import _mac_shares
from models.folding import FoldedBlock, FoldedKWT, fold, network_of, unfold
from models.offline import judge
from models.torch_network import TorchNetwork
from models.transformer import Gates, Past, StreamingKWT
from service import cli
from service.commands.train import read_folds
from service.protocol import Scores

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

SMALL = ModelConfig(channels=12, layers=3, heads=2, hidden=24, span=4)
FOLDED = replace(SMALL, folds=(1, 2, 3))
GATED = {name: 0.02 if name.endswith("weights") else 0.3 for name in gate_names(SMALL)}


@pytest.fixture
def network() -> FoldedKWT:
    torch.manual_seed(0)
    network = FoldedKWT(FOLDED)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.requires_grad_(False)


@pytest.fixture
def frames() -> Tensor:
    return torch.randn(2, 10 * SMALL.stride, SMALL.frontend.bands, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def engine(network: FoldedKWT) -> TorchNetwork:
    for parameter in network.parameters():
        parameter.copy_(parameter.bfloat16())  # as checkpoints hold matrices
    weights = {name: tensor.numpy() for name, tensor in network.state_dict().items()}
    return TorchNetwork(Checkpoint(FOLDED, weights, {"gated": GATED}))


def streamed(engine: TorchNetwork, frames: Tensor, point: str, cuts: list[int]) -> tuple[Tensor, list[Count]]:
    """Streams (B, T, M) cut alike: logits (B, N, K), and what was counted of each."""
    tokens = frames.unflatten(1, (-1, FOLDED.stride))
    cache, parts = engine.new_cache(len(tokens), point), []
    for part in tokens.tensor_split(cuts, dim=1):
        counts = np.full(len(part), part.shape[1])
        logits = engine.step(cache, np.arange(len(part)), part.flatten(0, 1).numpy(), counts)
        parts.append(torch.from_numpy(logits).view(len(part), part.shape[1], -1))
    return torch.cat(parts, dim=1), [count(cache, row) for row in range(len(tokens))]


@pytest.mark.parametrize("cuts", [[], [1, 5, 6], list(range(1, 10))])
@pytest.mark.parametrize("point", ["dense", "gated"])
def test_cached_steps_of_the_engine_equal_the_whole(
    network: FoldedKWT, engine: TorchNetwork, frames: Tensor, point: str, cuts: list[int]
) -> None:
    whole, _ = network(frames, None, GATED if point == "gated" else None)
    got, _ = streamed(engine, frames, point, cuts)
    torch.testing.assert_close(got, whole, atol=1e-4, rtol=1e-4)


def test_engine_counts_what_dense_folded_layers_do(engine: TorchNetwork, frames: Tensor) -> None:
    """Sub-token by sub-token; less only where something stands still, more where a token leaves its window."""
    c, w, tokens = SMALL.channels, SMALL.span, 10
    seen = sum(min(token + 1, w) for token in range(tokens))
    wanted = {"qkv": 0, "scores": 0, "up": 0}
    for factor in FOLDED.folds:
        for _query in range(factor):
            wanted["qkv"] += tokens * 3 * (c // factor) ** 2
            wanted["up"] += tokens * (c // factor) * (SMALL.hidden // factor)
            wanted["scores"] += seen * factor * (c // factor)
    causal = causal_macs(FOLDED, tokens)
    assert {group: causal[group] for group in wanted} == wanted
    assert causal["values"] == causal["scores"]
    (counted, *_) = streamed(engine, frames, "dense", [])[1]
    assert {group: counted.done[group] for group in wanted} == wanted
    leaving = sum(c * factor for factor in FOLDED.folds) * (tokens - w)
    assert counted.done["values"] == causal["values"] + leaving
    assert counted.total < counted.bytes_read / 2 < 2 * counted.total
    gated = streamed(engine, frames, "gated", [])[1][0]
    assert gated.total < counted.total
    assert gated.bytes_read < counted.bytes_read


def test_prices_of_gates_follow_the_folds() -> None:
    shares = dict(zip(gate_names(FOLDED), _mac_shares(FOLDED), strict=True))
    assert sum(shares.values()) == pytest.approx(1, abs=1e-3)
    assert shares["block2.up"] == pytest.approx(shares["block0.up"] / 3)
    assert shares["block2.query"] == pytest.approx(3 * shares["block0.query"])


def test_a_quarter_of_the_default_networks_memory_is_saved() -> None:
    config = ModelConfig()
    folds = tuple(2 if 3 <= layer < 6 else 1 for layer in range(config.layers))
    plain, folded = (
        sum(p.numel() for p in model.parameters())
        for model in (network_of(config), FoldedKWT(replace(config, folds=folds)))
    )
    assert folded < 0.76 * plain


def attention_by_loops(block: FoldedBlock, x: Tensor, factor: int) -> Tensor:
    """x + attention(norm(x)) of one stream of sub-tokens (F N, C / F), one query and one head at a time."""
    sub = block.norm1(x)
    attention, width = block.attention, x.shape[1]
    q, k, v = attention.qkv(sub).split(width, dim=1)
    depth = width // attention.heads
    rows = []
    for i in range(len(x)):
        seen = [j for j in range(len(x)) if 0 <= i // factor - j // factor < SMALL.span]
        row = []
        for h in range(attention.heads):
            part = slice(h * depth, (h + 1) * depth)
            bias = attention.attend.bias[h]
            powers = [math.exp(q[i, part] @ k[j, part] / math.sqrt(depth) + bias[i - j + factor - 1]) for j in seen]
            row.append(sum(p * v[j, part] for p, j in zip(powers, seen, strict=True)) / sum(powers))
        rows.append(attention.out(torch.cat(row)))
    return x + torch.stack(rows)


@pytest.mark.parametrize("factor", [2, 3])
def test_folded_block_is_attention_over_sub_tokens(network: FoldedKWT, factor: int) -> None:
    block = network.blocks[factor - 1]
    x = torch.randn(7, SMALL.channels, generator=torch.Generator().manual_seed(2))
    attended = attention_by_loops(block, torch.stack([part for token in x for part in token.chunk(factor)]), factor)
    expected = attended + block.down(torch.relu(block.up(block.norm2(attended))))
    found = block(x[None], Past(), Past(), Gates(None, Past(), Past()))[0]
    torch.testing.assert_close(found, expected.reshape(7, -1), atol=1e-5, rtol=1e-4)


def test_the_commands_example_folds_the_usual_network() -> None:
    (fold_option,) = (option for option in cli.load("train").params if option.name == "fold")
    example = re.search(r"such as ([\d,]+)", fold_option.help)
    assert example
    folds = read_folds(example[1])
    assert max(folds) > 1
    assert replace(ModelConfig(), folds=folds).factors == folds


def test_unfold_undoes_fold() -> None:
    x = torch.randn(2, 5, 12, generator=torch.Generator().manual_seed(3))
    assert fold(x, 3).shape == (2, 15, 4)
    torch.testing.assert_close(unfold(fold(x, 3), 3), x, rtol=0, atol=0)


@pytest.mark.parametrize("theta", [None, 0.3])
def test_any_split_of_a_stream_gives_the_same(network: FoldedKWT, frames: Tensor, theta: float | None) -> None:
    thresholds = None if theta is None else dict.fromkeys(gate_names(SMALL), theta)
    whole, _ = network(frames, thresholds=thresholds)
    past, parts = None, []
    for part in frames.split([3, 12, 6, 9], dim=1):
        logits, past = network(part, past, thresholds)
        parts.append(logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), whole, atol=1e-5, rtol=1e-4)


def test_zero_thresholds_change_nothing(network: FoldedKWT, frames: Tensor) -> None:
    gated, _ = network(frames, thresholds=dict.fromkeys(gate_names(SMALL), 0.0))
    torch.testing.assert_close(gated, network(frames)[0], atol=1e-5, rtol=1e-4)


def test_the_past_is_causal_by_token(network: FoldedKWT, frames: Tensor) -> None:
    changed = frames.clone()
    changed[:, -SMALL.stride :] += 1
    before, after = network(frames)[0], network(changed)[0]
    torch.testing.assert_close(before[:, :-1], after[:, :-1], rtol=0, atol=1e-6)
    assert not torch.allclose(before[:, -1], after[:, -1])


def test_factors_of_one_are_the_plain_network(frames: Tensor) -> None:
    torch.manual_seed(4)
    plain = StreamingKWT(SMALL)
    folded = FoldedKWT(SMALL)
    folded.load_state_dict(plain.state_dict())
    torch.testing.assert_close(folded(frames)[0], plain(frames)[0], rtol=0, atol=0)


def test_matrices_shrink_by_the_square_of_the_factor() -> None:
    config = ModelConfig(layers=1, heads=4)

    def matrices(network: StreamingKWT) -> int:
        return sum(p.numel() for name, p in network.blocks[0].named_parameters() if p.ndim == 2 and "bias" not in name)

    assert matrices(FoldedKWT(replace(config, folds=(2,)))) * 4 == matrices(StreamingKWT(config))


def test_factors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="one factor for each of 3 layers"):
        replace(SMALL, folds=(2,))
    with pytest.raises(ConfigError, match="multiples of 5"):
        FoldedKWT(replace(SMALL, folds=(5, 1, 1)))


@pytest.fixture
def served(tmp_path: Path, serving: Any) -> Iterator[tuple[Any, Checkpoint]]:
    """A server of a folded network with random weights."""
    torch.manual_seed(5)
    config = ModelConfig(layers=2, folds=(1, 2))
    weights = {name: tensor.numpy() for name, tensor in network_of(config).state_dict().items()}
    save(Checkpoint(config, weights, {"shipped": dict.fromkeys(gate_names(config), 0.05)}), tmp_path / "folded")
    with serving(model=tmp_path / "folded") as running:
        yield running, load_checkpoint(tmp_path / "folded")


async def test_a_folded_network_is_served(served: tuple[Any, Checkpoint], spoken: np.ndarray) -> None:
    running, checkpoint = served
    async with connect(running.stream, scores=True, point="dense") as spotter:
        await spotter.send(spoken.astype("<i2").tobytes())
        await spotter.finish()
        heard = [event.posteriors async for event in spotter if isinstance(event, Scores)]
    followed = np.concatenate((spoken, np.zeros(LAST_SAMPLES, np.int16)))
    ((wanted, _),) = judge(TorchNetwork(checkpoint), [followed], point="dense", flush=False)
    np.testing.assert_allclose(np.concatenate(heard), wanted, atol=1e-3)
