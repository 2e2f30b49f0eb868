"""Log-mel front end: 16 kHz samples in, frames out. Its past is an argument, its clock is the sample.

Framing: 480 samples (30 ms) every 160 (10 ms), periodic Hann, 512-point real FFT, power; triangular filters
of peak 1 without area normalisation, 40 evenly spaced over 0..4000 Hz in HTK mel (m = 2595 log10(1 + f / 700)) and
8 wider ones over 4000..7600 Hz; then

    pixel = clip(10 ln(1 + E / 480), 0, 255),   network input = pixel / 64 - 1.

Samples carry int16 *values* (-32768..32767) in float32. Knows nothing of files, rates or sessions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from models import spectrum
from models.config import FrontEndConfig, ModelConfig

Array = NDArray[np.float32]
BYTES = 4
"""Of a sample, as float32."""

ENERGY_FLOOR = 480.0
"""Mel energy that counts as 1 inside the logarithm."""
PIXEL_MAX = 255.0
SILENT = -1.0
"""Network input of a silent band: pixel 0."""
PIXELS = spectrum.Scale(np.float32(ENERGY_FLOOR), np.float32(PIXEL_MAX), unit=np.float32(1), zero=np.float32(0))
INPUT = PIXELS._replace(unit=np.float32(1 / 64), zero=np.float32(SILENT))
"""What the compiled front end writes: pixels, or what `network_input` makes of them."""


def hz_to_mel(hz: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """HTK mel scale."""
    return 2595.0 * np.log10(1.0 + np.asarray(hz, dtype=np.float64) / 700.0)


def mel_to_hz(mel: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of `hz_to_mel`."""
    return 700.0 * (10.0 ** (np.asarray(mel, dtype=np.float64) / 2595.0) - 1.0)


@lru_cache
def mel_filters(config: FrontEndConfig) -> Array:
    """Triangular filters, peak 1, each from its lower neighbour's peak to its upper one's: (fft / 2 + 1, bands)."""
    low, high, top = hz_to_mel(np.array([config.low_hz, config.high_hz, config.top_hz]))
    base, treble = np.linspace(low, high, config.base + 2), np.linspace(high, top, config.treble + 1)
    edges = mel_to_hz(np.concatenate((base, treble[1:])))
    bins = np.arange(config.fft // 2 + 1) * config.sample_rate / config.fft
    lower, centre, upper = edges[:-2], edges[1:-1], edges[2:]
    rising = (bins[:, None] - lower) / (centre - lower)
    falling = (upper - bins[:, None]) / (upper - centre)
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


@lru_cache
def hann(config: FrontEndConfig) -> Array:
    """Periodic Hann window: (window,)."""
    n = np.arange(config.window)
    return (0.5 - 0.5 * np.cos(2 * np.pi * n / config.window)).astype(np.float32)


@lru_cache
def _plan(config: FrontEndConfig) -> spectrum.Plan:
    return spectrum.plan(hann(config), mel_filters(config))


def _energies(samples: Array, starts: NDArray[np.int64], config: FrontEndConfig, scale: spectrum.Scale) -> Array:
    """The windows of samples (S,) that begin at `starts` (R,) -> log-mel energies (R, bands) on a scale."""
    energies = np.empty((len(starts), config.bands), np.float32)
    spectrum.log_mel(samples, starts, _plan(config), scale, energies)
    return energies


def compress(energies: Array) -> Array:
    """Mel energies -> pixels 0..255 (real-valued); what the compiled front end does by itself."""
    return np.clip(10.0 * np.log1p(energies / ENERGY_FLOOR), 0.0, PIXEL_MAX)


def expand(pixels: Array) -> Array:
    """Inverse of `compress` below the clip."""
    return ENERGY_FLOOR * np.expm1(pixels / 10.0)


def network_input(pixels: Array) -> Array:
    """Pixels -> network input, about -1..3."""
    return pixels / 64.0 - 1.0


@dataclass(slots=True)  # not frozen: that takes thrice the time, ten times a second for every stream
class Tokens:
    """Whole tokens of one stream, as the samples that their windows share.

    Attributes:
        data: these, as float32's bytes: joining and cutting a few hundred arrays takes longer than what is in them.
        count: tokens, at least 0.
        step: samples from a token's beginning to the next one's.
    """

    data: bytes
    count: int
    step: int

    def __len__(self) -> int:
        """How many tokens these are."""
        return self.count

    def __getitem__(self, part: slice) -> Tokens:
        """Some of these tokens, next to each other."""
        begin, end, _ = part.indices(self.count)
        size = self.step * BYTES
        shared = len(self.data) - self.count * size
        return Tokens(self.data[begin * size : end * size + shared], end - begin, self.step)

    def then(self, following: Tokens) -> Tokens:
        """These tokens and those that the same stream gave next, if there are any."""
        if not following.count:
            return self  # it brings no samples, and these end with windows of their own
        before = self.data[: self.count * self.step * BYTES]
        return Tokens(before + following.data, self.count + following.count, self.step)


def log_mel(parts: Sequence[Tokens], config: ModelConfig) -> Array:
    """Tokens of any number of streams -> network input (N, stride, bands), in the same order.

    The interpreter's lock is let go of once, for the energies: numpy would do so, and wait for it again, at every part
    and in every operation on them, which under a busy event loop takes longer than everything else here.
    """
    frontend = config.frontend
    samples = np.frombuffer(b"".join([part.data for part in parts]), np.float32)
    counts = np.array([part.count for part in parts], np.int64)
    lengths = np.array([len(part.data) for part in parts], np.int64) // BYTES
    starts = np.empty((int(counts.sum()), config.stride), np.int64)
    spectrum.place_windows(counts, lengths, config.token_samples, frontend.hop, starts)
    return _energies(samples, starts.reshape(-1), frontend, INPUT).reshape(*starts.shape, frontend.bands)


def frames(samples: Array) -> Array:
    """Whole windows of a recording (S,), int16 values, as pixels.

    Returns:
        (T, bands) with T = 1 + (S - window) // hop, or no rows where S < window.
    """
    config = FrontEndConfig()
    if len(samples) < config.window:
        return np.zeros((0, config.bands), np.float32)
    starts = np.arange(0, len(samples) - config.window + 1, config.hop)
    return _energies(np.ascontiguousarray(samples, np.float32), starts, config, PIXELS)


class FrameStream:
    """Cuts one stream of samples into whole tokens; eats any split.

    What it remembers is the samples that a later window still needs, as bytes.
    """

    def __init__(self, config: ModelConfig) -> None:
        self._config = config
        self._token_samples = config.token_samples
        self._overlap = config.frontend.window - config.frontend.hop
        self.reset()

    def reset(self) -> None:
        """Back to the start of a stream."""
        self._held = b""
        self._seen = 0  # how many of these samples an earlier token held already

    def feed(self, samples: Array) -> Tokens:
        """Take samples (S,), int16 values; return the tokens now complete, if any."""
        held = self._held + np.asarray(samples, np.float32).tobytes()
        tokens = max(0, len(held) // BYTES - self._overlap) // self._token_samples
        begin = tokens * self._token_samples * BYTES
        self._held = held[begin:]
        self._seen = self._overlap if tokens else self._seen
        return Tokens(held[: begin + self._overlap * BYTES if tokens else 0], tokens, self._token_samples)

    def flush(self) -> Tokens:
        """What is left: zeros are added up to the end of the token that holds the newest sample.

        Returns:
            No tokens when nothing was fed since the last whole one.
        """
        held = len(self._held) // BYTES
        if held == self._seen:
            return self.feed(np.zeros(0, np.float32))
        missing = self._config.tokens_over(held) * self._token_samples + self._overlap - held
        return self.feed(np.zeros(missing, np.float32))
