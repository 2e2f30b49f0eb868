"""`deltaspot model info`: what a checkpoint is, for people and for programs."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from models.card import KEYWORD_COLUMNS, keyword_rows, made_for
from models.checkpoint import Checkpoint, load_checkpoint, shipped_path
from models.operating import offered
from service.commands.options import AsJson
from service.commands.tables import show


def info(
    path: Annotated[Path | None, typer.Argument(help="Checkpoint; the shipped one if left out.")] = None,
    as_json: AsJson = False,
) -> None:
    """What a checkpoint is: shape, size, fingerprint, labels, operating points, calibration; all of it with --json."""
    path = path or shipped_path()
    facts = describe(load_checkpoint(path), path)
    if as_json:
        print(json.dumps(facts))
    else:
        show(*told(facts))


def describe(checkpoint: Checkpoint, path: Path) -> dict[str, Any]:
    """A checkpoint as plain types."""
    config = checkpoint.config
    return {
        "path": str(path),
        "bytes": path.stat().st_size,
        "fingerprint": checkpoint.fingerprint,
        "parameters": checkpoint.parameters,
        "labels": config.labels,
        "token_ms": 1000 * config.token_samples / config.frontend.sample_rate,
        "receptive_s": config.receptive_samples / config.frontend.sample_rate,
        "config": config.to_dict(),
        "points": {name: dict(point) for name, point in checkpoint.points.items()},
        "methods": offered(checkpoint),
        "calibration": dict(checkpoint.calibration),
        "metadata": dict(checkpoint.metadata),
    }


def told(facts: Mapping[str, Any]) -> Iterator[Table | str]:
    """What `describe` found, as lines and tables."""
    size = "{parameters:,} parameters, {bytes:,} bytes, fingerprint {fingerprint}".format(**facts)
    yield f"{facts['path']}: {size}"
    shape = "{layers} layers of {channels} channels and {heads} heads".format(**facts["config"])
    yield f"{shape}; a token is {facts['token_ms']:g} ms, the past {facts['receptive_s']:.1f} s"
    yield f"labels: {', '.join(facts['labels'])}\n"
    yield _points(facts)
    yield ""
    words = facts["calibration"].get("keywords")
    yield _keywords(words) if words else "not calibrated: `deltaspot model calibrate` chooses thresholds"
    if told := made_for(facts["calibration"]):
        yield f"\n{told.strip()}"


def _points(facts: Mapping[str, Any]) -> Table:
    table = Table("point", "method", "delta gates", "scores dropped below", "heads silent below", box=None)
    for name, point in facts["points"].items():
        parts: dict[str, list[float]] = {"gate": [], "score": [], "head": []}
        for threshold, value in point.items():
            parts[next((kind for kind in ("score", "head") if f".{kind}." in threshold), "gate")].append(value)
        table.add_row(name, facts["methods"][name], *map(_range, parts.values()))
    return table


def _range(values: list[float]) -> str:
    """The least and the greatest of thresholds."""
    return " to ".join(f"{value:.3g}" for value in sorted({min(values), max(values)})) if values else "-"


def _keywords(words: Mapping[str, Any]) -> Table:
    table = Table(*KEYWORD_COLUMNS, box=None)
    for row in keyword_rows(words):
        table.add_row(*row)
    return table
