"""What a keyword is learnt from: recordings of it, and copies of them as other speakers in other rooms might sound.

A recording is clean, a stream is not, and five speakers are few. Copies at other paces (with the pitch that goes with
them), in synthetic noise of any colour and at other levels tell what of an embedding is the word. Knows no background.
"""

from __future__ import annotations

import numpy as np
import soxr

from models.background import SETTLE, at_moments, embed_tokens
from models.engines import AnyNetwork
from models.features import Array
from models.offline import tokens_of
from models.streams import SAMPLE_RATE, rms, spoken_span

COPIES = 12
FAITHFUL = 3
"""Every so many copies, one keeps the recording's own pace."""
PACE = (0.87, 1.15)
SNR_DB = (0.0, 25.0)
GAIN_DB = (-12.0, 6.0)
STEEPEST = 1.2
"""Exponent of the frequency by which a noise's spectrum falls, at most; 0 is white."""
LEAD, TAIL = 5, SETTLE[-1] + 3
"""Tokens of noise before a recording, and after its word."""


def embed_recording(network: AnyNetwork, samples: Array, point: str) -> Array:
    """A recording (S,) of one word -> embeddings of copies of it, shortly after the word (COPIES, len(SETTLE), C)."""
    token, random = network.config.token_samples, np.random.default_rng(0)
    made = [_copy(samples, token, number % FAITHFUL == 0, random) for number in range(COPIES)]
    longest = max(len(copy) for copy, _ in made)
    tokens = np.stack([tokens_of(network.config, np.pad(copy, (0, longest - len(copy)))) for copy, _ in made])
    return at_moments(embed_tokens(network, point, tokens), np.array([end for _, end in made]))


def _copy(samples: Array, token: int, faithful: bool, random: np.random.Generator) -> tuple[Array, int]:
    """One copy in noise (S,), and the token at which its word has ended."""
    pace = 1.0 if faithful else random.uniform(*PACE)
    said = soxr.resample(samples, SAMPLE_RATE, SAMPLE_RATE * pace).astype(np.float32)
    start, end = spoken_span(said)
    loud = rms(said[start:end])
    copy = np.pad(said[: end + token], (LEAD * token, TAIL * token))
    copy += noise(len(copy), random) * np.float32(loud / 10 ** (random.uniform(*SNR_DB) / 20))
    return copy * np.float32(10 ** (random.uniform(*GAIN_DB) / 20)), LEAD + end // token


def noise(length: int, random: np.random.Generator) -> Array:
    """Noise (S,) between white and steeper than pink, of unit power."""
    khz = np.fft.rfftfreq(length, 1_000 / SAMPLE_RATE)
    slope = (khz + 0.02) ** -random.uniform(0, STEEPEST)
    coloured = np.fft.irfft(np.fft.rfft(random.normal(size=length)) * slope, length)
    return (coloured / np.sqrt(np.mean(coloured**2))).astype(np.float32)
