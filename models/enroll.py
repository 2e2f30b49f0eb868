"""Keywords of one's own, from a few recordings and without training.

A keyword is the mean of its recordings' embeddings (`models.recordings`), and what sets them apart from others
(`models.contrast`). At every token the log-likelihood ratio of "this is the word of the recordings" to "this is some
other word, one of the network's own, silence, or a piece of running speech" (Ioffe 2006, with n recordings), less what
speaks against any keyword beforehand, and the contrast's log-odds are added and squeezed to 0..1. So a keyword is one
more column beside the posteriors, and detectors need not know where it came from.

Knows no socket, no stream and no clock. Letters: n recordings, E keywords, N tokens, C channels.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.background import Background
from models.config import ModelConfig
from models.contrast import contrast
from models.engines import AnyNetwork
from models.features import Array, frames
from models.recordings import embed_recording
from models.streams import SAMPLE_RATE, rms, spoken_span

MOST_RECORDINGS = 10
NAME = re.compile(r"[^\W_][\w' -]{0,31}")
SHORTEST_S, LONGEST_S = 0.3, 4.0
SHORTEST_WORD_S = 0.12
FAINTEST_RMS = 60.0
"""Root mean square of a word below which it is not there, int16 values: -55 dB below full scale."""
LOUDEST = 32_700.0
MOST_CLIPPED = 0.005
PRIOR, SURER = 0.33, 0.4
"""Odds against any keyword, and how they grow with the logarithm of the number of recordings: so averaged, a score of
0.5 is passed about once in an hour of running speech (streams of training speakers, 3, 5 and 10 recordings)."""
WINDOW_TOKENS = 8
"""Tokens over which detectors average, if they would average over more; a word's embedding does not last longer."""
SPAN_MS = (-380.0, 70.0)
"""Where a word begins and ends, from where its evidence rises (`models.spans`): medians of seven words by training
speakers, in noise, after five recordings."""
TEMPER, CONTRAST = 0.15, 0.3
"""Factors on the two: channels are no independent witnesses, and detectors shall average evidence, not verdicts."""
LEAST_AGREEMENT = -3.0
"""Log-likelihood ratio to the other recordings below which one is refused: twenty times likelier to be another word."""


class EnrolError(ValueError):
    """Recordings or a file that no keyword can be made of; the message says which and what to do."""


@dataclass(frozen=True, slots=True)
class EnrolledKeyword:
    """A keyword: its name, the network it belongs to, how many recordings, their mean embedding (C), and the contrast.

    The latter is `weights` (C + 1) of an embedding's channels and, last, a bias: another background has other
    coordinates, but embeddings stay what they are.
    """

    name: str
    fingerprint: str
    recordings: int
    prototype: tuple[float, ...]
    weights: tuple[float, ...]
    threshold: float = 0.5

    @property
    def rule(self) -> dict[str, Any]:
        """How detectors decide on it, as `Checkpoint.calibration` says it of keywords."""
        return {"threshold": self.threshold, "patience": 1, "window_tokens": WINDOW_TOKENS, "span_ms": SPAN_MS}

    def check_network(self, network: AnyNetwork) -> None:
        """Refuse another network's keyword.

        Raises:
            EnrolError: saying whose it is.
        """
        own = network.checkpoint.fingerprint
        sizes, c = (len(self.prototype), len(self.weights)), network.config.channels
        if self.fingerprint != own or sizes != (c, c + 1):
            said = f"was made with model {self.fingerprint}, this one is {own}: enrol it again from its recordings"
            raise EnrolError(f"keyword {self.name!r} {said}")


def enrol(
    network: AnyNetwork,
    background: Background,
    name: str,
    recordings: Sequence[tuple[str, Array]],
    point: str,
    threshold: float = 0.5,
) -> EnrolledKeyword:
    """Make a keyword of 1 to 10 recordings of it.

    Args:
        network: whose embeddings are used.
        background: of the same network.
        name: of the keyword.
        recordings: what each is called, and its samples (S,), int16 values, in which the word is said once.
        point: operating point that streams will be judged at.
        threshold: smoothed score that counts as a hit.

    Raises:
        EnrolError: naming the recording that is of no use, and why.
    """
    check_name(name, network.config)
    if not 1 <= len(recordings) <= MOST_RECORDINGS:
        raise EnrolError(f"a keyword is made of 1 to {MOST_RECORDINGS} recordings, not {len(recordings)}")
    for title, samples in recordings:
        check_recording(title, samples)
    embedded = np.stack([embed_recording(network, samples, point) for _, samples in recordings])
    projected = background.project(embedded.mean(axis=(1, 2)))
    check_agreement([title for title, _ in recordings], projected, background)
    return learn(name, network.checkpoint.fingerprint, embedded, background, threshold)


def learn(
    name: str, fingerprint: str, embedded: Array, background: Background, threshold: float = 0.5
) -> EnrolledKeyword:
    """Make a keyword of its recordings' embeddings (n, COPIES, len(SETTLE), C)."""
    n, c = len(embedded), embedded.shape[-1]
    scale = (1 / np.sqrt(background.between + 1)).astype(np.float32)
    own, others = (background.project(some) * scale for some in (embedded.reshape(n, -1, c), background.others))
    *slope, bias = contrast(own, others)
    channels = background.projection @ (scale * slope)
    linear = np.append(channels, bias - background.mean @ channels)
    prototype, weights = (
        tuple(round(float(value), 5) for value in array) for array in (embedded.mean(axis=(0, 1, 2)), linear)
    )
    return EnrolledKeyword(name, fingerprint, n, prototype, weights, threshold)


def check_name(name: str, config: ModelConfig) -> None:
    """Refuse names that cannot stand beside the network's labels.

    Raises:
        EnrolError: saying what is wrong with it.
    """
    if not NAME.fullmatch(name):
        raise EnrolError(
            f"{name!r} is no name for a keyword: up to 32 letters, digits, spaces, apostrophes and hyphens"
        )
    if name in config.labels:
        raise EnrolError(f"the model knows {name!r} already; choose another name")


def check_recording(title: str, samples: Array) -> None:
    """Refuse a recording that nothing can be learnt from.

    Raises:
        EnrolError: naming it, and what to do.
    """
    seconds = len(samples) / SAMPLE_RATE
    if seconds < SHORTEST_S:
        raise EnrolError(f"{title} is too short ({seconds:.2f} s): record the word with a little silence around it")
    if seconds > LONGEST_S:
        raise EnrolError(
            f"{title} is too long ({seconds:.1f} s): say the word once, and cut to {LONGEST_S:g} s or less"
        )
    start, end = spoken_span(samples)
    if rms(samples[start:end]) < FAINTEST_RMS or np.ptp(frames(samples).mean(axis=1)) < 1.0:
        raise EnrolError(f"{title} is silent: check the microphone, and record it again")
    if (end - start) / SAMPLE_RATE < SHORTEST_WORD_S:
        raise EnrolError(f"{title} holds a click rather than a word: record it again")
    clipped = float((np.abs(samples[start:end]) >= LOUDEST).mean())
    if clipped > MOST_CLIPPED:
        raise EnrolError(
            f"{title} is clipped ({clipped:.1%} of the word): turn the microphone down and record it again"
        )


def check_agreement(titles: Sequence[str], projected: Array, background: Background) -> None:
    """Refuse a recording that sounds more like any other word than like the rest (n, C); two cannot tell which.

    Raises:
        EnrolError: naming the one that agrees least.
    """
    n = len(projected)
    if n < 2:
        return
    others = (projected.sum(axis=0) - projected) / (n - 1)
    scores = [
        float(ratio(one[None], other[None], np.array([n - 1]), background)[0, 0])
        for one, other in zip(projected, others, strict=True)
    ]
    worst = int(np.argmin(scores))
    if scores[worst] < LEAST_AGREEMENT:
        which = titles[worst] if n > 2 else f"{titles[0]} or {titles[1]}"
        raise EnrolError(f"{which} does not sound like the same word as the rest: listen to it, or record it again")


def ratio(projected: Array, prototypes: Array, counts: NDArray[np.int64], background: Background) -> Array:
    """Log-likelihood ratio of each keyword to everything else.

    Args:
        projected: coordinates (N, C).
        prototypes: means (E, C) of the keywords' recordings, in the same coordinates.
        counts: recordings of each keyword, (E,).
        background: its variances and rivals.

    Returns:
        (N, E).
    """
    between, n = background.between, counts[:, None]
    known = n * between / (n * between + 1)
    same = _normal(projected, known * prototypes, 1 + between / (n * between + 1))
    rivals = _normal(projected, background.rivals, np.ones_like(background.rivals))
    anything = _normal(projected, np.zeros((1, len(between)), np.float32), (1 + between)[None])
    away = projected - background.speech
    distance = ((away @ background.speech_precision) * away).sum(axis=1, keepdims=True)
    speech = -0.5 * (distance + background.speech_volume)
    return same - np.logaddexp.reduce(np.concatenate((anything, rivals, speech), axis=1), axis=1)[:, None]


def _normal(x: Array, means: Array, variances: Array) -> Array:
    """Logarithms of normal densities, without their constant: (N, C), (R, C), (R, C) -> (N, R)."""
    precisions = 1 / variances
    squares = x**2 @ precisions.T - 2 * x @ (means * precisions).T + (means**2 * precisions).sum(axis=1)
    return -0.5 * (squares + np.log(variances).sum(axis=1))


class Spotting:
    """Enrolled keywords on one network: embeddings in, a column 0..1 for each keyword out. Const."""

    def __init__(self, background: Background, keywords: Sequence[EnrolledKeyword]) -> None:
        self.keywords = tuple(keywords)
        self._background = background
        self._counts = np.array([keyword.recordings for keyword in keywords], np.int64)
        self._prototypes = background.project(np.array([keyword.prototype for keyword in keywords], np.float32))
        weights = np.array([keyword.weights for keyword in keywords], np.float32)
        self._weights = weights[:, :-1].T
        self._bias = CONTRAST * weights[:, -1] - PRIOR - SURER * np.log(self._counts)

    def scores(self, embeddings: Array) -> Array:
        """Embeddings (N, C) -> (N, E), 0..1."""
        ratios = ratio(self._background.project(embeddings), self._prototypes, self._counts, self._background)
        odds = TEMPER * ratios + CONTRAST * (embeddings @ self._weights) + self._bias
        return (1 / (1 + np.exp(np.clip(-odds, -30, 30)))).astype(np.float32)
