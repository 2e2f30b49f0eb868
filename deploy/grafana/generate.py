"""Write the Grafana dashboards: `python deploy/grafana/generate.py`. The files it writes are committed.

A dashboard is a list of rows, a row is a list of panels of equal width, a panel is a title, a unit and its queries.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "dashboards"
DATASOURCE = {"type": "prometheus", "uid": "prometheus"}
WIDTH, HEIGHT = 24, 8
SHARE, SECONDS, BYTES, COUNT, RATE = "percentunit", "s", "bytes", "short", "cps"


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture: queries by legend, in one unit."""

    title: str
    unit: str
    queries: dict[str, str]
    kind: str = "timeseries"
    note: str = ""
    options: dict[str, Any] = field(default_factory=dict)

    def render(self, number: int, x: int, y: int, width: int) -> dict[str, Any]:
        """Return the panel as Grafana's JSON, at this place of the grid."""
        return {
            "id": number,
            "type": self.kind,
            "title": self.title,
            "description": self.note,
            "datasource": DATASOURCE,
            "gridPos": {"x": x, "y": y, "w": width, "h": HEIGHT},
            "fieldConfig": {"defaults": {"unit": self.unit}, "overrides": []},
            "options": self.options,
            "targets": [
                {
                    "refId": chr(ord("A") + place),
                    "expr": query,
                    "legendFormat": legend,
                    "datasource": DATASOURCE,
                    "exemplar": "_bucket" in query,
                }
                for place, (legend, query) in enumerate(self.queries.items())
            ],
        }


def quantiles(metric: str, by: str = "job") -> dict[str, str]:
    """Median and 99th percentile of a histogram over five minutes."""
    buckets = f"sum by ({by}, le) (rate({metric}_bucket[5m]))"
    return {f"p{round(q * 100)}": f"histogram_quantile({q}, {buckets})" for q in (0.5, 0.99)}


def per_second(metric: str, by: str) -> str:
    """Increase per second over five minutes, by one label."""
    return f"sum by ({by}) (rate({metric}[5m]))"


SKIPPED = Panel(
    "Multiply-accumulates skipped",
    SHARE,
    {
        "against recomputing the window": "job:deltaspot_macs_skipped_vs_window:ratio_rate5m",
        "against dense causal arithmetic": "job:deltaspot_macs_skipped_vs_causal:ratio_rate5m",
    },
    note="Two baselines over the same audio. The second counts units that stay zero, too, which are skipped at every "
    "operating point: what thresholds save is the difference from `dense`.",
)
VERDICT = Panel(
    "Chunk to verdict",
    SECONDS,
    {"p50": "job:deltaspot_verdict_seconds:p50_rate5m", "p99": "job:deltaspot_verdict_seconds:p99_rate5m"},
)
LAG = Panel("Lag of the worst stream", SECONDS, {"{{instance}}": "deltaspot_lag_seconds"})
OPEN = Panel("Streams", COUNT, {"open": "sum(deltaspot_sessions_open)", "limit": "sum(deltaspot_sessions_limit)"})
REFUSALS = Panel("Refusals", RATE, {"{{reason}}": "job_reason:deltaspot_refusals:rate5m"})
DETECTIONS = Panel("Detections", RATE, {"{{keyword}}": per_second("deltaspot_detections_total", "keyword")})
UTILISATION = Panel(
    "Share of one core spent in steps", SHARE, {"{{instance}}": "instance:deltaspot_utilisation:ratio_rate5m"}
)
MODEL = Panel(
    "Model",
    COUNT,
    {"{{model}} {{point}} {{fingerprint}}": "max by (model, point, fingerprint) (deltaspot_model_info)"},
    kind="stat",
    options={"textMode": "name"},  # one process alone would be shown as its value, which is always 1
)
SCALE = Panel("Factor on delta thresholds", COUNT, {"{{instance}}": "deltaspot_delta_scale"})
TOLD = 'deltaspot_sessions_total{outcome!~"normal|vanished"}'

DASHBOARDS: dict[str, list[list[Panel]]] = {
    "overview": [
        [
            Panel("Processes that take streams", COUNT, {"ready": "sum(deltaspot_ready)"}, kind="stat"),
            Panel(
                "Real-time streams heard", COUNT, {"": per_second("deltaspot_audio_seconds_total", "job")}, kind="stat"
            ),
            Panel("Lag", SECONDS, {"": "max(deltaspot_lag_seconds)"}, kind="stat"),
            MODEL,
        ],
        [OPEN, VERDICT],
        [SKIPPED, UTILISATION],
        [DETECTIONS, REFUSALS],
    ],
    "sessions": [
        [OPEN, Panel("Streams ended", RATE, {"{{outcome}}": per_second("deltaspot_sessions_total", "outcome")})],
        [
            Panel("Streams the server ended", RATE, {"{{outcome}}": f"sum by (outcome) (rate({TOLD}[5m]))"}),
            REFUSALS,
        ],
        [
            Panel("Audio in a stream", SECONDS, quantiles("deltaspot_session_audio_seconds")),
            Panel("Chunks", RATE, {"chunks": per_second("deltaspot_chunks_total", "job")}),
        ],
        [
            Panel("Recordings over REST", RATE, {"{{outcome}}": per_second("deltaspot_clips_total", "outcome")}),
            Panel("Time for a recording", SECONDS, quantiles("deltaspot_clip_seconds")),
        ],
    ],
    "work": [
        [
            SKIPPED,
            Panel(
                "Why work was skipped",
                SHARE,
                {"{{reason}}": "job_reason:deltaspot_macs_skipped:ratio_rate5m"},
                note="Of the window baseline. Window: past tokens cost nothing again; delta: inputs that did not move, "
                "held by gates or zero as before; score, head: value rows of dropped scores and silent heads.",
            ),
        ],
        [
            Panel(
                "Skipped by group of products",
                SHARE,
                {"{{group}}": "job_group:deltaspot_macs_skipped_vs_causal:ratio_rate5m"},
            ),
            Panel(
                "Multiply-accumulates a second",
                COUNT,
                {
                    "done": per_second("deltaspot_macs_done_total", "job"),
                    "dense causal": per_second("deltaspot_macs_causal_total", "job"),
                    "window": per_second("deltaspot_macs_window_total", "job"),
                },
            ),
        ],
        [
            Panel(
                "Skipped by group and reason",
                SHARE,
                {"{{group}}, {{reason}}": "job_group_reason:deltaspot_macs_skipped:ratio_rate5m"},
                note="Shares of the group's own window baseline.",
            ),
        ],
        [
            Panel(
                "Time for a second of audio",
                SECONDS,
                {"{{instance}}": "instance:deltaspot_real_time_factor:ratio_rate5m"},
                note="The other side of skipped work: what it saves on the clock.",
            ),
            Panel(
                "Time for a token",
                SECONDS,
                {"": "sum(rate(deltaspot_step_seconds_sum[5m])) / (sum(rate(deltaspot_tokens_total[5m])) > 0)"},
            ),
        ],
        [
            Panel("Step", SECONDS, quantiles("deltaspot_step_seconds")),
            Panel("Streams in a step", COUNT, quantiles("deltaspot_batch_rows")),
        ],
    ],
    "detections": [
        [
            DETECTIONS,
            Panel("Near misses", RATE, {"{{keyword}}": per_second("deltaspot_near_misses_total", "keyword")}),
        ],
        [
            Panel(
                "Detections in a second of audio",
                RATE,
                {"{{keyword}}": "job_keyword:deltaspot_detections:ratio_rate5m"},
            ),
            Panel("Hits held back", RATE, {"{{reason}}": per_second("deltaspot_suppressions_total", "reason")}),
        ],
        [
            Panel(
                "Detections that clients call wrong",
                RATE,
                {"{{keyword}}": 'sum by (keyword) (rate(deltaspot_feedback_total{correct="false"}[5m]))'},
            ),
        ],
        [Panel("Error of checked steps", COUNT, quantiles("deltaspot_self_check_error")), SCALE],
    ],
    "fleet": [
        [
            Panel("Takes streams", COUNT, {"{{instance}}": "deltaspot_ready"}),
            Panel("Slots in use", SHARE, {"{{instance}}": "instance:deltaspot_sessions:ratio"}),
            Panel("Reloads", COUNT, {"{{outcome}}": "sum by (outcome) (increase(deltaspot_reloads_total[1h]))"}),
        ],
        [UTILISATION, LAG],
        [
            Panel("Wait for a step", SECONDS, quantiles("deltaspot_queue_wait_seconds", "instance")),
            Panel("Processor", SHARE, {"{{instance}}": 'rate(process_cpu_seconds_total{job="deltaspot"}[5m])'}),
        ],
        [
            Panel(
                "Memory",
                BYTES,
                {
                    "{{instance}} resident": 'process_resident_memory_bytes{job="deltaspot"}',
                    "{{instance}} caches": "deltaspot_cache_bytes",
                },
            ),
            Panel(
                "File descriptors",
                COUNT,
                {
                    "{{instance}} open": 'process_open_fds{job="deltaspot"}',
                    "{{instance}} limit": 'process_max_fds{job="deltaspot"}',
                },
            ),
        ],
        [MODEL],
    ],
}


def render(name: str) -> dict[str, Any]:
    """Return one dashboard as Grafana's JSON."""
    panels = []
    for y, row in enumerate(DASHBOARDS[name]):
        width = WIDTH // len(row)
        panels += [panel.render(len(panels) + x + 1, x * width, y * HEIGHT, width) for x, panel in enumerate(row)]
    return {
        "uid": f"deltaspot-{name}",
        "title": f"deltaspot: {name}",
        "tags": ["deltaspot"],
        "schemaVersion": 39,
        "editable": False,
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {"list": []},
        "annotations": {"list": []},
        "links": [{"type": "dashboards", "title": "deltaspot", "tags": ["deltaspot"], "asDropdown": True}],
        "panels": panels,
    }


def text(name: str) -> str:
    """Return one dashboard as its file holds it."""
    return json.dumps(render(name), indent=2) + "\n"


if __name__ == "__main__":
    for each in DASHBOARDS:
        (FOLDER / f"{each}.json").write_text(text(each))
