"""What other networks make of the training clips: soft targets (Hinton et al. 2015), which doubt what is doubtful.

A teacher is a checkpoint of ours, which judges every clip as pixels, or a stock Keyword Transformer, which judges
audio, and pictures by what they tell of its features (`models.guess`). Where several judge a clip, it is their mean
that is believed.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import DENSE, Checkpoint, load_checkpoint
from models.config import UNKNOWN, ModelConfig
from models.data import (
    AUDIO,
    CLIP_FRAMES,
    FRONTEND,
    Corpus,
    DataError,
    Item,
    digest,
    pad_clip,
    read_audio,
    split_of,
    walk,
)
from models.features import Array
from models.guess import fit
from models.kwt_clip import ClipNetwork
from models.kwt_weights import is_stock, load
from models.network import Network
from models.offline import softmax
from models.validation import posteriors_on

LEAST_AUDIO = 1_000
"""Clips that are audio without which nothing is guessed of pictures."""


@dataclass(frozen=True, slots=True)
class Teacher:
    """A network, and a digest of the file that it came from."""

    network: Checkpoint | ClipNetwork
    digest: str


def load_teacher(path: Path) -> Teacher:
    """A checkpoint of either kind."""
    network = ClipNetwork(*load(path)) if is_stock(path) else load_checkpoint(path)
    return Teacher(network, hashlib.sha256(path.read_bytes()).hexdigest()[:12])


def taught(corpus: Corpus, data: Path, config: ModelConfig, teachers: Sequence[Teacher], cache: Path) -> Corpus:
    """The corpus with what teachers believe of each clip, as distributions over the labels of `config`.

    Args:
        corpus: training clips, read from `data`.
        data: the directory; read again by teachers that hear audio.
        config: whose labels; teachers must have the same ones, in any order.
        teachers: none leaves the corpus as it is.
        cache: folder in which verdicts are kept until the data changes, since a stock network takes its time.

    Raises:
        DataError: for a teacher of other labels, or where the directory is gone.
    """
    if not teachers:
        return corpus
    clips = len(corpus.pixels)
    total, voices = np.zeros((clips, len(config.labels)), np.float32), np.zeros(clips, np.float32)
    for teacher in teachers:
        theirs = teacher.network.config.labels
        if sorted(theirs) != sorted(config.labels):
            raise DataError(f"a teacher must know the labels {', '.join(config.labels)}; this one knows {theirs}")
        file = cache / f"verdicts-2-{teacher.digest}-{digest(data)}.npy"
        if not file.exists():
            _save(_verdicts(teacher.network, corpus, data), file)
        verdicts = np.load(file)[:, [theirs.index(label) for label in config.labels]]
        total += verdicts
        voices += verdicts.any(axis=1)
    unjudged = voices == 0
    total[unjudged, _labels(corpus, config)[unjudged]] = 1.0
    beliefs: Array = total / np.maximum(voices, 1)[:, None]
    return replace(corpus, beliefs=beliefs)


def _labels(corpus: Corpus, config: ModelConfig) -> NDArray[np.int64]:
    index = {word: i for i, word in enumerate(config.labels)}
    return np.array([index.get(word, index[UNKNOWN]) for word in corpus.words.tolist()])


def _verdicts(network: Checkpoint | ClipNetwork, corpus: Corpus, data: Path) -> Array:
    """Posteriors (n, K); zeros for a clip that cannot be judged."""
    if isinstance(network, ClipNetwork):
        return _stock_verdicts(network, corpus, data)
    bands = network.config.frontend.bands
    return posteriors_on(Network(network), DENSE, np.ascontiguousarray(corpus.pixels[:, :, :bands]))[0]


def _stock_verdicts(network: ClipNetwork, corpus: Corpus, data: Path) -> Array:
    """A stock network's posteriors of audio, and of pictures where audio enough tells what they sound like."""
    heard = np.stack([network.features(pad_clip(read_audio(item.data))) for item in _audio_clips(walk(data))])
    verdicts = np.zeros((len(corpus.raw), len(network.config.labels)), np.float32)
    verdicts[corpus.raw] = [softmax(network.logits(features)) for features in heard]
    if len(heard) >= LEAST_AUDIO and heard.shape[1] == CLIP_FRAMES:
        base = FRONTEND.base
        guess = fit(corpus.pixels[corpus.raw][..., :base], heard)
        guessed = guess.of(corpus.pixels[~corpus.raw][..., :base])
        verdicts[~corpus.raw] = [softmax(network.logits(features)) for features in guessed]
    return verdicts


def _save(verdicts: Array, file: Path) -> None:
    partial = file.with_name(file.name + ".part")
    with partial.open("wb") as stream:
        np.save(stream, verdicts)
    partial.replace(file)


def _audio_clips(items: Iterable[Item]) -> Iterable[Item]:
    """Training clips that are audio, in the corpus's order."""
    return (
        item
        for item in items
        if item.path.suffix in AUDIO and "_nohash_" in item.path.stem and split_of(item.speaker) == "training"
    )
