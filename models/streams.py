"""Labelled streams for evaluation: real clips at random times over real noise, deterministic by seed.

A stream is a row of scenes of some seconds; a scene is one background, one distance of the speaker and one
signal-to-noise ratio. Words fall where they fall, also over the border of two scenes. Where a word starts
and ends is read from its clip's own loudness. Knows nothing of networks.

Levels are in dB, samples carry int16 values, times are counted in samples.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soxr
from numpy.typing import NDArray

from models.data import FRONTEND, DataError
from models.features import Array, frames

SAMPLE_RATE = FRONTEND.sample_rate
LARGEST = 32_767.0
SPOKEN_SHARE = 0.3
"""A frame belongs to the word where its loudness is above this share of the way from the clip's floor to its peak."""
BEYOND = SAMPLE_RATE // 10
"""Samples by which a label may end behind its recording: times are rounded."""
FADE = SAMPLE_RATE // 40
"""Samples over which a background fades into the next."""
TELEPHONE_RATE = 8_000
MU = 255.0


@dataclass(frozen=True, slots=True)
class Utterance:
    """A word and the samples it spans: start, end (exclusive)."""

    start: int
    end: int
    word: str
    speaker: str = ""
    """Who says it, where that is known."""


@dataclass(frozen=True, slots=True)
class Stream:
    """A recording (S,) and the words in it, in order of time; no words: nothing in it may be detected."""

    name: str
    samples: Array
    utterances: tuple[Utterance, ...] = ()

    @property
    def hours(self) -> float:
        """Length of the recording."""
        return len(self.samples) / SAMPLE_RATE / 3600


@dataclass(frozen=True, slots=True)
class Clip:
    """A spoken word (S,) with the samples that are the word itself."""

    samples: Array
    word: str
    start: int
    end: int
    speaker: str = ""


@dataclass(frozen=True, slots=True)
class Plan:
    """What the streams of one set are like; ranges are drawn from uniformly, once a scene or a word."""

    minutes: float = 10.0
    scene_s: float = 10.0
    gap_s: tuple[float, float] = (0.6, 3.4)
    snr_db: tuple[float, float] = (0.0, 20.0)
    level_db: tuple[float, float] = (-36.0, -18.0)
    unknown_share: float = 0.5
    words: int | None = None
    """How many words at most; None for as many as find room."""


def spoken_span(samples: Array) -> tuple[int, int]:
    """First and last sample of the word in a clip (S,); the whole clip if it is flat."""
    pixels = frames(samples)
    if not len(pixels) or np.ptp(pixels.mean(axis=1)) < 1.0:
        return 0, len(samples)
    active = spoken_frames(pixels)
    middle = (FRONTEND.window - FRONTEND.hop) // 2  # a frame stands for the hop in the middle of its window
    return int(active[0]) * FRONTEND.hop + middle, int(active[-1] + 1) * FRONTEND.hop + middle


def spoken_frames(pixels: Array) -> NDArray[np.int64]:
    """Frames (T, bands) -> indices of those that belong to the word, by their loudness; all of a flat clip."""
    loudness = pixels.mean(axis=1)
    floor = np.quantile(loudness, 0.1)
    active = np.flatnonzero(loudness > floor + SPOKEN_SHARE * (loudness.max() - floor))
    return active if len(active) else np.arange(len(pixels))


def rms(samples: Array) -> float:
    """Root mean square, in int16 values; never 0."""
    return float(np.sqrt(np.mean(np.square(samples, dtype=np.float64)))) + 1e-3


def level(db: float) -> float:
    """dB below full scale -> root mean square in int16 values."""
    return LARGEST * 10.0 ** (db / 20.0)


def patchwork(recordings: Sequence[Array], length: int, random: np.random.Generator) -> Array:
    """Recordings (S,) longer than `FADE`, brought to one level, one after another in random order: (length,).

    None comes again before all have been heard, so that long ones have a part according to their length.
    """
    ramp = np.sqrt(np.linspace(0.0, 1.0, FADE, dtype=np.float32))
    tape, place = np.zeros(length + FADE + max(map(len, recordings)), np.float32), 0
    while place < length + FADE:
        for one in random.permutation(len(recordings)):
            part = recordings[one] / rms(recordings[one])
            part[:FADE] *= ramp
            part[-FADE:] *= ramp[::-1]
            if place < length + FADE:
                tape[place : place + len(part)] += part
                place += len(part) - FADE
    return tape[FADE : FADE + length]


def build(clips: Sequence[Clip], noise: Sequence[Array], plan: Plan, keywords: Sequence[str], seed: int) -> Stream:
    """Compose one stream of `plan.minutes`.

    Args:
        clips: keywords and other words; each is used at most once until all of its kind were.
        noise: backgrounds (S,), none silent; empty for digital silence.
        plan: levels, lengths and shares.
        keywords: the words that count as keywords.
        seed: equal seeds give equal streams, to the last bit.

    Raises:
        DataError: where there are no clips.
    """
    if not clips:
        raise DataError("no clips to make a stream of")
    random = np.random.default_rng(seed)
    kinds = [[c for c in clips if (c.word in keywords) == wanted] for wanted in (True, False)]
    decks = [random.permutation(len(kind)) for kind in kinds]
    length = int(plan.minutes * 60 * SAMPLE_RATE)
    backgrounds, levels = _scenes(noise, plan, length, random)
    samples, used = backgrounds, [0, 0]
    utterances: list[Utterance] = []
    place = int(random.uniform(*plan.gap_s) * SAMPLE_RATE)
    while plan.words is None or len(utterances) < plan.words:
        kind = int((len(kinds[1]) > 0 and random.random() < plan.unknown_share) or not kinds[0])
        clip = kinds[kind][decks[kind][used[kind] % len(decks[kind])]]
        used[kind] += 1
        first, last = place - clip.start, place - clip.start + len(clip.samples)
        if last >= length:
            break
        loudness = levels[min(place // int(plan.scene_s * SAMPLE_RATE), len(levels) - 1)]
        _add(samples, clip.samples * (loudness / rms(clip.samples[clip.start : clip.end])), first)
        utterances.append(Utterance(place, place + clip.end - clip.start, clip.word, clip.speaker))
        place = utterances[-1].end + int(random.uniform(*plan.gap_s) * SAMPLE_RATE)
    return Stream(f"stream-{seed:03d}", quantise(samples), tuple(utterances))


def _scenes(noise: Sequence[Array], plan: Plan, length: int, random: np.random.Generator) -> tuple[Array, list[float]]:
    """Backgrounds (S,) end to end, and the level of speech in each scene as root mean square."""
    scene = int(plan.scene_s * SAMPLE_RATE)
    count = -(-length // scene)
    levels = [level(random.uniform(*plan.level_db)) for _ in range(count)]
    if not len(noise):
        return np.zeros(length, np.float32), levels
    scenes = patchwork(noise, count * scene, random).reshape(count, scene)
    for i, loudness in enumerate(levels):
        scenes[i] *= loudness / 10.0 ** (random.uniform(*plan.snr_db) / 20.0) / rms(scenes[i])
    return scenes.reshape(-1)[:length], levels


def _add(samples: Array, part: Array, first: int) -> None:
    """Mix a part into a recording, in place; what lies before its start is cut off."""
    skipped = max(0, -first)
    samples[first + skipped : first + len(part)] += part[skipped:]


def quantise(samples: Array) -> Array:
    """What a sound card would give: whole int16 values, clipped."""
    return np.clip(np.rint(samples), -LARGEST - 1, LARGEST).astype(np.float32)


def amplify(samples: Array, db: float) -> Array:
    """Gain in dB, with the clipping that comes with it."""
    return quantise(samples * np.float32(10.0 ** (db / 20.0)))


def telephone(samples: Array) -> Array:
    """16 kHz samples (S,) as an 8 kHz mu-law telephone line gives them back, at 16 kHz."""
    narrow = np.clip(soxr.resample(samples, SAMPLE_RATE, TELEPHONE_RATE) / LARGEST, -1.0, 1.0)
    code = np.rint(np.sign(narrow) * np.log1p(MU * np.abs(narrow)) / np.log1p(MU) * 127.0) / 127.0
    heard = np.sign(code) * np.expm1(np.abs(code) * np.log1p(MU)) / MU
    wide = soxr.resample(heard.astype(np.float32), TELEPHONE_RATE, SAMPLE_RATE)
    return quantise(wide * np.float32(LARGEST))


def reverberate(samples: Array, decay_s: float, direct_db: float, seed: int) -> Array:
    """Samples (S,) as a room gives them back: behind each sound a tail of noise that decays (Polack 1988).

    Args:
        samples: what is said.
        decay_s: time in which the tail falls by 60 dB.
        direct_db: how far the tail, all of it, is below the sound itself.
        seed: of the noise.
    """
    age = np.arange(1, round(decay_s * SAMPLE_RATE))
    tail = np.random.default_rng(seed).normal(size=len(age)) * 10.0 ** (-3.0 * age / decay_s / SAMPLE_RATE)
    tail *= 10.0 ** (-direct_db / 20.0) / np.sqrt(np.sum(tail**2))
    response = np.concatenate(([1.0], tail))
    size = 1 << (len(samples) + len(response)).bit_length()
    echoed = np.fft.irfft(np.fft.rfft(samples, size) * np.fft.rfft(response, size), size)
    return quantise(echoed[: len(samples)].astype(np.float32))


def read_labels(path: Path, length: float = math.inf, keywords: Collection[str] = ()) -> tuple[Utterance, ...]:
    """Words of a tab-separated file: start_s, end_s, word; a heading and lines that start with # are skipped.

    Args:
        path: the file.
        length: samples of the recording.
        keywords: words that may not be spelt in another case.

    Raises:
        DataError: naming the line that cannot be read, or cannot be true.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        number = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(f"{path}, line {number}: this is no UTF-8; save it as such") from None
    words = []
    for number, row in enumerate((line.split("\t") for line in lines), 1):
        if row == [""] or row[0].startswith("#") or row[0] == "start_s":
            continue
        try:
            start, end, word = (field.strip() for field in row[:3])
            said = Utterance(round(float(start) * SAMPLE_RATE), round(float(end) * SAMPLE_RATE), word)
        except (ValueError, OverflowError) as error:
            raise DataError(f"{path}, line {number}: expected start_s, end_s, word between tabs") from error
        if wrong := _wrong(said, length, keywords):
            raise DataError(f"{path}, line {number}: {wrong}")
        words.append(said)
    return tuple(sorted(words, key=lambda w: w.start))


def _wrong(said: Utterance, length: float, keywords: Collection[str]) -> str | None:
    """What cannot be true of a label, if anything."""
    if not 0 <= said.start < said.end:
        return f"{said.word!r} must start at 0 s or later and end after its start"
    if said.end > length + BEYOND:
        return f"{said.word!r} ends at {said.end / SAMPLE_RATE:g} s, the recording at {length / SAMPLE_RATE:g} s"
    if meant := [word for word in keywords if word != said.word and word.casefold() == said.word.casefold()]:
        return f"{said.word!r} is no keyword, {meant[0]!r} is: write it so"
    return None


def write_labels(utterances: Iterable[Utterance], path: Path) -> None:
    """The inverse of `read_labels`, to a tenth of a millisecond."""
    rows = (f"{u.start / SAMPLE_RATE:.4f}\t{u.end / SAMPLE_RATE:.4f}\t{u.word}\n" for u in utterances)
    path.write_text("start_s\tend_s\tword\n" + "".join(rows), encoding="utf-8")
