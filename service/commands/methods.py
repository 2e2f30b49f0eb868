"""`deltaspot evaluate methods`: the published methods side by side, on the same clips."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from models.kwt import KWT

PUBLISHED = "kwt1_v2_12.tflite"


def methods(
    data: Annotated[Path, typer.Option(help="Directory with Speech Commands clips, loose or in archives.")],
    split: Annotated[str, typer.Option(help="training, validation, testing or all.")] = "validation",
    stock: Annotated[
        Path | None,
        typer.Option(help=f"Stock Keyword Transformer, tflite or imported; {PUBLISHED} near the data if left out."),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Streaming checkpoint; the shipped one if left out.")] = None,
    learn: Annotated[
        list[str] | None, typer.Option(metavar="NETWORK", help="Learn thresholds for kwt1 or skwt first; repeatable.")
    ] = None,
    found: Annotated[
        Path | None, typer.Option(help="JSON file of what was learned; the shipped one if left out.")
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Write a Markdown report, with plot and CSV beside it.")] = None,
    *,
    as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False,
) -> None:
    """Compare the published methods: accuracy, multiply-accumulates cut, time and size.

    Rows of the stock network are left out where no file of it is found; score pruning of the streaming network, where
    its thresholds were learned for other weights (`--learn` learns them).
    """
    from models.checkpoint import load_checkpoint, shipped_path
    from models.data import walk
    from models.evaluate import read_clips
    from models.methods import FOUND, learn_stock, learn_streaming, stock_rows, streaming_rows, training_clips
    from models.methods_report import table, write_report
    from models.network import Network

    kwt, checkpoint = load_stock(stock or find_stock(data)), load_checkpoint(model or shipped_path())
    found = found or FOUND
    learned = json.loads(found.read_text(encoding="utf-8")) if found.exists() else {}
    if learn:
        drawn = training_clips(walk(data), checkpoint.config.labels)
        if "skwt" in learn:
            learned["skwt"] = learn_streaming(checkpoint, drawn)
        if "kwt1" in learn and kwt:
            learned["kwt1"] = learn_stock(kwt, drawn)
        found.write_text(json.dumps(learned) + "\n", encoding="utf-8")
    clips = read_clips(walk(data), checkpoint.config, split)
    rows = [*(stock_rows(kwt, clips, learned) if kwt else ()), *streaming_rows(Network(checkpoint), clips, learned)]
    if report:
        write_report(rows, report, f"{len(clips.samples)} clips, split: {split}")
    if as_json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))
    else:
        print(table(rows))


def find_stock(data: Path) -> Path | None:
    """The published network in the data directory, or in a `models` directory beside it."""
    for path in (data / PUBLISHED, data.resolve().parent / "models" / PUBLISHED):
        if path.is_file():
            return path
    return None


def load_stock(path: Path | None) -> KWT | None:
    """A stock network from tflite or from our own format, ready to judge."""
    if path is None:
        return None
    from models import kwt_weights
    from models.kwt import KWT
    from models.kwt_import import import_tflite

    config, weights = import_tflite(path) if path.suffix == ".tflite" else kwt_weights.load(path)
    return KWT(config, weights).eval().requires_grad_(requires_grad=False)
