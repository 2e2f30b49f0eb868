"""What other networks make of the training clips: soft targets (Hinton et al. 2015), which doubt what is doubtful.

A teacher is a checkpoint of ours, which judges every clip as pixels, or a stock Keyword Transformer, which judges those
that are audio. Where several judge a clip, it is their mean that is believed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from models.aside import aside
from models.checkpoint import DENSE, Checkpoint, load_checkpoint
from models.config import ModelConfig
from models.data import Corpus, DataError, audio_clips, digest, pad_clip, walk
from models.features import Array
from models.headers import digest_of
from models.kwt_clip import ClipNetwork
from models.kwt_weights import is_stock, load
from models.network import Network
from models.validation import posteriors_on


@dataclass(frozen=True, slots=True)
class Teacher:
    """A network, and a digest of the file that it came from."""

    network: Checkpoint | ClipNetwork
    digest: str


def load_teacher(path: Path) -> Teacher:
    """A checkpoint of either kind."""
    network = ClipNetwork(*load(path)) if is_stock(path) else load_checkpoint(path)
    return Teacher(network, digest_of(path))


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
        file = cache / f"verdicts-{teacher.digest}-{digest(data)}.npy"
        if not file.exists():
            with aside(file) as partial, partial.open("wb") as stream:
                np.save(stream, _verdicts(teacher.network, corpus, data))
        judged = np.flatnonzero(corpus.raw) if isinstance(teacher.network, ClipNetwork) else np.arange(clips)
        total[judged] += np.load(file)[:, [theirs.index(label) for label in config.labels]]
        voices[judged] += 1
    unjudged = voices == 0
    total[unjudged, config.indices(corpus.words[unjudged].tolist())] = 1.0
    beliefs: Array = total / np.maximum(voices, 1)[:, None]
    return replace(corpus, beliefs=beliefs)


def _verdicts(network: Checkpoint | ClipNetwork, corpus: Corpus, data: Path) -> Array:
    """Posteriors (n, K): of every clip, or of those that are audio."""
    if isinstance(network, ClipNetwork):
        return np.stack([network.judge(pad_clip(item.audio())) for item in audio_clips(walk(data), "training")])
    bands = network.config.frontend.bands
    return posteriors_on(Network(network), DENSE, np.ascontiguousarray(corpus.pixels[:, :, :bands]))[0]
