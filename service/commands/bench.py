"""`deltaspot bench`: measure kernels and the service on this machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from service.commands.bench_churn import churn
from service.commands.bench_hostile import hostile
from service.commands.bench_service import service
from service.commands.demo import SAMPLE
from service.commands.options import AsJson, Model, data_option
from service.commands.tables import show

if TYPE_CHECKING:
    from models.bench import Row
    from models.features import Array

STREAMS = 8
"""One-minute streams that sessions are cut from when validation data is there."""

Data = Annotated[Path | None, data_option("Validation clips and noise; the sample recording if left out.")]

app = typer.Typer(add_completion=False, no_args_is_help=True, help="Measure kernels and the service on this machine.")
app.command()(service)
app.command()(churn)
app.command()(hostile)


@app.callback()
def bench() -> None:
    """Measure kernels and the service on this machine."""


@app.command()
def engine(
    against: Annotated[Path | None, typer.Option(help="Stock Keyword Transformer, tflite.")] = None,
    data: Data = None,
    model: Model = None,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions that are batched together.")] = 200,
    repeats: Annotated[int, typer.Option(min=1, help="Turns of one second of audio; medians are over these.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Compare ours with the stock Keyword Transformer, in one process on one core, in turns.

    Work is told against recomputing a second at every token (window), and new tokens only (causal).
    """
    from models.bench import Plan, lines, pinned, run_table
    from models.checkpoint import load_checkpoint
    from models.network import Network

    plan = Plan(sessions=sessions, repeats=repeats)
    with pinned():
        network = Network(load_checkpoint(model))
        network.warm_up()
        table, notes = lines(network, recordings(data, network.config.keywords), against, plan)
        rows = run_table(table, plan)
    if as_json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "notes": notes}))
    else:
        show(as_table(rows), *notes)


@app.command()
def curves(
    output: Annotated[Path, typer.Option(help="Folder for sessions.png, chunks.png and curves.json.")],
    data: Data = None,
    model: Model = None,
    most: Annotated[int, typer.Option(min=1, help="Sessions at most.")] = 2_000,
    sessions: Annotated[int, typer.Option(min=1, help="Sessions while chunks vary.")] = 200,
    repeats: Annotated[
        int, typer.Option(min=1, help="Turns of one second of audio at most; medians are over these.")
    ] = 20,
) -> None:
    """Measure and draw what a stream costs among 1 to 2000 of them, and in chunks of 30 to 1000 ms; a few minutes."""
    from models.bench import Plan, compiled_lines, pinned, run_curves
    from models.bench_plots import draw_curves
    from models.checkpoint import load_checkpoint
    from models.network import Network

    plan = Plan(sessions=sessions, repeats=repeats)
    plan = replace(plan, curve_sessions=tuple(n for n in plan.curve_sessions if n <= most))
    console = Console(stderr=True)
    output.mkdir(parents=True, exist_ok=True)  # what cannot be written shall not be measured first
    with pinned():
        network = Network(load_checkpoint(model))
        network.warm_up()
        table = compiled_lines(network, recordings(data, network.config.keywords), sessions)
        points = run_curves(table, plan, lambda turns: track(turns, "turns", console=console))
    for file in draw_curves(points, plan, output):
        console.print(file)
    described = {"model": network.checkpoint.fingerprint, "curves": [asdict(point) for point in points]}
    (output / "curves.json").write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def recordings(data: Path | None, keywords: Sequence[str]) -> list[Array]:
    """Streams (S,) of keywords and other words in noise, or the sample where there is no data."""
    from models.data import read_audio, walk
    from models.evaluate_sets import gather_material
    from models.streams import Plan, build

    if data is None:
        return [read_audio(SAMPLE / "commands.flac")]
    material = gather_material(walk(data))
    return [build(material.clips, material.noise, Plan(minutes=1.0), keywords, seed).samples for seed in range(STREAMS)]


def as_table(rows: Sequence[Row]) -> Table:
    """The rows for reading."""
    table = Table(box=None, padding=(0, 2))
    table.add_column("", no_wrap=True)
    for heading in ("CPU ms / s", "streams / core", "chunk p50", "p99, ms", "of window", "of causal", "KiB / session"):
        table.add_column(heading, justify="right")
    for row in rows:
        skipped = (row.macs_skipped_vs_window, row.macs_skipped_vs_causal)
        table.add_row(
            row.name,
            f"{row.cpu_ms_per_audio_s:.3f}",
            f"{row.streams_per_core:,.0f}",
            f"{row.chunk_ms_p50:.3f}",
            f"{row.chunk_ms_p99:.3f}",
            *("" if share is None else f"{-share:+.1%}" for share in skipped),
            f"{row.bytes_per_session / 1024:.0f}",
        )
    return table
