"""Draw the panels of the dashboards from a live Prometheus, for places where no Grafana runs.

    python deploy/grafana/render.py http://localhost:9090 overview panels.png --minutes 15

The pictures show the dashboards' own queries and units, drawn by matplotlib; Grafana's own look differs.
"""

from __future__ import annotations

import argparse
import json
import re
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

import matplotlib as mpl

mpl.use("Agg")

from matplotlib import pyplot as plt
from matplotlib.ticker import EngFormatter, PercentFormatter

FOLDER = Path(__file__).parent / "dashboards"
POINTS = 240
FORMATS = {
    "percentunit": PercentFormatter(1.0),
    "s": EngFormatter("s"),
    "bytes": EngFormatter("B"),
    "cps": EngFormatter("/s"),
    "short": EngFormatter(),
}


def query_range(prometheus: str, query: str, seconds: float, end: float) -> list[dict[str, Any]]:
    """Ask Prometheus for a query's series over the last `seconds` before `end` (unix time)."""
    step = max(1.0, seconds / POINTS)
    arguments = urllib.parse.urlencode({"query": query, "start": end - seconds, "end": end, "step": step})
    with urllib.request.urlopen(f"{prometheus}/api/v1/query_range?{arguments}", timeout=30) as answer:  # noqa: S310
        return list(json.load(answer)["data"]["result"])


def legend(template: str, labels: dict[str, str]) -> str:
    """Fill `{{label}}` in, as Grafana does."""
    return re.sub(r"\{\{\s*(\w+)\s*\}\}", lambda match: labels.get(match[1], ""), template)


def draw(axes: Any, panel: dict[str, Any], prometheus: str, seconds: float, end: float) -> None:  # noqa: ANN401
    """Draw one panel; a panel without series says so."""
    axes.set_title(panel["title"], loc="left", fontsize=9)
    axes.yaxis.set_major_formatter(FORMATS[panel["fieldConfig"]["defaults"]["unit"]])
    axes.grid(alpha=0.25)
    lines = 0
    for target in panel["targets"]:
        for series in query_range(prometheus, target["expr"], seconds, end):
            times, values = zip(*series["values"], strict=True)
            name = legend(target["legendFormat"], series["metric"])
            axes.plot([t - end for t in times], [float(v) for v in values], label=name or None, linewidth=1.2)
            lines += 1
    axes.set_xlim(-seconds, 0)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    axes.tick_params(labelsize=7)
    axes.xaxis.set_major_formatter(EngFormatter("s"))
    if not lines:
        axes.text(0.5, 0.5, "no series", transform=axes.transAxes, ha="center")
    elif axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=6, loc="upper left", ncols=2, framealpha=0.6)


def render(prometheus: str, name: str, out: Path, seconds: float) -> None:
    """Draw a whole dashboard into a PNG."""
    panels = json.loads((FOLDER / f"{name}.json").read_text())["panels"]
    across = 2
    down = -(-len(panels) // across)
    figure, grid = plt.subplots(down, across, figsize=(12, 2.4 * down), layout="constrained", squeeze=False)
    end = time.time()
    for axes, panel in zip(grid.flat, panels, strict=False):
        draw(axes, panel, prometheus, seconds, end)
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    figure.suptitle(f"deltaspot: {name} (queries of the Grafana dashboard, drawn from Prometheus)", fontsize=10)
    figure.savefig(out, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("prometheus")
    parser.add_argument("dashboard", choices=sorted(path.stem for path in FOLDER.glob("*.json")))
    parser.add_argument("out", type=Path)
    parser.add_argument("--minutes", type=float, default=15.0)
    given = parser.parse_args()
    render(given.prometheus, given.dashboard, given.out, 60 * given.minutes)
