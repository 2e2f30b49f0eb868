"""`deltaspot evaluate self-check`: what a server's self-check finds on streams that nothing is wrong with."""

from __future__ import annotations

import json
from dataclasses import asdict, fields, replace
from typing import Annotated

import typer
from rich.progress import track
from rich.table import Table

from models.checkpoint import load_checkpoint
from models.data import walk
from models.engines import make_network
from models.evaluate_self_check import Difference, differences
from models.evaluate_sets import MIXED, build_many, gather_material
from models.self_check import BOUND
from service.commands.options import AsJson, Data, Model, Seed
from service.commands.tables import console, show


def self_check(
    data: Data,
    hours: Annotated[float, typer.Option(min=0.01, help="Audio in all, in streams of a minute.")] = 1.0,
    scale: Annotated[float, typer.Option(min=0, help="Factor on the thresholds, as under load.")] = 1.0,
    torch: Annotated[bool, typer.Option("--torch", help="Compare with the torch network, too; takes minutes.")] = False,
    seed: Seed = 0,
    model: Model = None,
    as_json: AsJson = False,
) -> None:
    """Compare the compiled step with the dense network and with torch, on validation speakers in noise."""
    checkpoint = load_checkpoint(model)
    reference = make_network(checkpoint, "torch") if torch else None
    count = max(1, round(hours * 60))
    with console.status("making streams"):
        plan, keywords = replace(MIXED, minutes=1.0), checkpoint.config.keywords
        streams = [one.samples for one in build_many(gather_material(walk(data)), plan, count, seed, keywords)]
    rows = differences(
        make_network(checkpoint), reference, streams, scale, lambda points: track(points, "points", console=console)
    )
    if as_json:
        described = {"model": checkpoint.fingerprint, "bound": BOUND, "streams": count, "seed": seed}
        print(json.dumps({**described, "rows": [asdict(row) for row in rows]}))
    else:
        show(as_table(rows))


def as_table(rows: list[Difference]) -> Table:
    """The rows for reading."""
    table = Table(title=f"differences of posteriors; a mean over a check above {BOUND:g} is a drift")
    for field in fields(Difference):
        table.add_column(field.name.replace("_", " "))
    for row in rows:
        values = asdict(row).values()
        table.add_row(*(value if isinstance(value, str) else f"{value:.2g}" for value in values))
    return table
