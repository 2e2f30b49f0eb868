"""The standard sets of streams that a model is judged on, made from a data directory.

keywords: keywords alone, in noise at 0-20 dB. mixed: the same with as many other words. speech: running speech,
each recording a stream. noise: backgrounds alone. silence: digital silence, and the faintest hiss.
Only validation speakers and the validation part of each noise are used. Knows no network.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import PurePosixPath

import numpy as np

from models.config import KEYWORDS
from models.data import NOISE_FOLDERS, SPEECH_FOLDER, DataError, Item, is_audio, noise_part, split_of
from models.evaluate import LONGEST_CLIP, is_noise
from models.features import Array
from models.streams import (
    SAMPLE_RATE,
    Clip,
    Plan,
    Stream,
    amplify,
    build,
    quantise,
    reverberate,
    spoken_span,
    telephone,
)

KEYWORDS_ALONE = Plan(unknown_share=0.0, gap_s=(1.0, 5.0))
MIXED = Plan()
SNR_DB = (20, 15, 10, 5, 0, -5)
GAIN_DB = (-30, -20, -10, 0, 10)
DECAY_S = (0.3, 0.6, 1.0)
DIRECT_DB = 3.0
"""Rooms: times in which their echoes fall by 60 dB, and how far these are below the sound itself."""
HISS = 1.0
"""Root mean square of the hiss of a quiet sound card, int16 values."""


@dataclass(slots=True)
class Material:
    """What a data directory holds for one split: clips, backgrounds (S,), running speech, and what is none of these."""

    clips: list[Clip] = field(default_factory=list)
    noise: list[Array] = field(default_factory=list)
    speech: list[Stream] = field(default_factory=list)
    unused: list[PurePosixPath] = field(default_factory=list)


def gather_material(items: Iterable[Item], split: str = "validation") -> Material:
    """Sort a data directory's recordings.

    Clips are sorted by speaker and noise is cut, so nothing is used that the other splits may use. Recordings longer
    than a clip, outside the folders of noise, are running speech: nobody's split, and for judging only, as that of
    `SPEECH_FOLDER` is for training only. Shorter ones that are not named as clips are have no speaker, and no use; nor
    have clips without a sound, or too long to be one word, and noise that is silent where it is cut.
    """
    material = Material()
    for item in items:
        if not is_audio(item.path) or item.word == SPEECH_FOLDER:
            continue
        if item.is_clip and split_of(item.speaker) != split:
            continue
        samples = item.audio()
        if item.word in NOISE_FOLDERS:
            part = noise_part(samples, split)
            if len(part) > SAMPLE_RATE // 10 and is_noise(part):
                material.noise.append(part)
            else:
                material.unused.append(item.path)
        elif item.is_clip and len(samples) <= LONGEST_CLIP and samples.any():
            material.clips.append(Clip(samples, item.word, *spoken_span(samples), item.speaker))
        elif len(samples) > LONGEST_CLIP and not item.is_clip:
            material.speech.append(Stream(item.path.stem, samples))
        else:
            material.unused.append(item.path)
    return material


def build_many(material: Material, plan: Plan, count: int, seed: int, keywords: Sequence[str]) -> list[Stream]:
    """`count` streams of a plan, with seeds from `seed` on."""
    return [build(material.clips, material.noise, plan, keywords, seed + i) for i in range(count)]


def standard_sets(
    material: Material, streams: int, seed: int, keywords: Sequence[str] = KEYWORDS, *, mixed: bool = True
) -> dict[str, list[Stream]]:
    """Every standard set by its name; sets that nothing is there for are left out.

    Args:
        material: what to make them from.
        streams: streams of ten minutes in each of the sets with words.
        seed: of the first one.
        keywords: the words that count as keywords.
        mixed: whether streams with other words between the keywords are among them.

    Raises:
        DataError: where there is neither a clip nor speech nor noise.
    """
    sets: dict[str, list[Stream]] = {"silence": [_silence(seed)]}
    if material.clips:
        sets["keywords"] = build_many(material, KEYWORDS_ALONE, streams, seed, keywords)
        if mixed:
            sets["mixed"] = build_many(material, MIXED, streams, seed + 1_000, keywords)
    if material.speech:
        sets["speech"] = material.speech
    if material.noise:
        sets["noise"] = [Stream("noise", np.concatenate(material.noise))]
    if len(sets) == 1:
        raise DataError("no clips, no running speech and no noise: name a folder with recordings or archives")
    return sets


def _silence(seed: int) -> Stream:
    """Five minutes of digital silence, then five of hiss."""
    half = 5 * 60 * SAMPLE_RATE
    hiss = np.random.default_rng(seed).normal(0.0, HISS, half)
    return Stream("silence", np.concatenate((np.zeros(half, np.float32), quantise(hiss.astype(np.float32)))))


def sweeps(
    material: Material, seed: int, keywords: Sequence[str] = KEYWORDS, minutes: float = KEYWORDS_ALONE.minutes
) -> dict[str, list[tuple[str, Stream]]]:
    """One stream of keywords under ever harder conditions: by sweep, (condition, stream).

    The words and their places are the same in every condition.
    """

    def at(snr_db: float) -> Stream:
        plan = replace(KEYWORDS_ALONE, snr_db=(snr_db, snr_db), minutes=minutes)
        return build(material.clips, material.noise, plan, keywords, seed)

    clean = at(20.0)
    return {
        "snr_db": [(str(snr), at(snr)) for snr in SNR_DB],
        "gain_db": [(str(gain), replace(clean, samples=amplify(clean.samples, gain))) for gain in GAIN_DB],
        "line": [("16 kHz", clean), ("8 kHz mu-law", replace(clean, samples=telephone(clean.samples)))],
        "room": [(f"{s:g}", replace(clean, samples=reverberate(clean.samples, s, DIRECT_DB, seed))) for s in DECAY_S],
    }
