"""Write the table of metrics: `python deploy/document.py` (from a checkout, with the extra `server`)."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from prometheus_client import CollectorRegistry

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from service.metrics import Metrics  # noqa: E402  after the checkout is on the path

TABLE = ROOT / "deploy" / "METRICS.md"
HEAD = """\
# Metrics

Written by `python deploy/document.py`. Counters are numerators and denominators; the ratios are
[recording rules](prometheus/recording.yml). Beside these, the process exports Python's usual `process_*` and
`python_*` families. Buckets of `deltaspot_verdict_seconds` and series of `deltaspot_detections_total` carry the
session as an exemplar when the scraper asks for OpenMetrics. No label takes values that grow with users: a value that
was not known when the process started is counted as `other`.

**One process for each container** is how these are meant to be read: every replica is a target of its own, and rules
add them up. The second choice, for several processes that only one of can be scraped: give them all the same empty
folder as `PROMETHEUS_MULTIPROC_DIR`, and each answers for all of them. Counters and histograms are sums, `lag`,
`delta_scale` and `model_info` the largest, `ready` the smallest, other gauges the sum over live processes; exemplars
and `process_*` are then not exported.

| name | kind | labels | what it says | seen in |
| --- | --- | --- | --- | --- |
"""


def places() -> dict[str, str]:
    """Text of every dashboard and rule file by a short name."""
    dashboards = sorted((ROOT / "deploy/grafana/dashboards").glob("*.json"))
    rules = [ROOT / "deploy/prometheus/recording.yml", ROOT / "deploy/prometheus/alerts.yml"]
    return {path.stem: path.read_text() for path in [*dashboards, *rules]}


def seen(name: str, where: dict[str, str]) -> list[str]:
    """Short names of the files that query this family."""
    query = re.compile(rf"(?<![:\w]){name}(_bucket|_sum|_count)?\b(?!:)")
    return [place for place, text in where.items() if query.search(text)]


def table() -> str:
    """Return the page."""
    where = places()
    rows = [
        f"| `{f.name}` | {f.kind} | {', '.join(f.labels)} | {f.help} | {', '.join(seen(f.name, where))} |"
        for f in Metrics(CollectorRegistry(), ["yes"]).families()
    ]
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    TABLE.write_text(table())
