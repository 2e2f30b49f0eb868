"""`deltaspot scan`: thousands of recordings -> one table of detections."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from service.commands.options import Model

app = typer.Typer(add_completion=False)

NAMED: Final = 10
"""Unreadable recordings that are named; all of them are in the table, but those that it cannot name."""


@app.command()
def scan(
    paths: Annotated[list[Path], typer.Argument(help="Recordings, and folders of them.")],
    out: Annotated[Path, typer.Option(help="Parquet file; an earlier one of the same model is added to.")],
    model: Model = None,
    point: Annotated[str, typer.Option(help="Operating point.")] = "shipped",
    ray: Annotated[str, typer.Option(metavar="ADDRESS", help="Scan on this Ray cluster, not in this process.")] = "",
    batch: Annotated[int, typer.Option(min=1, help="Recordings kept at once; what an interruption can cost.")] = 64,
) -> None:
    """Find keywords in thousands of recordings; run it again after an interruption and it goes on.

    Later it judges what is new, and tries what could not be read once more.

    The table has the columns path, audio_s, keyword, score, start_s, end_s and error; a recording in which nothing was
    heard, or that could not be read, has one row without a keyword. The exit status is 1 if none could be read.
    """
    from models.checkpoint import load_checkpoint, shipped_path
    from service.scan import Output, Scanner, batches, find, identity, nameable, on_ray, unreadable

    recordings, strange = nameable(find(paths))
    checkpoint = (model or shipped_path()).absolute()
    output = Output(out, identity(load_checkpoint(checkpoint), point))
    done = output.done()
    todo = [path for path in recordings if path not in done]
    if ray:
        tables = on_ray(ray, todo, str(checkpoint), point, batch) if todo else iter(())
    else:
        tables = map(Scanner(str(checkpoint), point), batches(todo, batch))
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(), transient=True
    ) as progress:
        bar = progress.add_task("recordings", total=len(recordings), completed=len(recordings) - len(todo))
        for table in tables:
            output.add(table)
            progress.advance(bar, len(set(table["path"].to_pylist())))
    table, count = output.finish(), len(recordings) + len(strange)
    heard, unread = table["keyword"], [*unreadable(table, recordings), *strange]
    print(
        f"{count} recordings, {len(todo)} of them new, {len(unread)} unreadable; "
        f"{len(heard) - heard.null_count} detections in {out}"
    )
    for line in [*unread[:NAMED], *([f"... and {len(unread) - NAMED} more"] if len(unread) > NAMED else [])]:
        print(f"deltaspot: {line}", file=sys.stderr)
    if len(unread) == count:
        raise typer.Exit(1)
