"""`deltaspot enroll`: a few recordings of a word -> a small file that makes it a keyword."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from models.background import Background
from models.checkpoint import load_checkpoint, shipped_path
from models.data import read_audio
from models.enroll import enrol
from models.network import Network
from service.commands.evaluate import Model, Point, usual_point

app = typer.Typer(add_completion=False)
console = Console(stderr=True, highlight=False)


@app.command()
def enroll(
    name: Annotated[str, typer.Argument(help="What the keyword is called, in detections.")],
    recordings: Annotated[
        list[Path],
        typer.Argument(help="1 to 10 recordings (WAV, FLAC, OGG) in each of which it is said once; 5 do well."),
    ],
    out: Annotated[Path | None, typer.Option(help="Where the keyword goes; NAME.json if left out.")] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Score that counts as heard; higher for fewer false alarms.")
    ] = 0.5,
    point: Point = None,
    model: Model = None,
) -> None:
    """Make a keyword of your own, for `listen --enrolled` and `detect --enrolled`; nothing is trained.

    Say the word as you will say it later, and let several people say it if several will. The file works with the
    model that it was made with, and with no other.
    """
    network = Network(load_checkpoint(model or shipped_path()))
    background = Background.of(network.checkpoint)
    named = [(str(path), read_audio(path)) for path in recordings]
    keyword = enrol(network, background, name, named, usual_point(network, point), threshold)
    path = out or Path(f"{name}.json")
    keyword.save(path)
    console.print(f"{path}: {name!r} from {len(named)} recordings; try: deltaspot listen mic --enrolled '{path}'")
