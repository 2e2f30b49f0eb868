"""`deltaspot evaluate methods`: the published methods side by side, on the same clips."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from service.commands.options import AsJson, data_option

if TYPE_CHECKING:
    from models.checkpoint import Checkpoint
    from models.kwt import KWT

R = TypeVar("R")
PUBLISHED = "kwt1_v2_12.tflite"


def methods(
    data: Annotated[Path, data_option("Folder with Speech Commands clips, loose or in archives.")],
    split: Annotated[str, typer.Option(help="training, validation, testing or all.")] = "validation",
    stock: Annotated[
        Path | None,
        typer.Option(help=f"Stock Keyword Transformer, tflite or imported; {PUBLISHED} near the data if left out."),
    ] = None,
    model: Annotated[Path | None, typer.Option(help="Streaming checkpoint; the shipped one if left out.")] = None,
    folded: Annotated[
        list[Path] | None,
        typer.Option(help="Streaming checkpoint with folded layers, for rows of its own. Repeatable."),
    ] = None,
    learn: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NETWORK",
            help="Learn first: thresholds for kwt1 or skwt; or kwt1-tuned, score pruning of kwt1 with its weights, "
            "from all training clips. Repeatable.",
        ),
    ] = None,
    found: Annotated[
        Path | None, typer.Option(help="JSON file of what was learned; the shipped one if left out, but for --learn.")
    ] = None,
    tuned: Annotated[
        Path | None, typer.Option(help="File of kwt1's tuned weights; the shipped one if left out, but for --learn.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write a Markdown report, with plot and CSV beside it.")
    ] = None,
    *,
    compare: Annotated[bool, typer.Option(help="Without: stop once everything is learned.")] = True,
    as_json: AsJson = False,
) -> None:
    """Compare the published methods: accuracy, multiply-accumulates cut, time and size.

    Rows of the stock network are left out where no file of it is found; score pruning of the streaming network, where
    its thresholds were learned for other weights (`--learn` learns them), and so for kwt1's tuned weights.
    """
    from models import pruning_tuned
    from models.checkpoint import load_checkpoint
    from models.data import walk
    from models.evaluate import read_clips
    from models.methods import FOUND, stock_rows
    from models.methods_engines import folding_rows, streaming_rows
    from models.methods_report import draw_trajectories, sliding_table, table, write_report
    from models.methods_sliding import end_to_end, sliding_rows
    from models.methods_streaming import check_plain
    from models.network import Network

    kwt, checkpoint = load_stock(stock or find_stock(data)), load_checkpoint(model)
    check_plain(checkpoint.config)
    check(set(learn or ()), kwt, found, tuned)
    found, tuned = found or FOUND, tuned or pruning_tuned.TUNED
    learned = json.loads(found.read_text(encoding="utf-8")) if found.exists() else {}
    if learn:
        _learn(set(learn), kwt, checkpoint, data, learned, tuned)
        if {"kwt1", "skwt"} & set(learn):
            found.write_text(json.dumps(learned) + "\n", encoding="utf-8")
    if not compare:
        return
    clips = read_clips(walk(data), checkpoint.config, split)
    extra = pruning_tuned.load(kwt, tuned) if kwt else None
    rows = list(_told(stock_rows(kwt, clips, learned, extra), table)) if kwt else []
    rows += _told(streaming_rows(Network(checkpoint), clips, learned), table)
    for path in folded or ():
        rows += _told(folding_rows(load_checkpoint(path), clips), table)
    sliding = list(_told(sliding_rows(kwt.config, kwt.weights(), end_to_end(clips)), sliding_table)) if kwt else []
    if report:
        write_report(rows, sliding, report, f"{len(clips.samples)} clips, split: {split}")
        if extra:
            draw_trajectories(extra.trajectory, pruning_tuned.EVERY, report.with_suffix(".thresholds.png"))
    if as_json:
        print(json.dumps({"rows": [asdict(row) for row in rows], "sliding": [asdict(row) for row in sliding]}))
    else:
        print(table(rows), sliding_table(sliding), sep="\n\n")


def check(what: set[str], kwt: KWT | None, found: Path | None, tuned: Path | None) -> None:
    """Refuse, before minutes of it, what cannot be learned or kept.

    Raises:
        BadParameter: for a name that is none, for kwt1 where there is no file of it, and where no file is named.
        OSError: where that cannot be written.
    """
    if strange := what - {"kwt1", "skwt", "kwt1-tuned"}:
        raise typer.BadParameter(f"nothing to learn for {min(strange)!r}: name kwt1, skwt or kwt1-tuned")
    if kwt is None and what - {"skwt"}:
        raise typer.BadParameter(f"no {PUBLISHED} to learn from: name it with --stock")
    for name in sorted(what):
        option, file = ("--tuned", tuned) if name == "kwt1-tuned" else ("--found", found)
        if file is None:
            raise typer.BadParameter(f"--learn {name} writes a file: name it with {option}")
        file.parent.mkdir(parents=True, exist_ok=True)
        exists = file.exists()
        file.open("ab").close()
        if not exists:
            file.unlink()


def _learn(
    what: set[str], kwt: KWT | None, checkpoint: Checkpoint, data: Path, learned: dict[str, Any], tuned: Path
) -> None:
    """Learn what was asked for, from training clips, into `learned` and into the file `tuned`."""
    from models import pruning_tuned
    from models.data import walk
    from models.evaluate import read_clips
    from models.methods import learn_stock, learn_streaming, stock_bench, training_clips

    labels = checkpoint.config.labels
    if "skwt" in what:
        learned["skwt"] = learn_streaming(checkpoint, training_clips(partial(walk, data), labels))
    if kwt and "kwt1" in what:
        learned["kwt1"] = learn_stock(kwt, training_clips(partial(walk, data), labels))
    if kwt and "kwt1-tuned" in what:
        bench = stock_bench(kwt, read_clips(walk(data), checkpoint.config, "training"))
        pruning_tuned.save(kwt, pruning_tuned.tune(kwt, bench.clips, tell=_progress), tuned)


def _told(rows: Iterable[R], table: Callable[[list[R]], str]) -> Iterator[R]:
    """Rows as they come, each told as it is measured: all of them take minutes."""
    for row in rows:
        _progress(table([row]).splitlines()[-1])
        yield row


def _progress(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


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
    from models.kwt import KWT
    from models.kwt_import import read_stock

    return KWT(*read_stock(path)).eval().requires_grad_(requires_grad=False)
