"""Bytes -> samples: float32, int16 values (-32768..32767), 16 kHz, mono.

`Decoder` eats a stream of raw bytes in any split, odd byte counts included; `clip_blocks` eats a whole file.
Knows nothing of sessions and frames.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from typing import Final

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from models.data import pad_clip
from service.errors import UnsupportedAudio
from service.protocol import Encoding, TooLong

Array = NDArray[np.float32]

SAMPLE_RATE: Final = 16_000
FULL_SCALE: Final = 32_768.0
S16LE, F32LE = np.dtype("<i2"), np.dtype("<f4")
CLIP_RATES: Final = (4_000, 192_000)
"""Lowest and highest rate of a file, Hz: with a limit on its seconds, they bound the memory of one block."""
CLIP_CHANNELS: Final = 8
UNRECOGNISED: Final = 1
"""libsndfile's number for a file of no format that it knows."""
READ: Final = (
    " WAV, FLAC, OGG, MP3 and AIFF are read; ffmpeg -i FILE clip.flac makes one of others, such as M4A and WebM; "
    "bare samples need encoding=s16le or the like"
)

RESAMPLER: Final = "MQ"
"""soxr's recipe. The network hears up to 7.6 kHz; this one is flat to 7, where a cheaper one is down by 13 dB."""


def _expand_mulaw() -> Array:
    """ITU-T G.711 mu-law: 256 codes -> int16 values."""
    code = ~np.arange(256, dtype=np.uint8)
    sign, exponent, mantissa = code & 0x80, (code >> 4) & 7, (code & 15).astype(np.int32)
    magnitude = ((2 * mantissa + 33) << exponent) - 33
    return np.where(sign, -4 * magnitude, 4 * magnitude).astype(np.float32)


def _expand_alaw() -> Array:
    """ITU-T G.711 A-law: 256 codes -> int16 values."""
    code = np.arange(256, dtype=np.uint8) ^ 0x55
    sign, exponent, mantissa = code & 0x80, ((code >> 4) & 7).astype(np.int32), (code & 15).astype(np.int32)
    magnitude = np.where(exponent == 0, 2 * mantissa + 1, (2 * mantissa + 33) << np.maximum(exponent - 1, 0))
    return np.where(sign, 8 * magnitude, -8 * magnitude).astype(np.float32)


_TABLES: Final = {Encoding.MULAW: _expand_mulaw(), Encoding.ALAW: _expand_alaw()}
_WIDTH: Final = {Encoding.S16LE: 2, Encoding.F32LE: 4, Encoding.MULAW: 1, Encoding.ALAW: 1}


class Decoder:
    """One stream's bytes -> samples.

    Attributes:
        samples: whole samples per channel received so far, at the stream's own rate.
    """

    def __init__(self, encoding: Encoding = Encoding.S16LE, channels: int = 1, sample_rate: int = SAMPLE_RATE) -> None:
        self.encoding, self.channels, self.sample_rate = encoding, channels, sample_rate
        self.samples = 0
        self._frame = _WIDTH[encoding] * channels
        self._resampler = _resampler(sample_rate)
        self._rest = b""

    def feed(self, data: bytes) -> Array:
        """Take any number of bytes; return the samples (S,) that are ready, S >= 0.

        Raises:
            UnsupportedAudio: for float samples that are no finite numbers.
        """
        if self._rest:
            data = self._rest + data
        whole = len(data) // self._frame * self._frame
        data, self._rest = data[:whole], data[whole:]
        mono = self._mono(data)
        self.samples += len(mono)
        return mono if self._resampler is None else _resample(self._resampler, mono)

    def flush(self) -> Array:
        """Return what the resampler still holds; half a sample is forgotten. The next byte starts afresh."""
        self._rest = b""
        if self._resampler is None:
            return np.zeros(0, np.float32)
        tail = _resample(self._resampler, np.zeros(0, np.float32), last=True)
        self._resampler.clear()
        return tail

    def _mono(self, data: bytes) -> Array:
        """Whole interleaved samples -> (S,), channels averaged."""
        if self.encoding is Encoding.S16LE:
            values = np.frombuffer(data, S16LE).astype(np.float32)
        elif self.encoding is Encoding.F32LE:
            values = _int16_values(np.frombuffer(data, F32LE))
        else:
            values = _TABLES[self.encoding][np.frombuffer(data, np.uint8)]
        return values if self.channels == 1 else values.reshape(-1, self.channels).mean(axis=1, dtype=np.float32)


def clip_blocks(data: bytes, max_seconds: float) -> Iterator[Array]:
    """A whole file (WAV, FLAC, OGG, MP3, ...) -> blocks of samples (S,), about a second each.

    Memory is bounded by a block whatever a header promises, and time by `max_seconds` of audio.

    Raises:
        UnsupportedAudio: for bytes that are no audio file, or a rate or channel count beyond the limits.
        TooLong: as soon as more than `max_seconds` have been decoded.
    """
    try:
        with _Forward(io.BytesIO(data)) as file:
            yield from _blocks(file, max_seconds)
    except soundfile.LibsndfileError as error:
        advice = READ if error.code == UNRECOGNISED else ""
        raise UnsupportedAudio(f"not an audio file that can be read: {error.error_string}{advice}") from None


class _Forward(soundfile.SoundFile):  # type: ignore[misc]  # untyped
    """A file in which soundfile does not seek, as it would after every block: the decoder of MP3 complains of it."""

    def seekable(self) -> bool:
        """Whether soundfile may move about."""
        return False


def _blocks(file: soundfile.SoundFile, max_seconds: float) -> Iterator[Array]:
    rate, low, high = file.samplerate, *CLIP_RATES
    if not low <= rate <= high or file.channels > CLIP_CHANNELS:
        raise UnsupportedAudio(
            f"{rate} Hz with {file.channels} channels; {low} to {high} Hz and up to {CLIP_CHANNELS} channels are read"
        )
    resampler = _resampler(rate)
    decoded = 0
    while len(block := file.read(rate, dtype="float32", always_2d=True)):
        decoded += len(block)
        if decoded > max_seconds * rate:
            raise TooLong(f"the clip is longer than {max_seconds:g} s")
        mono = _int16_values(block.mean(axis=1, dtype=np.float32))
        yield mono if resampler is None else _resample(resampler, mono)
    if resampler is not None:
        yield _resample(resampler, np.zeros(0, np.float32), last=True)


class Recording:
    """A recording's blocks (S,); one of less than a second gets silence around it, as the network has learned them.

    Attributes:
        samples: of the recording itself, so far.
    """

    def __init__(self, blocks: Iterator[Array]) -> None:
        self._blocks = blocks
        self.samples = 0

    def __iter__(self) -> Iterator[Array]:
        """Blocks for a stream, the first of at least a second; none at all of an empty recording."""
        first: list[Array] = []
        for block in self._blocks:
            self.samples += len(block)
            first.append(block)
            if self.samples >= SAMPLE_RATE:
                yield np.concatenate(first)
                break
        else:
            if self.samples:
                yield pad_clip(np.concatenate(first))
        for block in self._blocks:
            self.samples += len(block)
            yield block

    @property
    def seconds(self) -> float:
        """How long it is."""
        return self.samples / SAMPLE_RATE

    def place(self, at_s: float) -> float:
        """Where in the recording a place of its stream is, s."""
        return min(max(0.0, at_s - max(0, SAMPLE_RATE - self.samples) // 2 / SAMPLE_RATE), self.seconds)


class Recent:
    """The newest part of a stream, as s16le, for clips of it; positions are samples since the stream began."""

    def __init__(self) -> None:
        self._end = 0
        self._pcm = bytearray()  # forgets its front and takes more at its end without a copy of the rest

    def feed(self, samples: Array, end: int, oldest: int) -> None:
        """Take the next samples (S,), int16 values, up to position `end`; forget all before position `oldest`."""
        self._end = end
        self._pcm += np.clip(samples, -FULL_SCALE, FULL_SCALE - 1).astype(S16LE).tobytes()  # a resampler overshoots
        del self._pcm[: self._place(oldest)]

    def cut(self, start_s: float, end_s: float) -> str:
        """Base64 of the samples from `start_s` to `end_s`, as far as they are still here."""
        begin, end = (self._place(round(seconds * SAMPLE_RATE)) for seconds in (start_s, end_s))
        return base64.b64encode(self._pcm[begin:end]).decode()

    def _place(self, position: int) -> int:
        """Where in the bytes that are here a position is."""
        return max(0, S16LE.itemsize * (position - self._end) + len(self._pcm))


def _int16_values(values: Array) -> Array:
    """Floats of full scale 1 -> int16 values; louder ones are clipped."""
    if not np.isfinite(values).all():
        raise UnsupportedAudio("the audio holds NaN or infinite samples")
    return np.minimum(np.clip(values, -1, 1) * FULL_SCALE, FULL_SCALE - 1).astype(np.float32)


def _resampler(rate: int) -> soxr.ResampleStream | None:
    if rate == SAMPLE_RATE:
        return None
    return soxr.ResampleStream(rate, SAMPLE_RATE, 1, dtype="float32", quality=RESAMPLER)


def _resample(resampler: soxr.ResampleStream, samples: Array, *, last: bool = False) -> Array:
    resampled: Array = resampler.resample_chunk(samples, last=last)
    return resampled
