"""Clips: how often the last posterior of a one-second stream names the right label, and at what cost.

A clip is one stream from an empty past: padded to a second, fed, flushed, and judged by its last posterior.
Endless audio is judged in `models.evaluate_streams`.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.bounds import binomial_bounds, clustered_bounds
from models.config import SILENCE, UNKNOWN, ModelConfig
from models.counting import Count
from models.data import (
    CLIP_SAMPLES,
    NOISE_FOLDERS,
    SPLITS,
    WORDLESS,
    DataError,
    Item,
    is_audio,
    noise_part,
    pad_clip,
    split_of,
    walk,
)
from models.features import Array
from models.network import Network
from models.offline import judge
from models.streams import rms

LONGEST_CLIP = 3 * CLIP_SAMPLES // 2
"""A longer recording in a folder that is no label's is running speech, not a clip."""
FAINTEST = 3.0
"""Root mean square of a noise, in int16 values; less is the zeros that a recording was filled up with."""
ALL = "all"
KEYWORD = "keyword"
BATCH = 256


@dataclass(frozen=True, slots=True)
class LabelledClips:
    """samples: n recordings of exactly one second; targets: (n,) each one's label; speakers: n, "" for nobody."""

    samples: list[Array]
    targets: NDArray[np.int64]
    speakers: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class SpeakerReport:
    """How errors lie on speakers: clips of one are alike, so the accuracy is less certain than their number has it.

    faultless: speakers without an error. half: as few of them as have half of all errors. bounds: of the accuracy of
    what they say, 95 %, over speakers drawn anew.
    """

    count: int
    faultless: int
    half: int
    bounds: tuple[float, float]


@dataclass(frozen=True, slots=True)
class ClipReport:
    """One operating point's verdict on a set of clips.

    Shares are 0..1, or None where the set has no such clip. bounds: of each share by its name, 95 %. balanced: the mean
    of each label's share, labels without clips left out. confusion: (K, K), row = truth, column = verdict.
    """

    name: str
    clips: int
    accuracy: float
    keywords: float | None
    unknown: float | None
    silence: float | None
    bounds: dict[str, tuple[float, float] | None]
    balanced: float
    macs_skipped_vs_window: float
    macs_skipped_vs_causal: float
    cpu_ms_per_clip: float
    confusion: list[list[int]]
    speakers: SpeakerReport | None = None


def read_clips(items: Iterable[Item], config: ModelConfig, split: str = ALL) -> LabelledClips:
    """Every clip among `items`: a recording in a folder named by its word.

    Words that are no keyword count as unknown. Noise, pictures and running speech are no clips.

    Args:
        items: files of a data directory.
        config: names the labels.
        split: "training", "validation" or "testing" by the speaker's id, or "all".

    Raises:
        DataError: for a split that does not exist, or where no clip is left.
    """
    if split not in (ALL, *SPLITS):
        raise DataError(f"no split {split!r}: choose one of {', '.join((*SPLITS, ALL))}")
    samples, words, speakers = [], [], []
    for item in items:
        if not is_audio(item.path) or item.word in WORDLESS:
            continue
        if split not in (ALL, split_of(item.speaker)):
            continue
        recording = item.audio()
        if item.word in config.labels or (item.word and len(recording) <= LONGEST_CLIP):
            samples.append(pad_clip(recording))
            words.append(item.word)
            speakers.append(item.speaker if item.is_clip else "")
    if not samples:
        raise DataError(f"no clips (split: {split}): expected <word>/<name>.wav, .flac, .ogg or .opus")
    return LabelledClips(samples, np.array(config.indices(words)), speakers)


def cut_silence(items: Iterable[Item], config: ModelConfig) -> LabelledClips:
    """Whole seconds of the part of noise recordings that validates, as clips of silence; digital silence is too easy.

    Raises:
        DataError: where there is none.
    """
    parts = [
        noise_part(item.audio(), "validation") for item in items if item.word in NOISE_FOLDERS and is_audio(item.path)
    ]
    cuts = (part[k : k + CLIP_SAMPLES] for part in parts for k in range(0, len(part) - CLIP_SAMPLES + 1, CLIP_SAMPLES))
    clips = [cut for cut in cuts if is_noise(cut)]
    if not clips:
        raise DataError(
            f"no noise to make silence of: expected recordings in a folder {' or '.join(sorted(NOISE_FOLDERS))}"
        )
    return LabelledClips(clips, np.full(len(clips), config.labels.index(SILENCE)), [""] * len(clips))


def is_noise(samples: Array) -> bool:
    """Whether a piece of a noise recording is louder than what it is filled up with; many end in digital silence."""
    return rms(samples) > FAINTEST


def join(first: LabelledClips, second: LabelledClips) -> LabelledClips:
    """Both sets, one after the other."""
    targets = np.concatenate((first.targets, second.targets))
    return LabelledClips(first.samples + second.samples, targets, first.speakers + second.speakers)


def validation_clips(data: Path, config: ModelConfig) -> LabelledClips:
    """Clips of validation speakers, and seconds of validation noise as silence."""
    return join(read_clips(walk(data), config, "validation"), cut_silence(walk(data), config))


def judge_clips(network: Network, clips: LabelledClips, point: str) -> ClipReport:
    """Judge every clip at one operating point."""
    began = time.process_time()
    verdicts: list[int] = []
    counts: list[Count] = []
    for start in range(0, len(clips.samples), BATCH):
        for posteriors, count in judge(network, clips.samples[start : start + BATCH], point=point):
            verdicts.append(int(posteriors[-1].argmax()))
            counts.append(count)
    spent = time.process_time() - began
    return _report(point, network.config.labels, clips, np.array(verdicts), sum(counts[1:], counts[0]), spent)


def by_speaker(speakers: Sequence[str], right: NDArray[np.bool_]) -> SpeakerReport | None:
    """How errors lie on those who speak; None where nobody is named."""
    names, places = np.unique(np.array(speakers, str), return_inverse=True)
    somebody = names != ""
    if not somebody.any():
        return None
    clips = np.bincount(places)[somebody]
    errors = np.bincount(places, ~right)[somebody].astype(np.int64)
    half = int(np.searchsorted(np.sort(errors)[::-1].cumsum(), errors.sum() / 2)) + 1 if errors.any() else 0
    return SpeakerReport(len(clips), int((errors == 0).sum()), half, clustered_bounds(clips - errors, clips))


def _report(
    point: str,
    labels: Sequence[str],
    clips: LabelledClips,
    verdicts: NDArray[np.int64],
    count: Count,
    spent: float,
) -> ClipReport:
    targets = clips.targets
    confusion = np.zeros((len(labels), len(labels)), np.int64)
    np.add.at(confusion, (targets, verdicts), 1)
    said = confusion.sum(axis=1)
    kinds = np.array([KEYWORD if label not in (SILENCE, UNKNOWN) else label for label in labels])

    def counts(rows: NDArray[np.bool_]) -> tuple[int, int]:
        return int(confusion[rows][:, rows].trace()), int(confusion[rows].sum())

    counted = {
        "accuracy": counts(kinds != ""),
        "keywords": counts(kinds == KEYWORD),
        "unknown": counts(kinds == UNKNOWN),
        "silence": counts(kinds == SILENCE),
    }
    shares = {name: right / total if total else None for name, (right, total) in counted.items()}
    return ClipReport(
        name=point,
        clips=len(targets),
        accuracy=float((targets == verdicts).mean()),
        keywords=shares["keywords"],
        unknown=shares["unknown"],
        silence=shares["silence"],
        bounds={name: binomial_bounds(*seen) if shares[name] is not None else None for name, seen in counted.items()},
        balanced=float((confusion.diagonal()[said > 0] / said[said > 0]).mean()),
        macs_skipped_vs_window=count.skipped_vs_window,
        macs_skipped_vs_causal=count.skipped_vs_causal,
        cpu_ms_per_clip=1000 * spent / len(targets),
        confusion=confusion.tolist(),
        speakers=by_speaker(clips.speakers, targets == verdicts),
    )
