"""Recordings that commands judge and calibrate by, and what is told of them while they are read. Knows no network."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import typer

from models.data import NOISE_FOLDERS, SPLITS, DataError, is_audio, read_audio, walk
from models.evaluate_sets import Material, gather_material
from models.streams import Stream, read_labels
from service.commands.tables import console


def read_material(data: Path, split: str = "validation") -> Material:
    """What a data directory holds of a split's speakers; what has no use in it, or is missing, is told."""
    with console.status("reading recordings"):
        material = gather_material(walk(data), split)
    tell_of(material)
    return material


def of_speakers(split: str) -> str:
    """A split by speakers, as it is.

    Raises:
        BadParameter: for another word.
    """
    if split not in SPLITS:
        raise typer.BadParameter(f"name one of {', '.join(SPLITS)}")
    return split


def tell_of(material: Material) -> None:
    """Say which recordings are of no use, and where there is no noise."""
    if unused := material.unused:
        why = "not named <word>/<speaker>_nohash_<take>, silent, or too long for a word"
        _tell(f"left out: {len(unused)} recordings, as {unused[0]}: {why}")
    if not material.noise:
        folders = " or ".join(sorted(NOISE_FOLDERS))
        _tell(f"no noise: words lie in digital silence; recordings of noise are expected in a folder {folders}")


def _tell(line: str) -> None:
    console.print(line, soft_wrap=True)


def read_streams(audio: Path, labels: Path | None, keywords: Sequence[str]) -> list[Stream]:
    """Recordings with their labels, which carry the recording's name, and its folder's where it lies in one.

    Raises:
        DataError: where there is no recording, one without sound, a folder without one of labels, or a wrong label.
    """
    if not audio.exists():
        raise DataError(f"no recording at {audio}")
    if audio.is_file():
        own = labels / f"{audio.stem}.tsv" if labels and labels.is_dir() else labels
        return [_read_stream(audio, audio.stem, own, keywords)]
    if labels is not None and not labels.is_dir():
        raise DataError(f"{audio} is a folder, so its labels must be one, too: {labels} is a file")
    paths = sorted(p for p in audio.rglob("*") if is_audio(p))
    if not paths:
        raise DataError(f"no recordings in {audio}: expected wav, flac, ogg or opus")
    names = [path.relative_to(audio).with_suffix("").as_posix() for path in paths]
    alike = {name for name, count in Counter(names).items() if count > 1}
    return [
        _read_stream(path, name + path.suffix * (name in alike), labels and labels / f"{name}.tsv", keywords)
        for path, name in zip(paths, names, strict=True)
    ]


def _read_stream(path: Path, name: str, labels: Path | None, keywords: Sequence[str]) -> Stream:
    samples = read_audio(path)
    if not len(samples):
        raise DataError(f"{path} is empty: there is nothing to judge")
    return Stream(name, samples, read_labels(labels, len(samples), keywords) if labels else ())


@contextmanager
def pixels_in(cache: Path | None) -> Iterator[Path]:
    """The folder for a corpus as pixels: one that stays, or one for the moment."""
    if cache is not None:
        yield cache
        return
    with TemporaryDirectory() as folder:
        yield Path(folder)
