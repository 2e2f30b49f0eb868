"""Pictures of an evaluation, as PNG: confusion matrix and detection error trade-off."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

COLUMNS = (
    "offset",
    "hours",
    "exposed_hours",
    "keywords",
    "missed",
    "miss_rate",
    "false_alarms",
    "false_alarms_per_hour",
    "unprovoked",
    "unprovoked_per_hour",
    "latency_ms_p50",
)


def draw_confusion(confusion: Sequence[Sequence[int]], labels: Sequence[str], path: Path) -> None:
    """Counts (K, K), row = truth, column = verdict; shaded by the row's share."""
    counts = np.asarray(confusion)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.add_subplot()
    axes.imshow(np.sqrt(shares), cmap="Blues", vmin=0, vmax=1)
    names = [label.strip("_") for label in labels]
    axes.set(xlabel="judged", ylabel="said", xticks=range(len(names)), yticks=range(len(names)))
    axes.set_xticklabels(names, rotation=45, ha="right")
    axes.set_yticklabels(names)
    for (row, column), count in np.ndenumerate(counts):
        if count:
            axes.text(
                column, row, str(count), ha="center", va="center", color="w" if shares[row, column] > 0.5 else "k"
            )
    figure.savefig(path, dpi=120)


def draw_trade_off(curves: Mapping[str, Sequence[Mapping[str, Any]]], marked: Mapping[str, Any], path: Path) -> None:
    """Miss rate over unprovoked false alarms per hour, one line for each curve; the calibrated point is marked.

    No false alarm at all is drawn at half an event in the hours in which no keyword was said.
    """
    figure = Figure(figsize=(7, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, curve in curves.items():
        axes.plot([_rate(r) for r in curve], [100 * r["miss_rate"] for r in curve], label=name)
    axes.plot(_rate(marked), 100 * marked["miss_rate"], "ko", label="as calibrated")
    axes.axvline(0.5, color="grey", linestyle=":", label="0.5 per hour")
    axes.set(
        xscale="log",
        xlabel="false alarms per hour while no keyword is said",
        ylabel="keywords missed, %",
        ylim=(0, None),
    )
    axes.grid(visible=True, which="both", alpha=0.2)
    axes.legend()
    figure.savefig(path, dpi=120)


def _rate(report: Mapping[str, Any]) -> float:
    return float(max(report["unprovoked"], 0.5) / report["exposed_hours"])


def write_trade_off(curve: Sequence[Mapping[str, Any]], path: Path) -> None:
    """The same curve as comma-separated values."""
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(curve)
