"""The comparison of methods as a Markdown table, a CSV file and a picture. Knows rows, and nothing of networks.

The two engines count differently (`COUNTED`), so their rows are never points of one line.
"""

from __future__ import annotations

import csv
from dataclasses import asdict
from itertools import count
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib import colormaps
from matplotlib.figure import Figure

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from numpy.typing import ArrayLike

    from models.methods import Row
    from models.methods_sliding import SlidingRow

SCOPES = ("products", "attention", "model")
COUNTED = (
    "Work is cut against the same network dense. Settings that end in `compiled` are the compiled step's: what they "
    "cut includes ReLU's zeros, which are what `dense, compiled` cuts, and their times include the front end. All "
    "others are the torch reference's, which counts what could be left out but computes it: what they cut is without "
    "ReLU's zeros, and their times are without the front end."
)
STREAM = (
    "A window of one second that slides over clips laid end to end, against recomputing it at every hop, in numpy. The "
    "delta gate from hop to hop is an approximation; what its gates could leave out is counted, but computed. "
    "The times of `held` are not measured: they are recomputing's, divided by the hops for which a verdict is held."
)


def table(rows: Sequence[Row]) -> str:
    """Rows as a Markdown table, shares in per cent."""
    head = ["network", "method", "setting", "accuracy", "products cut", "attention cut", "model cut"]
    head += ["CPU ms / audio s", "parameters", "bytes / session", "bytes read / token"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        read = f"{row.bytes_read_per_token:,}" if row.bytes_read_per_token else "-"
        shares = (row.accuracy, row.macs_cut_products, row.macs_cut_attention, row.macs_cut_model)
        cells: list[Any] = [row.network, row.method, row.setting or "-", *(f"{100 * share:.2f} %" for share in shares)]
        cells += [f"{row.cpu_ms_per_audio_s:.2f}", f"{row.parameters:,}", f"{row.bytes_per_session:,}", read]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def sliding_table(rows: Sequence[SlidingRow]) -> str:
    """The stock network over a stream as a Markdown table, shares in per cent."""
    head = ["network", "over a stream", "setting", "same verdict", "posterior difference", "model cut"]
    head += ["CPU ms / audio s", "bytes / session"]
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    for row in rows:
        cells = [
            row.network,
            row.method,
            row.setting,
            f"{100 * row.agreement:.2f} %",
            f"{row.posterior_difference:.4f}",
        ]
        cells += [f"{100 * row.macs_cut_model:.2f} %", f"{row.cpu_ms_per_audio_s:.1f}", f"{row.bytes_per_session:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def write_report(rows: Sequence[Row], sliding: Sequence[SlidingRow], path: Path, what: str) -> None:
    """Markdown at `path`; the clips' rows as CSV, and accuracy against operations cut as PNG, beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_suffix(".csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(asdict(rows[0])))
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)
    draw_curves(rows, path.with_suffix(".png"))
    path.write_text(
        f"# Published methods, measured\n\n{what}. {COUNTED}\n\n"
        f"{table(rows)}\n\n![accuracy against operations cut]({path.with_suffix('.png').name})\n"
        + (f"\n## kwt1 over a stream\n\n{STREAM}\n\n{sliding_table(sliding)}\n" if sliding else "")
    )


def compiled(row: Row) -> bool:
    """Whether a row is the compiled step's; all others are the torch reference's."""
    return row.setting.endswith("compiled")


def curves(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The lines of the picture, by their names: rows of one network, method, form and engine."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        form = f" {row.setting.split(',')[0]}" if row.method == "hybrid" else ""
        found.setdefault(f"{row.network} {row.method}{form}{', compiled' * compiled(row)}", []).append(row)
    return found


def styles(lines: Mapping[str, Sequence[Row]]) -> dict[str, dict[str, str]]:
    """How each line looks: colours begin anew with each engine, which has a stroke and a marker of its own."""
    engines = {False: {"marker": "o", "linestyle": "-"}, True: {"marker": "s", "linestyle": "--"}}
    colours = {engine: count() for engine in engines}
    of = {name: compiled(rows[0]) for name, rows in lines.items()}
    return {name: {"color": f"C{next(colours[engine])}", **engines[engine]} for name, engine in of.items()}


def draw_curves(rows: Sequence[Row], path: Path) -> None:
    """Accuracy against multiply-accumulates cut, one panel per scope, one line for each of `curves`."""
    lines = curves(rows)
    looks = styles(lines)
    figure = Figure(figsize=(17, 4.8), layout="constrained")
    panels = figure.subplots(1, len(SCOPES), sharey=True)
    for scope, axes in zip(SCOPES, panels, strict=True):
        for name, found in lines.items():
            points = sorted((100 * getattr(row, f"macs_cut_{scope}"), 100 * row.accuracy) for row in found)
            axes.plot(*zip(*points, strict=True), markersize=4, label=name, **looks[name])
        axes.set(xlabel=f"multiply-accumulates cut, {scope}, %", xlim=(None, 100))
        axes.grid(visible=True, alpha=0.3)
    panels[0].set(ylabel="accuracy, %", ylim=(max(0, 100 * min(row.accuracy for row in rows) - 1), 100))
    figure.legend(handles=panels[0].get_lines(), loc="outside right center", fontsize="small")
    figure.savefig(path, dpi=120)


def draw_trajectories(trajectory: ArrayLike, every: int, path: Path) -> None:
    """Learned thresholds (n, layers, heads), looked at after `every` steps, against the step."""
    points = np.asarray(trajectory)
    steps = every * np.arange(1, len(points) + 1)
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    for layer, head in np.ndindex(points.shape[1:]):
        colour = colormaps["viridis"](layer / max(1, points.shape[1] - 1))
        label = f"layer {layer + 1}" if head == 0 else None
        axes.plot(steps, points[:, layer, head], color=colour, label=label)
    axes.set(xlabel="step", ylabel="threshold of scaled scores")
    axes.grid(visible=True, alpha=0.3)
    axes.legend(fontsize="small", ncols=2)
    figure.savefig(path, dpi=100)
