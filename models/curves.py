"""Learning curves of a run, from its log."""

from __future__ import annotations

import json
from pathlib import Path

from matplotlib.figure import Figure


def draw_learning(log: Path, png: Path) -> None:
    """Losses above, validation accuracy and silence below, over the steps; `log` is as `models.train` writes it."""
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    steps = [line["step"] for line in lines]
    figure = Figure(figsize=(8, 6), layout="constrained")
    above, below = figure.subplots(2, sharex=True)
    for name in (name for name in lines[-1] if name not in {"step", "validation"}):
        above.plot(steps, [line.get(name) for line in lines], label=name)
    for point, figures in lines[-1]["validation"].items():
        for name in (name for name, value in figures.items() if value is not None):
            below.plot(steps, [line["validation"][point][name] for line in lines], label=f"{point} {name}")
    above.set(title="training", yscale="log")
    below.set(title="validation", xlabel="step")
    for axes in (above, below):
        axes.legend(fontsize="small")
        axes.grid(alpha=0.3)
    figure.savefig(png, dpi=120)
