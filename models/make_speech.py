"""Running speech for training, by synthetic voices: sentences in which no keyword is said.

    python models/make_speech.py DIR/running_speech --text FILE... [--hours H] [--seed S]

needs the programs espeak-ng and flite, and the package hibari-tts (extra `speech`; or see --engines). Text is
any English prose, such as Debian's package `fortunes` leaves in /usr/share/games/fortunes. Sentences with a keyword in
them, or a word that sounds like one, are left out. Every sentence is a file; training finds the folder by its name.
"""

from __future__ import annotations

import io
import re
import subprocess
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import soundfile
import soxr
import typer
from numpy.typing import NDArray
from rich.progress import Progress

from models.config import ModelConfig

RATE = 16_000
HOMOPHONES = frozenset(["know", "knows", "write", "writes", "rite", "wright", "oft", "upp"])
LONGEST = 160
"""Characters of a sentence; longer ones are cut behind a word."""
FLITE = ("slt", "rms", "awb", "kal16")
ACCENTS = ("en-us", "en-gb", "en-gb-scotland", "en-gb-x-rp", "en-029", "en-us-nyc")
VARIANTS = (
    "m1",
    "m3",
    "m4",
    "m7",
    "f1",
    "f2",
    "f3",
    "f4",
    "f5",
    "klatt",
    "klatt3",
    "Andy",
    "Annie",
    "steph",
    "iven",
    "belinda",
)

Samples = NDArray[np.float32]


def sentences(text: str) -> Iterator[str]:
    """Sentences of running text in which nothing sounds like a keyword, of at most `LONGEST` characters."""
    banned = HOMOPHONES | set(ModelConfig().keywords)
    for part in re.split(r"(?<=[.!?])\s+|\n%\n|\n\n|\s--\s", text):
        said = _cut(re.sub(r"[^A-Za-z0-9',.?! ]+", " ", " ".join(part.split())))
        words = [word.strip("'") for word in re.findall(r"[a-z']+", said.lower())]
        stems = {form for w in words for form in (w, w.removesuffix("'s"), w.removesuffix("s"), w.removesuffix("ped"))}
        if len(words) >= 4 and not banned & stems and part.isascii():
            yield said


def _cut(text: str) -> str:
    """As many whole words of a text as there is room for."""
    return text if len(text) <= LONGEST else text[: LONGEST + 1].rpartition(" ")[0]


def flite(sentence: str, random: np.random.Generator) -> Samples:
    """One of flite's voices, at a random pace."""
    pace = random.uniform(0.8, 1.2)
    voice = str(random.choice(FLITE))
    return _run("flite", "-voice", voice, "--setf", f"duration_stretch={pace:.2f}", "-t", sentence, "-o", "/dev/stdout")


def espeak(sentence: str, random: np.random.Generator) -> Samples:
    """One of espeak-ng's accents and timbres, at a random pace and pitch."""
    voice = f"{random.choice(ACCENTS)}+{random.choice(VARIANTS)}"
    pace, pitch = int(random.integers(130, 210)), int(random.integers(20, 80))
    return _run("espeak-ng", "-v", voice, "-s", str(pace), "-p", str(pitch), "--stdout", "--", sentence)


@cache
def _hibari() -> Any:  # noqa: ANN401 (an optional package without types)
    from hibari import Hibari

    return Hibari()


def hibari(sentence: str, random: np.random.Generator) -> Samples:
    """The voice that comes with hibari-tts, at a random pace and pitch."""
    pitch = random.uniform(0.8, 1.15)
    audio = _hibari()(sentence, speed=float(random.uniform(0.8, 1.3)))
    return soxr.resample(np.asarray(audio, np.float32), 24_000 * pitch, RATE).astype(np.float32)


ENGINES: dict[str, Callable[[str, np.random.Generator], Samples]] = {
    "flite": flite,
    "espeak-ng": espeak,
    "hibari": hibari,
}


def _run(*command: str) -> Samples:
    wave = subprocess.run(command, check=True, capture_output=True).stdout  # noqa: S603 (no shell, our own words)
    samples, rate = soundfile.read(io.BytesIO(wave), dtype="float32")
    return soxr.resample(samples, rate, RATE).astype(np.float32)


def make(
    out: Annotated[Path, typer.Argument(help="Folder for the recordings, best named running_speech.")],
    text: Annotated[list[Path], typer.Option(help="Files of English prose.")],
    hours: Annotated[float, typer.Option(help="How much speech, in hours.")] = 3.0,
    seed: Annotated[int, typer.Option(help="Equal seeds choose equal sentences and voices.")] = 0,
    engines: Annotated[
        list[str] | None, typer.Option(help="flite, espeak-ng, hibari; all of them if left out.")
    ] = None,
) -> None:
    """Have synthetic voices read sentences in which no keyword is said."""
    random = np.random.default_rng(seed)
    lines = sorted({s for file in text for s in sentences(file.read_text(encoding="utf-8", errors="ignore"))})
    if unknown := set(engines or ()) - ENGINES.keys():
        raise typer.BadParameter(f"no engine {', '.join(sorted(unknown))}: there are {', '.join(ENGINES)}")
    voices = [ENGINES[name] for name in engines or ENGINES]
    out.mkdir(parents=True, exist_ok=True)
    made, wanted = 0, int(hours * 3600 * RATE)
    with Progress() as progress:
        bar = progress.add_task(f"{len(lines)} sentences, {len(voices)} engines", total=wanted)
        for number, place in enumerate(random.permutation(len(lines))):
            if made >= wanted:
                break
            samples = voices[int(random.integers(len(voices)))](lines[place], random)
            peak = float(np.abs(samples).max(initial=0.0))
            if peak < 1e-3:
                continue
            soundfile.write(out / f"{number:06d}.flac", samples * (0.5 / peak), RATE)
            made += len(samples)
            progress.update(bar, completed=made)


if __name__ == "__main__":
    typer.run(make)
