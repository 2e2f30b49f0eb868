"""What words in general look like to a network: the background against which enrolled keywords are told apart.

Probabilistic linear discriminant analysis (Ioffe 2006) of the read-out's embeddings (C): in projected coordinates,
recordings of one word scatter around the word's mean with unit variance, and words around zero with variance
`between`. Words played backwards and the halves of two (`models.splices`) are words that nobody has said, and count as
such: the more words, the better the directions that tell words apart are known, and enrolled ones are always new.
Running speech, which is words and parts of words without end, is kept beside it, as a mean and a covariance over all
its tokens; and, for what is close to a keyword (`models.contrast`), some single embeddings as they are.

Fitted on training speakers, through the compiled network; stored in the checkpoint. Knows no recording and no stream.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import Checkpoint
from models.config import SILENCE, ModelConfig
from models.data import CLIP_FRAMES, FRONTEND, SPEECH_FOLDER, Corpus, DataError
from models.engines import AnyNetwork
from models.features import Array, compress, expand, network_input
from models.network import Network
from models.splices import spliced
from models.streams import spoken_frames

SETTLE = (2, 5, 8, 11, 14)
"""Tokens after a word's end at which it is looked at: while the read-out still sees all of it."""
PER_WORD = 150
PER_SPLICE = 10
OTHERS = 2_000
"""Embeddings of words, and as many of running speech, that are kept as they are (`models.contrast`)."""
LEAD, TAIL = 15, 46
"""Frames of background before and after a clip; stem and `SETTLE` must find room in the latter."""
SHRINKAGE = 0.02
"""Share of the mean variance that is added to every direction of the scatter within words."""
LEAST_BETWEEN = 0.05
"""Least variance between words, in every direction: those in which known words agree may tell new ones apart."""
SPEECH_S = 1_800.0
PIECE, BEGINNING = 128, 20
"""Tokens of a piece that begins a stream, and those of its beginning that are not counted."""
LEAST_SPEECH = 1_000
"""Tokens of running speech without which a covariance would be a guess."""
SNR_DB = (0.0, 25.0)
GAIN_DB = (-12.0, 6.0)
BATCH = 64


class NoBackground(ValueError):
    """A checkpoint without a background, or with one that lacks a part."""


@dataclass(frozen=True, slots=True)
class Embedded:
    """Embeddings of words in noise, from the moments of `SETTLE`: vectors (n, len(SETTLE), C), and their n words.

    singles (m, C) are of any moment, before a word, in it or after.
    """

    vectors: Array
    words: NDArray[np.str_]
    singles: Array


@dataclass(frozen=True, slots=True)
class Background:
    """How embeddings of words are spread.

    mean (C,), projection (C, C) and between (C,) as above. Projected: rivals (R, C), means of the keywords and of
    silence; of running speech the mean, speech (C,), the inverse of the covariance, speech_precision (C, C), and the
    logarithm of its determinant, speech_volume (1,). Not projected: others (O, C), single embeddings of words and
    speech.
    """

    mean: Array
    projection: Array
    between: Array
    rivals: Array
    speech: Array
    speech_precision: Array
    speech_volume: Array
    others: Array

    @classmethod
    def of(cls, checkpoint: Checkpoint) -> Self:
        """The one that a checkpoint carries.

        Raises:
            NoBackground: saying how to make one.
        """
        stored = checkpoint.background
        if not stored:
            raise NoBackground("this checkpoint cannot enrol keywords: `deltaspot model background` makes it able to")
        names = cls.__dataclass_fields__
        if missing := set(names) - set(stored):
            raise NoBackground(f"the checkpoint's background lacks {sorted(missing)}: `deltaspot model background`")
        return cls(**{name: stored[name] for name in names})

    def arrays(self) -> Mapping[str, Array]:
        """As `Checkpoint.background` keeps it."""
        return asdict(self)

    def project(self, embeddings: Array) -> Array:
        """Embeddings (..., C) -> coordinates (..., C) in which words scatter by 1."""
        return ((embeddings - self.mean) @ self.projection).astype(np.float32, copy=False)


def fit(embedded: Embedded, speech: Array, config: ModelConfig) -> Background:
    """Fit a background to words in noise, and to the tokens of running speech (N, C)."""
    _, moments, c = embedded.vectors.shape
    vectors, names = embedded.vectors.reshape(-1, c).astype(np.float64), np.unique(embedded.words)
    words = np.repeat(embedded.words, moments)
    mean = vectors.mean(axis=0)
    means = np.stack([vectors[words == name].mean(axis=0) for name in names])
    within = np.zeros((c, c))
    for name, centre in zip(names, means, strict=True):
        rest = vectors[words == name] - centre
        within += rest.T @ rest / len(vectors)
    within += SHRINKAGE * np.trace(within) / c * np.eye(c)
    whiten = np.linalg.inv(np.linalg.cholesky(within)).T
    spread, turn = np.linalg.eigh(whiten.T @ np.cov(means.T) @ whiten)
    projection = whiten @ turn
    rivals = [mean_ for name, mean_ in zip(names, means, strict=True) if name in {*config.keywords, SILENCE}]
    running = (speech.astype(np.float64) - mean) @ projection
    spread_of_speech = np.cov(running.T)
    random = np.random.default_rng(0)
    others = [random.permutation(some)[:OTHERS] for some in (embedded.singles, speech)]
    arrays = (
        mean,
        projection,
        np.maximum(spread, LEAST_BETWEEN),
        (np.array(rivals).reshape(-1, c) - mean) @ projection,
        running.mean(axis=0),
        np.linalg.inv(spread_of_speech),
        np.array([np.linalg.slogdet(spread_of_speech)[1]]),
        np.concatenate(others).astype(np.float16),  # as checkpoints keep it
    )
    return Background(*(array.astype(np.float32) for array in arrays))


def embed_all_words(network: Network, corpus: Corpus, point: str) -> Embedded:
    """The words of a corpus, and splices of them."""
    said = embed_words(network, corpus, point)
    made = embed_words(network, spliced(corpus, PER_SPLICE, np.random.default_rng(0)), point, per_word=PER_SPLICE)
    vectors, words = np.concatenate((said.vectors, made.vectors)), np.concatenate((said.words, made.words))
    return Embedded(vectors, words, said.singles)


def embed_words(network: Network, corpus: Corpus, point: str, per_word: int = PER_WORD) -> Embedded:
    """Up to `per_word` clips of every word of a corpus, forwards and backwards, in its noise, and noise alone.

    Audio comes first; a picture's scene is one over a telephone, with nothing above 4 kHz.
    """
    random = np.random.default_rng(0)
    chosen = []
    for word in np.unique(corpus.words):
        drawn = random.permutation(np.flatnonzero(corpus.words == word))
        chosen.append(drawn[np.argsort(~corpus.raw[drawn], kind="stable")][:per_word])
    clips = [(int(i), backwards) for i in np.concatenate(chosen) for backwards in (False, True)]
    clips += [(-1, False)] * per_word
    noise = [one for one in corpus.noise if len(one) >= LEAD + CLIP_FRAMES + TAIL]
    vectors, words, singles = [], [], []
    for start in range(0, len(clips), BATCH):
        made = [_scene(corpus, noise, i, backwards, random) for i, backwards in clips[start : start + BATCH]]
        pooled = _embed(network, point, np.stack([frames for frames, _ in made]))
        vectors.append(at_moments(pooled, np.array([end for _, end in made]) // network.config.stride))
        singles.append(pooled[np.arange(len(made)), random.integers(BEGINNING, pooled.shape[1], len(made))])
        words += [_name(corpus, i, backwards) for i, backwards in clips[start : start + BATCH]]
    return Embedded(np.concatenate(vectors), np.array(words), np.concatenate(singles))


def embed_speech(network: Network, corpus: Corpus, point: str) -> Array:
    """Running speech of a corpus, as far as that, in the midst of streams and at their beginnings.

    Returns:
        The embedding of each token, (N, C): first of all in a row, then of pieces that each begin a stream.

    Raises:
        DataError: where there is none.
    """
    stride = network.config.stride
    tokens = min(len(corpus.speech), int(SPEECH_S * 100)) // stride // PIECE * PIECE
    if tokens < LEAST_SPEECH:
        raise DataError(f"no running speech: name a folder that has {SPEECH_FOLDER}/, as `models/make_speech.py` makes")
    frames = network_input(corpus.speech[: tokens * stride].astype(np.float32)).reshape(tokens, stride, -1)
    pieces = frames.reshape(-1, PIECE, *frames.shape[1:])
    parts = [embed_tokens(network, point, frames[None])[0]]
    for start in range(0, len(pieces), BATCH):
        fresh = embed_tokens(network, point, pieces[start : start + BATCH])
        parts.append(fresh[:, BEGINNING:].reshape(-1, fresh.shape[2]))
    return np.concatenate(parts)


def embed_tokens(network: AnyNetwork, point: str, frames: Array) -> Array:
    """Streams of equal length (B, N, stride, bands), each from an empty past -> embeddings (B, N, C)."""
    count, tokens = frames.shape[:2]
    cache = network.new_cache(count, point)
    _, pooled = network.embed(cache, np.arange(count), frames.reshape(-1, *frames.shape[2:]), np.full(count, tokens))
    return pooled.reshape(count, tokens, -1)


def _name(corpus: Corpus, clip: int, backwards: bool) -> str:
    return SILENCE if clip < 0 else f"{corpus.words[clip]}{' backwards' if backwards else ''}"


def _scene(
    corpus: Corpus, noise: list[NDArray[np.uint8]], clip: int, backwards: bool, random: np.random.Generator
) -> tuple[Array, int]:
    """One clip in noise as network input (T, bands), and the frame at which the word has ended."""
    frames = LEAD + CLIP_FRAMES + TAIL
    energies, end, loud = np.zeros((frames, corpus.pixels.shape[2]), np.float32), LEAD + CLIP_FRAMES, 1e4
    if clip >= 0:
        pixels = corpus.pixels[clip, :: -1 if backwards else 1].astype(np.float32)
        spoken = spoken_frames(pixels)
        energies[LEAD : LEAD + CLIP_FRAMES] = expand(pixels)
        end, loud = LEAD + int(spoken[-1]) + 1, float(energies[LEAD + spoken].sum(axis=1).mean())
    if noise:
        one = noise[int(random.integers(len(noise)))]
        first = int(random.integers(len(one) - frames + 1))
        heard = expand(one[first : first + frames].astype(np.float32))
        energies += heard * (loud / max(float(heard.sum(axis=1).mean()), 1.0) / 10 ** (random.uniform(*SNR_DB) / 10))
    if clip >= 0 and not corpus.raw[clip]:
        energies[:, FRONTEND.base :] = 0.0
    return network_input(compress(energies * np.float32(10 ** (random.uniform(*GAIN_DB) / 10)))), end


def _embed(network: Network, point: str, frames: Array) -> Array:
    """Scenes (B, T, bands) -> embeddings by token (B, N, C)."""
    stride = network.config.stride
    tokens = frames.shape[1] // stride
    cut = frames[:, : tokens * stride].reshape(len(frames), tokens, stride, -1)
    return embed_tokens(network, point, cut)


def at_moments(pooled: Array, ends: NDArray[np.int64]) -> Array:
    """Embeddings by token (B, N, C) -> those at `SETTLE` after each word's last token (B,): (B, len(SETTLE), C)."""
    places = np.minimum(ends[:, None] + np.array(SETTLE), pooled.shape[1] - 1)
    picked: dict[str, Any] = {"axis": 1}
    return np.take_along_axis(pooled, places[..., None], **picked)
