"""More recordings for training, from folders of any program: sounds in which nobody speaks, or sentences.

    python models/gather_sounds.py DIR/sounds FOLDER... [--only REGEX] [--without REGEX]

Noise decides how often nothing is taken for a keyword, and the usual collections hold little of it. Games and
programs for children bring animals, machines, blows and shouts, and descriptions that volunteers read in a dozen
languages; Debian's packages `wesnoth-1.16-data`, `hedgewars-data`, `minetest-data` and `tuxpaint-stamps-default` have
several hours of them. Training finds both folders by their names, `sounds` and `running_speech`, and nothing is ever
judged by what is in them. It is for you to see that no keyword is said there.
"""

from __future__ import annotations

import filecmp
import re
import shutil
from pathlib import Path
from typing import Annotated

import soundfile
import typer
from rich.console import Console
from rich.progress import track

from models.data import is_audio

LEAST_S = 0.1
"""What is shorter is left out."""


def gather(
    out: Annotated[Path, typer.Argument(help="Folder for copies, named sounds or running_speech.")],
    folders: Annotated[list[Path], typer.Argument(exists=True, file_okay=False, help="Where to look, at any depth.")],
    only: Annotated[str, typer.Option(metavar="REGEX", help="Take what has this in its path.")] = "",
    without: Annotated[str | None, typer.Option(metavar="REGEX", help="Leave out what has this in its path.")] = None,
) -> None:
    """Copy recordings into one folder, each under a name made of its whole path below FOLDER."""
    wanted, unwanted = re.compile(only), re.compile(without or r"(?!)")
    out.mkdir(parents=True, exist_ok=True)
    taken, seconds = 0, 0.0
    for folder in folders:
        for path in track(sorted(folder.rglob("*")), description=str(folder)):
            told = path.relative_to(folder)
            asked = is_audio(path) and wanted.search(told.as_posix()) and not unwanted.search(told.as_posix())
            if asked and (length := _seconds(path)) >= LEAST_S:
                shutil.copyfile(path, _free(out / "-".join((folder.resolve().name, *told.parts)), path))
                taken, seconds = taken + 1, seconds + length
    Console().print(f"{taken} recordings, {seconds / 60:.1f} minutes, in {out}")


def _free(wanted: Path, recording: Path) -> Path:
    """A place for a copy: the one that is wanted, or beside it where another recording lies there."""
    place, number = wanted, 1
    while place.exists() and not filecmp.cmp(place, recording, shallow=False):
        number += 1
        place = wanted.with_stem(f"{wanted.stem}-{number}")
    return place


def _seconds(path: Path) -> float:
    """A recording's length; 0 for what is none."""
    try:
        return float(soundfile.info(path).duration)
    except soundfile.LibsndfileError:
        return 0.0


if __name__ == "__main__":
    typer.run(gather)
