"""The streaming network taken step by step is the streaming network; methods plug into its steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from models.checkpoint import Checkpoint
from models.config import ModelConfig
from models.counting import causal_macs
from models.hybrid import HybridAttention
from models.kwt import Attention
from models.methods_streaming import StreamingJudge
from models.pruning import PrunedAttention
from models.transformer import StreamingKWT

CONFIG = ModelConfig(channels=16, heads=2, layers=2, hidden=16, span=8)
TOKENS = 20


@pytest.fixture
def network() -> StreamingKWT:
    torch.manual_seed(0)
    network = StreamingKWT(CONFIG)
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
        parameter.data = parameter.data.bfloat16().float()  # as checkpoints hold matrices
    return network.requires_grad_(requires_grad=False)


@pytest.fixture
def judge(network: StreamingKWT) -> StreamingJudge:
    weights = {name: value.numpy() for name, value in network.state_dict().items()}
    return StreamingJudge(Checkpoint(CONFIG, weights)).requires_grad_(requires_grad=False)


@pytest.fixture
def frames() -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(3, TOKENS * CONFIG.stride, CONFIG.frontend.bands, generator=generator)


def test_step_by_step_is_the_network_itself(network: StreamingKWT, judge: StreamingJudge, frames: torch.Tensor) -> None:
    torch.testing.assert_close(judge.judge(frames), network(frames)[0][:, -1], atol=1e-5, rtol=1e-4)


def test_dense_work_is_the_causal_baseline(judge: StreamingJudge, frames: torch.Tensor) -> None:
    attention = Attention()
    judge.judge(frames, attention)
    causal = causal_macs(CONFIG, TOKENS)
    assert {group: macs.item() / attention.clips for group, macs in attention.done.items()} == {
        group: causal[group] for group in ("qkv", "scores", "values")
    }


def test_a_threshold_below_every_score_changes_nothing(judge: StreamingJudge, frames: torch.Tensor) -> None:
    attention = PrunedAttention(torch.full((CONFIG.layers, CONFIG.heads), -1e9))
    torch.testing.assert_close(judge.judge(frames, attention), judge.judge(frames))
    assert attention.done["values"] / attention.clips == causal_macs(CONFIG, TOKENS)["values"]


def test_pruning_never_reads_keys_that_a_query_may_not_see(judge: StreamingJudge, frames: torch.Tensor) -> None:
    causal = causal_macs(CONFIG, TOKENS)
    for attention in (PrunedAttention(torch.zeros(CONFIG.layers, CONFIG.heads)), HybridAttention(0.0, signed=True)):
        assert torch.isfinite(judge.judge(frames, attention)).all()
        assert attention.done["values"] / attention.clips < causal["values"]


def test_clips_are_framed_as_streams_are(judge: StreamingJudge) -> None:
    samples = np.random.default_rng(0).normal(0, 1000, 16_000).astype(np.float32)
    assert judge.prepare([samples, samples]).shape == (2, 33 * CONFIG.stride, CONFIG.frontend.bands)
