"""Make `commands.flac` and `commands.tsv`: ten keywords and three other words by eight synthetic voices in noise.

    python client/samples/make_sample.py        (needs the programs espeak-ng and flite)

The noise is pink with a mains hum, made from a fixed seed. The table says what is said when: start and end in
seconds, and the word, separated by tabs.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr
import typer
from numpy.typing import NDArray

RATE = 16_000
SEED = 7
LEVEL = 0.35  # peak of a word, full scale 1
SIGNAL_TO_NOISE_DB = 18.0
HERE = Path(__file__).parent

SCRIPT = [
    ("yes", "espeak-ng -v en-gb -s 140 -p 35"),
    ("happy", "flite -voice slt"),
    ("no", "flite -voice slt"),
    ("up", "espeak-ng -v en-us+f3 -s 160"),
    ("seven", "espeak-ng -v en-us -s 160"),
    ("down", "flite -voice rms"),
    ("left", "espeak-ng -v en-gb -s 160"),
    ("right", "flite -voice kal16"),
    ("tree", "flite -voice rms"),
    ("on", "flite -voice awb"),
    ("off", "espeak-ng -v en-gb-scotland -s 140 -p 35"),
    ("stop", "flite -voice awb"),
    ("go", "flite -voice rms"),
]
"""What is said, in order, and by whom."""

Samples = NDArray[np.float64]


def speak(word: str, voice: str) -> Samples:
    """One word without the silence around it, (N,) at 16 kHz, peak `LEVEL`."""
    with tempfile.NamedTemporaryFile(suffix=".wav") as file:
        program, *options = voice.split()
        wanted = ["-w", file.name, word] if program == "espeak-ng" else ["-t", word, "-o", file.name]
        subprocess.run([program, *options, *wanted], check=True)  # noqa: S603 (SCRIPT is ours)
        samples, rate = soundfile.read(file.name)
    samples = soxr.resample(samples, rate, RATE)
    loud = np.flatnonzero(np.abs(samples) > 0.02 * np.abs(samples).max())
    samples = samples[loud[0] : loud[-1] + 1]
    return samples * (LEVEL / np.abs(samples).max())


def background(length: int, random: np.random.Generator) -> Samples:
    """Pink noise and a 50 Hz hum, (length,), root mean square 1."""
    spectrum = np.fft.rfft(random.standard_normal(length))
    spectrum /= np.sqrt(np.maximum(np.arange(len(spectrum)), 1))
    noise = np.fft.irfft(spectrum, length)
    noise += 0.3 * noise.std() * np.sin(2 * np.pi * 50 * np.arange(length) / RATE)
    return noise / np.sqrt(np.mean(noise**2))


def main() -> None:
    """Write commands.flac and commands.tsv beside this script, over those that are there.

    Needs the programs espeak-ng and flite.
    """
    random = np.random.default_rng(SEED)
    pieces, rows, at = [], [], 0
    for word, voice in SCRIPT:
        pause = np.zeros(int(random.uniform(0.6, 0.9) * RATE))
        spoken = speak(word, voice)
        start = at + len(pause)
        at = start + len(spoken)
        pieces += [pause, spoken]
        rows.append(f"{start / RATE:.3f}\t{at / RATE:.3f}\t{word}\n")
    speech = np.concatenate([*pieces, np.zeros(RATE)])
    speech_rms = np.sqrt(np.mean(np.concatenate(pieces[1::2]) ** 2))
    noise = background(len(speech), random) * speech_rms * 10 ** (-SIGNAL_TO_NOISE_DB / 20)
    soundfile.write(HERE / "commands.flac", speech + noise, RATE, subtype="PCM_16")
    (HERE / "commands.tsv").write_text("".join(rows))
    sys.stdout.write(f"{len(speech) / RATE:.1f} s, {len(rows)} words\n")


if __name__ == "__main__":
    typer.run(main)
