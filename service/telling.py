"""What a stream tells of its work: scores and heartbeats, from what the engine knows of it. Knows no audio."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from service.protocol import Checkpoint, Heartbeat, Scores

if TYPE_CHECKING:
    from service.audio import Array
    from service.spec import Vitals


def scores(posteriors: Array, at_s: float, hop_s: float, vitals: Vitals) -> Scores:
    """The newest posteriors (N, K), `hop_s` apart, the last of them at `at_s`."""
    rounded = np.round(posteriors.astype(np.float64), 4).tolist()
    return Scores(at_s=at_s, hop_s=hop_s, posteriors=rounded, work=vitals.work())


def heartbeat(at_s: float, audio_s: float, checkpoint: Checkpoint, vitals: Vitals) -> Heartbeat:
    """The stream at `at_s`, of which this connection had `audio_s` judged."""
    macs = vitals.macs
    return Heartbeat(
        at_s=at_s,
        lag_ms=vitals.lag_ms,
        real_time_factor=vitals.compute_s / audio_s,
        macs_done=macs.total,
        macs_skipped_vs_window=macs.skipped_vs_window,
        macs_skipped_vs_causal=macs.skipped_vs_causal,
        skipped=macs.skipped,
        delta_scale=vitals.scale,
        cache_bytes=vitals.cache_bytes,
        checkpoint=checkpoint,
    )
