"""The self-check finds what gates held back, and what went wrong, and costs the share it was given."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest

from models.checkpoint import Checkpoint
from models.config import gate_names
from models.features import Array
from models.network import Network
from models.offline import softmax
from models.self_check import COMPARED_TOKENS, MOST_FOLLOWED, SelfCheck
from tests.conftest import SMALL

torch = pytest.importorskip("torch", reason="random weights are made by the reference network")

CONFIG = SMALL
WARM_UP = CONFIG.receptive_tokens - 1 + (CONFIG.kernel - 1) // CONFIG.stride
LENGTH = WARM_UP + COMPARED_TOKENS
STREAMS = 4


@pytest.fixture(scope="module")
def network() -> Network:
    from models.transformer import StreamingKWT

    torch.manual_seed(1)
    model = StreamingKWT(CONFIG)
    weights = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    thresholds = {name: 0.01 if name.endswith("weights") else 0.2 for name in gate_names(CONFIG)}
    return Network(Checkpoint(CONFIG, weights, {"shipped": thresholds}))


def noise(tokens: int, seed: int = 0) -> Array:
    """(tokens, stride, bands)."""
    shape = (tokens, CONFIG.stride, CONFIG.frontend.bands)
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


class Live:
    """Streams of one cache, each step watched."""

    def __init__(self, network: Network, check: SelfCheck, point: str = "dense") -> None:
        self.network, self.check = network, check
        self.cache = network.new_cache(STREAMS, point)
        self.steps = 0

    def hear(self, tokens: int, rows: list[int] | None = None) -> Array:
        """Every row hears the same next `tokens` tokens: posteriors of the last row."""
        chosen = np.array(rows or range(STREAMS))
        frames = np.tile(noise(tokens, self.steps), (len(chosen), 1, 1))
        self.steps += 1
        counts = np.full(len(chosen), tokens)
        posteriors = softmax(self.network.step(self.cache, chosen, frames, counts))
        self.check.watch(self.cache, chosen, counts, frames, posteriors)
        return posteriors[-tokens:]


def test_recomputes_the_share_it_was_given(network: Network) -> None:
    check = SelfCheck(network, share=0.1, seed=0)
    live = Live(network, check)
    for _ in range(1500):
        live.hear(3)
    compared = sum(len(difference) for difference in check.recompute())
    heard = 1500 * 3 * STREAMS
    # Recordings overlap at the end of the run, and one that reaches back to the start compares more.
    assert 0.05 * heard < compared / COMPARED_TOKENS * LENGTH <= 0.11 * heard
    assert check.recompute() == []


@pytest.mark.parametrize("before", [0, 500])
def test_dense_stream_has_no_difference_whenever_the_check_begins(network: Network, before: int) -> None:
    live = Live(network, SelfCheck(network, share=0.0, seed=0))
    for _ in range(before // 5):
        live.hear(5)
    live.check.share = 1.0
    for _ in range(LENGTH // 5 + 60):
        live.hear(5)
    checks = live.check.recompute()
    assert checks
    assert max(difference.max() for difference in checks) < 1e-4
    assert {len(difference) for difference in checks} <= {
        LENGTH // 5 * 5 + 5,
        LENGTH // 5 * 5 + 5 - WARM_UP,
    }


@pytest.mark.parametrize("kernel", [2, 3, 5])
def test_what_a_recording_does_not_hold_reaches_no_further(kernel: int) -> None:
    """In double precision, and to the token: the stem of the first token has frames of those before it."""
    from models.transformer import StreamingKWT

    torch.manual_seed(2)
    model = StreamingKWT(replace(CONFIG, kernel=kernel))
    network = Network(Checkpoint(model.config, {name: each.numpy() for name, each in model.state_dict().items()}, {}))
    model.double()
    frames = torch.randn(1, 400 * CONFIG.stride, CONFIG.frontend.bands, dtype=torch.float64)
    with torch.no_grad():
        whole, recorded = (model(part)[0][0] for part in (frames, frames[:, 200 * CONFIG.stride :]))
    off = (whole[200:] - recorded).abs().amax(dim=-1)
    unknown = SelfCheck(network, share=0.0)._warm_up
    assert off[unknown - 1] > 1e-9
    assert off[unknown:].max() < 1e-14


def test_gated_stream_differs_by_what_its_gates_hold_back(network: Network) -> None:
    live = Live(network, SelfCheck(network, share=1.0, seed=0), "shipped")
    exact = Live(network, SelfCheck(network, share=0.0))
    expected = []
    while not (checks := live.check.recompute()):
        expected.append(np.abs(live.hear(8) - exact.hear(8)).max(axis=1))
    difference = checks[0]
    whole = np.concatenate(expected)
    np.testing.assert_allclose(difference, whole[len(whole) - len(difference) :], atol=1e-4)
    assert difference.mean() > 1e-3


def test_damage_is_found_and_told(network: Network, caplog: pytest.LogCaptureFixture) -> None:
    check = SelfCheck(network, share=1.0, bound=0.01, seed=0)
    live = Live(network, check)
    for _ in range(20):
        live.hear(8)
    live.cache.state += 0.5
    while not (checks := check.recompute()):
        live.hear(8)
    assert checks[0].mean() > 0.01
    assert any("adrift" in record.message and record.levelno == logging.WARNING for record in caplog.records)


def test_a_stream_that_begins_anew_is_no_drift(network: Network) -> None:
    check = SelfCheck(network, share=1.0, seed=0)
    live = Live(network, check)
    for _ in range(60):
        live.hear(5)
        for row in range(STREAMS):
            live.cache.reset(row)
    for _ in range(LENGTH // 5 + 1):
        live.hear(5)
    checks = check.recompute()
    assert checks
    assert max(difference.max() for difference in checks) < 1e-4


def test_what_closed_streams_leave_behind_is_bounded(network: Network) -> None:
    check = SelfCheck(network, share=1.0, seed=0)
    cache = network.new_cache(100)
    for row in range(100):
        rows, counts, frames = np.array([row]), np.array([LENGTH // 2]), noise(LENGTH // 2)
        check.watch(cache, rows, counts, frames, softmax(network.step(cache, rows, frames, counts)))
    assert len(check._following) <= MOST_FOLLOWED
