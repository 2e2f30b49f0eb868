"""The benchmark's curves as PNG: cost against the number of sessions, and against the length of a chunk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from models.bench import CURVES, CurvePoint, Plan


def draw_curves(points: Sequence[CurvePoint], plan: Plan, directory: Path) -> list[Path]:
    """Write `sessions.png` and `chunks.png` into a directory, which is made if it is missing."""
    directory.mkdir(parents=True, exist_ok=True)
    by_sessions, by_chunk = Figure(figsize=(7, 5), layout="constrained"), Figure(figsize=(7, 5), layout="constrained")
    axes, other = by_sessions.add_subplot(), by_chunk.add_subplot()
    for name in CURVES:
        mine = [p for p in points if p.name == name]
        curve = sorted({p.sessions: p for p in mine if p.chunk_ms == plan.chunk_ms}.values(), key=lambda p: p.sessions)
        axes.plot(
            [p.sessions for p in curve], [p.sessions * p.cpu_ms_per_audio_s / 1000 for p in curve], "o-", label=name
        )
        curve = sorted({p.chunk_ms: p for p in mine if p.sessions == plan.sessions}.values(), key=lambda p: p.chunk_ms)
        other.plot([p.chunk_ms for p in curve], [p.cpu_ms_per_audio_s for p in curve], "o-", label=name)
    axes.axhline(1.0, color="grey", linestyle=":", label="one core")
    axes.set(xscale="log", yscale="log", xlabel=f"sessions, {plan.chunk_ms} ms chunks", ylabel="cores")
    other.set(
        xscale="log", ylim=(0, None), xlabel="chunk, ms", ylabel=f"CPU ms per second of audio, {plan.sessions} sessions"
    )
    files = []
    for figure, panel, name in ((by_sessions, axes, "sessions.png"), (by_chunk, other, "chunks.png")):
        panel.grid(visible=True, which="both", alpha=0.2)
        panel.legend()
        files.append(directory / name)
        figure.savefig(files[-1], dpi=120)
    return files
