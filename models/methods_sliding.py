"""The stock network over a stream, every way it can be had: how much work each way takes, and what it gets wrong.

Judged against recomputing the whole window at every hop, on clips laid end to end. Shares of multiply-accumulates cut
and time are against, and beside, that. `sliding delta` counts what its gates could leave out, and computes it. The time
of `held` is not measured: it is recomputing's, divided by the hops.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from models.kwt_clip import ClipNetwork
from models.kwt_sliding import SlidingKWT, thresholds

if TYPE_CHECKING:
    from models.evaluate import LabelledClips
    from models.features import Array
    from models.kwt_weights import KWTConfig, Weights

HOP_FRAMES: Final = 3
"""Frames between two verdicts; 30 ms is the streaming network's token."""
SECONDS: Final = 30
THETAS: Final = (0.03, 0.05, 0.1, 0.15, 0.2, 0.3)
HELD: Final = (2, 4, 8)
"""Hops for which a verdict is held, in the simplest way of all to save work."""


@dataclass(frozen=True, slots=True)
class SlidingRow:
    """One way to judge a stream.

    agreement: share of hops with the verdict of recomputing, 0..1; posterior_difference: mean over hops of the
    largest difference of a posterior, 0..1.
    """

    network: str
    method: str
    setting: str
    agreement: float
    posterior_difference: float
    macs_cut_model: float
    cpu_ms_per_audio_s: float
    bytes_per_session: int


def end_to_end(clips: LabelledClips, seconds: int = SECONDS) -> Array:
    """Clips spread over the set, one after the other, (S,)."""
    return np.concatenate(clips.samples[:: max(1, len(clips.samples) // seconds)][:seconds]).astype(np.float32)


def sliding_rows(
    config: KWTConfig, weights: Weights, samples: Array, hop_frames: int = HOP_FRAMES
) -> Iterator[SlidingRow]:
    """All ways, the plainest first."""
    hop, audio_s = hop_frames * config.hop, len(samples) / config.clip_samples
    began = time.process_time()
    network = ClipNetwork(config, weights)
    begins = range(0, len(samples) - config.clip_samples + 1, hop)
    exact = np.array([network.judge(samples[at : at + config.clip_samples]) for at in begins])
    plain_ms = 1000 * (time.process_time() - began) / audio_s
    dense, window_bytes = len(exact) * sum(config.macs().values()), 4 * config.clip_samples

    def row(method: str, setting: str, heard: Array, cut: float, cpu_ms: float, size: int) -> SlidingRow:
        agreement = float((heard.argmax(axis=1) == exact.argmax(axis=1)).mean())
        difference = float(np.abs(heard - exact).max(axis=1).mean())
        return SlidingRow("kwt1", method, setting, agreement, difference, cut, cpu_ms, size)

    yield row("recomputed", f"every {10 * hop_frames} ms", exact, 0.0, plain_ms, window_bytes)
    for k in HELD:
        held = exact[np.arange(len(exact)) // k * k]
        yield row("held", f"{k} hops", held, 1 - len(exact[::k]) / len(exact), plain_ms / k, window_bytes)
    for theta in (None, *THETAS):
        sliding = SlidingKWT(config, weights, hop_frames, None if theta is None else thresholds(theta))
        began, state = time.process_time(), sliding.new_state()
        heard = sliding.feed(samples, state)[: len(exact)]
        cpu_ms = 1000 * (time.process_time() - began) / audio_s
        method, setting = ("sliding", "exact") if theta is None else ("sliding delta", f"approximate, theta {theta:g}")
        cut = 1 - sum(state.done.values()) / dense
        yield row(method, setting, heard, cut, cpu_ms, sliding.bytes_per_session())
