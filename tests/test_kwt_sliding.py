"""The stock network over a stream: what it keeps from hop to hop is exact, what it gates is within its threshold."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from models.data import LAST_SAMPLES
from models.evaluate import LabelledClips
from models.evaluate_streams import decided_at
from models.features import Array
from models.kwt_clip import ClipNetwork
from models.kwt_sliding import GATES, SlidingKWT, thresholds
from models.kwt_streams import hear_stock
from models.kwt_weights import KWTConfig, save
from models.methods_sliding import SlidingRow, end_to_end, sliding_rows
from models.streams import Stream

SMALL = KWTConfig(channels=8, heads=2, layers=3, hidden=16, clip_samples=4_000)
HOP = 2


def random_weights() -> dict[str, Array]:
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(0, 0.4, shape).astype(np.float32) for name, shape in SMALL.shapes().items()}
    return weights | {"frontend.mel": np.abs(weights["frontend.mel"])}


WEIGHTS = random_weights()
STREAM = np.random.default_rng(1).normal(0, 3_000, 9_000).astype(np.float32)


def recomputed(samples: Array) -> Array:
    network = ClipNetwork(SMALL, WEIGHTS)
    return np.array([network.judge(samples[at:][:4_000]) for at in range(0, len(samples) - 3_999, HOP * SMALL.hop)])


@settings(max_examples=20)
@given(st.lists(st.integers(0, len(STREAM)), max_size=5))
def test_streaming_equals_recomputing_under_any_split(cuts: list[int]) -> None:
    sliding = SlidingKWT(SMALL, WEIGHTS, HOP)
    state = sliding.new_state()
    rows = np.concatenate([sliding.feed(part, state) for part in np.split(STREAM, sorted(cuts))])
    np.testing.assert_allclose(rows, recomputed(STREAM), atol=2e-5)


def test_streams_are_heard_on_the_clock_of_our_tokens(tmp_path: Path) -> None:
    """A token's posteriors are of the window that ends where the token is decided, in silence before and behind."""
    save(tmp_path / "stock.safetensors", SMALL, WEIGHTS)
    config, heard = hear_stock(tmp_path / "stock.safetensors", [Stream("noise", STREAM)])
    assert config.labels == SMALL.labels
    posteriors, network = heard[0].posteriors, ClipNetwork(SMALL, WEIGHTS)
    sound = np.concatenate((STREAM, np.zeros(LAST_SAMPLES, STREAM.dtype)))
    assert decided_at(len(posteriors), config) > len(sound) >= decided_at(len(posteriors) - 1, config)
    for token in (0, 4, len(posteriors) - 1):
        end = int(decided_at(token, config))
        window = np.pad(sound[max(0, end - SMALL.clip_samples) : end], (max(0, SMALL.clip_samples - end), 0))
        np.testing.assert_allclose(posteriors[token], network.judge(window), atol=2e-5)


def test_a_gate_at_zero_changes_nothing() -> None:
    sliding = SlidingKWT(SMALL, WEIGHTS, HOP, thresholds(0.0))
    np.testing.assert_allclose(sliding.feed(STREAM, sliding.new_state()), recomputed(STREAM), atol=2e-5)


def test_work_of_the_exact_form_is_counted_by_hand() -> None:
    sliding = SlidingKWT(SMALL, WEIGHTS, HOP)
    state = sliding.new_state()
    hops, n, c = len(sliding.feed(STREAM, state)), SMALL.tokens, SMALL.channels
    frames = SMALL.frames + HOP * (hops - 1)
    assert state.frames == frames
    assert state.done == {
        "stem": frames * SMALL.coefficients * c,
        "qkv": frames * 3 * c * c + hops * (n * 3 * c * c + (2 * n + 1) * c * c),
        "scores": hops * (2 * n * n + n) * c,
        "values": hops * (2 * n * n + n) * c,
        "out": hops * (2 * n + 1) * c * c,
        "up": hops * (2 * n + 1) * c * SMALL.hidden,
        "down": hops * (2 * n + 1) * c * SMALL.hidden,
        "readout": hops * c * len(SMALL.labels),
    }


def test_the_gate_holds_a_slot_until_it_moves() -> None:
    sliding = SlidingKWT(SMALL, WEIGHTS, HOP, {"x": 0.5})
    state = sliding.new_state()
    reference = [0.0, 0.0]
    for hop, values in enumerate(([1.0, -1.0], [1.4, -1.6], [1.6, -1.2], [1.0, -1.0])):
        held, moved = sliding._gate(1, "x", np.array(values), state)
        expected = [hop == 0 or abs(x - r) > 0.5 for x, r in zip(values, reference, strict=True)]
        reference = [x if m else r for x, r, m in zip(values, reference, expected, strict=True)]
        assert (held.tolist(), moved.tolist()) == (reference, expected)
    assert sliding._gate(1, "q", np.ones(2), state)[1].all()
    assert set(state.held) == {(1, "x")}


def test_larger_thresholds_do_less() -> None:
    def work(theta: float) -> int:
        sliding = SlidingKWT(SMALL, WEIGHTS, HOP, thresholds(theta))
        state = sliding.new_state()
        sliding.feed(STREAM, state)
        return sum(state.done.values())

    assert work(1.0) < work(0.1) < work(0.0)


@pytest.mark.parametrize("gate", GATES)
def test_every_gate_saves_work_of_its_own(gate: str) -> None:
    def work(gates: dict[str, float]) -> int:
        sliding = SlidingKWT(SMALL, WEIGHTS, HOP, gates)
        state = sliding.new_state()
        sliding.feed(STREAM, state)
        return sum(state.done.values())

    partner = {"q": {"k": 1e9}, "k": {"q": 1e9}, "v": {"a": 1e9}, "a": {"v": 1e9}}.get(gate, {})
    assert work(partner | {gate: 1e9}) < work(partner)


def test_rows_compare_with_recomputing() -> None:
    clips = LabelledClips([STREAM[:4_000], STREAM[4_000:8_000], STREAM[2_000:6_000]], np.arange(3))
    samples = end_to_end(clips, seconds=3)
    assert len(samples) == 12_000
    rows = list(sliding_rows(SMALL, WEIGHTS, samples, HOP))
    by_method = {row.method: row for row in reversed(rows)}
    assert list(reversed(by_method)) == ["recomputed", "held", "sliding", "sliding delta"]
    for method in ("recomputed", "sliding"):
        assert by_method[method].agreement == 1
        assert by_method[method].posterior_difference < 1e-4
    assert by_method["held"].macs_cut_model == pytest.approx(0.5, abs=0.02)
    assert by_method["held"].posterior_difference > 0
    assert by_method["sliding"].macs_cut_model > 0
    assert len(fields(SlidingRow)) == 8
