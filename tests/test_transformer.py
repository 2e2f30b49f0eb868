"""The reference network: a chunk is a stretch of the whole, gates of zero are no gates, and only the past counts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models.config import ConfigError, FrontEndConfig, ModelConfig, gate_names
from models.transformer import Past, StreamingKWT

CONFIG = ModelConfig(channels=32, heads=2, layers=2, hidden=64, span=16, filters=(16, 32))
TOKENS = 40
GATED = dict.fromkeys(gate_names(CONFIG), 0.05)


def network(seed: int = 0) -> StreamingKWT:
    """Random weights, biases included."""
    torch.manual_seed(seed)
    model = StreamingKWT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return model.eval()


def noise(streams: int, tokens: int = TOKENS, seed: int = 0) -> torch.Tensor:
    """Frames that wander: (streams, tokens * stride, bands)."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.randn(streams, tokens * CONFIG.stride, CONFIG.frontend.bands, generator=generator)
    return steps.cumsum(dim=1) * 0.2


MODEL = network()


@torch.no_grad()
def judge(frames: torch.Tensor, cuts: list[int] = [], thresholds=None) -> torch.Tensor:  # noqa: B006
    """Logits of streams whose frames (B, T, M) come in parts cut at tokens."""
    past, parts = None, []
    for part in frames.tensor_split([cut * CONFIG.stride for cut in cuts], dim=1):
        logits, past = MODEL(part, past, thresholds)
        parts.append(logits)
    return torch.cat(parts, dim=1)


CUTS = st.sets(st.integers(1, TOKENS - 1), max_size=8).map(sorted)


@settings(max_examples=25)
@given(CUTS, st.sampled_from([None, 0.0, 0.05]), st.integers(0, 100))
def test_any_split_gives_the_whole(cuts: list[int], theta: float | None, seed: int) -> None:
    thresholds = None if theta is None else dict.fromkeys(GATED, theta)
    frames = noise(2, seed=seed).double()
    MODEL.double()
    try:
        torch.testing.assert_close(judge(frames, cuts, thresholds), judge(frames, [], thresholds), rtol=0, atol=1e-9)
    finally:
        MODEL.float()


def test_tokens_may_come_one_by_one() -> None:
    frames = noise(1)
    torch.testing.assert_close(judge(frames, list(range(1, TOKENS))), judge(frames), rtol=0, atol=1e-5)


def test_thresholds_of_zero_are_no_thresholds() -> None:
    frames = noise(3)
    zero = dict.fromkeys(GATED, 0.0)
    torch.testing.assert_close(judge(frames, [], zero), judge(frames), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", gate_names(CONFIG))
def test_every_gate_holds_something_back(name: str) -> None:
    thresholds = {**dict.fromkeys(GATED, 0.0), name: 10.0}
    assert (judge(noise(1), [], thresholds) - judge(noise(1))).abs().max() > 1e-3


def test_streams_of_a_batch_are_strangers() -> None:
    frames = noise(4)
    together = judge(frames)
    for alone, part in zip(frames, together, strict=True):
        torch.testing.assert_close(judge(alone[None])[0], part, rtol=0, atol=1e-5)


def test_future_changes_nothing() -> None:
    frames = noise(1)
    other = frames.clone()
    other[:, 20 * CONFIG.stride :] += 1.0
    changed = (judge(other) - judge(frames)).abs().amax(dim=(0, 2))
    assert changed[:20].max() == 0
    assert changed[20] > 1e-3


def test_past_counts_as_far_as_the_configuration_says() -> None:
    tokens = CONFIG.receptive_tokens + 8
    frames = noise(1, tokens)
    last = (CONFIG.kernel - 1) // CONFIG.stride  # tokens whose stem sees the first frame
    other = frames.clone()
    other[:, : CONFIG.stride] += 5.0
    changed = (judge(other) - judge(frames)).abs().amax(dim=(0, 2))
    reach = CONFIG.receptive_tokens + last
    assert changed[reach - 1] > 0
    assert changed[reach:].max() == 0


@pytest.mark.parametrize("span", [1, 2, 16])
@torch.no_grad()
def test_memory_ends_where_the_configuration_says(span: int) -> None:
    _, past = StreamingKWT(replace(CONFIG, span=span, pool_span=span))(noise(1))
    assert {k.shape[2] for k, _ in past.memory.values()} == {span - 1}


def test_an_empty_past_is_a_new_stream() -> None:
    frames = noise(1)
    with torch.no_grad():
        _, past = MODEL(noise(1, seed=9))
        continued, _ = MODEL(frames, past)
        fresh, _ = MODEL(frames, Past())
    torch.testing.assert_close(fresh, judge(frames), rtol=0, atol=0)
    assert (continued - fresh).abs().max() > 1e-3


def test_every_weight_takes_part_in_training() -> None:
    model = network()
    model(noise(2))[0].square().sum().backward()
    idle = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert not idle


@pytest.mark.parametrize(
    "wrong",
    [
        {"heads": 5}, {"kernel": 2}, {"labels": ("yes", "yes")}, {"filters": (16,) * 4}, {"filters": (16, 0)},
        {"filters": (16, 16, 16), "frontend": FrontEndConfig(bands=12)},
    ],
)  # fmt: skip
def test_shapes_that_cannot_be_built_are_refused(wrong: dict) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ModelConfig(**wrong)


def test_configuration_survives_json() -> None:
    assert ModelConfig.from_dict(json.loads(json.dumps(CONFIG.to_dict()))) == CONFIG
    assert ModelConfig.from_dict({"channels": 48}).filters == (), "older checkpoints say nothing of them"
    with pytest.raises(ConfigError, match="colour"):
        ModelConfig.from_dict({**CONFIG.to_dict(), "colour": 1})
