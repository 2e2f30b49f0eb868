"""Folded layers against a loop over sub-tokens, and the streaming invariants."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from models.config import ConfigError, ModelConfig, gate_names
from models.folding import FoldedBlock, FoldedKWT, fold, unfold
from models.transformer import Gates, Past, StreamingKWT

SMALL = ModelConfig(channels=12, layers=3, heads=2, hidden=24, span=4)


@pytest.fixture
def network() -> FoldedKWT:
    torch.manual_seed(0)
    network = FoldedKWT(SMALL, (1, 2, 3))
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return network.requires_grad_(False)


@pytest.fixture
def frames() -> Tensor:
    return torch.randn(2, 10 * SMALL.stride, SMALL.frontend.bands, generator=torch.Generator().manual_seed(1))


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
    folded = FoldedKWT(SMALL, (1, 1, 1))
    folded.load_state_dict(plain.state_dict())
    torch.testing.assert_close(folded(frames)[0], plain(frames)[0], rtol=0, atol=0)


def test_matrices_shrink_by_the_square_of_the_factor() -> None:
    config = ModelConfig(layers=1, heads=4)

    def matrices(network: StreamingKWT) -> int:
        return sum(p.numel() for name, p in network.blocks[0].named_parameters() if p.ndim == 2 and "bias" not in name)

    assert matrices(FoldedKWT(config, (2,))) * 4 == matrices(StreamingKWT(config))


def test_factors_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="as many factors"):
        FoldedKWT(SMALL, (2,))
    with pytest.raises(ConfigError, match="multiples of 5"):
        FoldedKWT(SMALL, (5, 1, 1))
