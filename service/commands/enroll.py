"""`deltaspot enroll`: a few recordings of a word -> a small file that makes it a keyword; here, or on a server."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from shlex import quote
from typing import Annotated, Final

import typer
from rich.console import Console

from client.keywords import enroll as enroll_there
from client.keywords import read_bytes, write_keyword
from service.commands.options import Key, Url, server_for
from service.protocol import Enrolled

app = typer.Typer(add_completion=False)
console = Console(stderr=True, highlight=False, markup=False)

FEW: Final = 3
"""Recordings below which a keyword is missed more often than need be."""


@app.command()
def enroll(
    context: typer.Context,
    name: Annotated[str, typer.Argument(help="What the keyword is called, in detections.")],
    recordings: Annotated[
        list[Path],
        typer.Argument(help="1 to 10 recordings (WAV, FLAC, OGG) in each of which it is said once; 5 do well."),
    ],
    out: Annotated[Path | None, typer.Option(help="Where the keyword goes; NAME.json if left out.")] = None,
    threshold: Annotated[
        float, typer.Option(min=0, max=1, help="Score that counts as heard; higher for fewer false alarms.")
    ] = 0.5,
    point: Annotated[str | None, typer.Option(help="Operating point that streams will be judged at.")] = None,
    model: Annotated[Path | None, typer.Option(help="Checkpoint, without --url; the shipped one if left out.")] = None,
    url: Url = None,
    key: Key = None,
) -> None:
    """Make a keyword of your own, for `listen --enrolled` and `detect --enrolled`; nothing is trained.

    Say the word as you will say it later, and let several people say it if several will. The file works with the
    model that it was made with, and with no other.
    """
    path = out or Path(f"{name}.json")
    if url := server_for(context, url, "--model" if model else None):
        wishes = {"threshold": threshold} | ({"point": point} if point else {})
        write_keyword(asyncio.run(enroll_there(url, name, recordings, key=key, **wishes)), path)
    else:
        here(name, recordings, threshold, point, model, path)
    told = f"{path}: {name!r}, recordings: {len(recordings)}; try: deltaspot listen mic --enrolled {quote(str(path))}"
    console.print(told, *hints(recordings), sep="\n", soft_wrap=True)


def hints(recordings: Sequence[Path]) -> Iterator[str]:
    """What would make a better keyword."""
    different = len({read_bytes(path) for path in recordings})
    if different < len(recordings):
        yield "-- some of them are the same: only different recordings teach anything"
    if different < FEW:
        yield f"-- words enrolled from {FEW} to 5 different recordings are heard more often; this has {different}"


def here(
    name: str, recordings: list[Path], threshold: float, point: str | None, model: Path | None, path: Path
) -> None:
    """Make it with a model of this machine, and write it to `path`."""
    from models.background import Background
    from models.checkpoint import load_checkpoint
    from models.data import read_audio
    from models.enroll import enrol
    from models.network import Network
    from models.operating import usual_point

    network = Network(load_checkpoint(model))
    background = Background.of(network.checkpoint)
    named = [(str(file), read_audio(file)) for file in recordings]
    made = enrol(network, background, name, named, usual_point(network.points, point), threshold)
    write_keyword(Enrolled(**asdict(made)), path)
