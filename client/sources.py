"""Where audio comes from: files, and pipes. Each source is an async iterable of 16 kHz s16le mono blocks.

Microphones are in client/microphone.py, since they need PortAudio. Knows no server.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import BinaryIO, Final

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from client.errors import SourceError

SAMPLE_RATE: Final = 16_000
BLOCK_MS: Final = 30
BLOCK_BYTES: Final = SAMPLE_RATE * BLOCK_MS // 1_000 * 2
FULL_SCALE: Final = 32_768.0

Array = NDArray[np.float32]


class Resampler:
    """Floats of full scale 1 at some rate, any number of channels, in any split -> s16le bytes at 16 kHz, mono."""

    def __init__(self, rate: int) -> None:
        """Take audio of `rate` Hz."""
        self._stream = None if rate == SAMPLE_RATE else soxr.ResampleStream(rate, SAMPLE_RATE, 1, "float32", "LQ")

    def feed(self, block: Array, *, last: bool = False) -> bytes:
        """(samples, channels) -> bytes that are ready; all the rest if `last`."""
        mono = block.mean(axis=1, dtype=np.float32)
        if self._stream is not None:
            mono = self._stream.resample_chunk(mono, last=last)
        scaled = np.clip(mono * FULL_SCALE, -FULL_SCALE, FULL_SCALE - 1)
        return bytes(np.rint(scaled).astype("<i2").data)


def read_audio(path: Path | str) -> Iterator[bytes]:
    """A file (WAV, FLAC, OGG, MP3, ...) of any rate -> s16le blocks of about a second.

    Raises:
        SourceError: if there is no such file, or it is no audio.
    """
    try:
        with soundfile.SoundFile(path) as file:
            resampler = Resampler(file.samplerate)
            while len(block := file.read(file.samplerate, dtype="float32", always_2d=True)):
                yield resampler.feed(block)
            yield resampler.feed(np.zeros((0, 1), np.float32), last=True)
    except soundfile.LibsndfileError as error:
        reason = error.error_string if Path(path).exists() else "there is no such file"
        raise SourceError(f"{path}: {reason}") from None


async def file_blocks(path: Path | str, speed: float = 1.0) -> AsyncIterator[bytes]:
    """A file in blocks of 30 ms, each when a microphone would have it.

    Args:
        path: the file.
        speed: times real time; 0 for as fast as it is taken.

    Raises:
        SourceError: if there is no such file, or it is no audio.
    """
    clock = asyncio.get_running_loop().time
    start, sent = clock(), 0
    async for block in split_blocks(read_audio(path)):
        if speed:
            sent += len(block)
            await asyncio.sleep(start + sent / (2 * SAMPLE_RATE * speed) - clock())
        yield block


async def split_blocks(pieces: Iterator[bytes]) -> AsyncIterator[bytes]:
    """Bytes in any split -> blocks of 30 ms, and a shorter last one."""
    rest = b""
    for piece in pieces:
        rest += piece
        whole = len(rest) // BLOCK_BYTES * BLOCK_BYTES
        for start in range(0, whole, BLOCK_BYTES):
            yield rest[start : start + BLOCK_BYTES]
        rest = rest[whole:]
    if rest:
        yield rest


async def pipe_blocks(pipe: BinaryIO, rate: int = SAMPLE_RATE) -> AsyncIterator[bytes]:
    """Raw s16le mono samples from a pipe, as they come.

    Args:
        pipe: such as `sys.stdin.buffer`.
        rate: of the samples, Hz.

    Raises:
        SourceError: for a WAV file, whose header is no sound.
    """
    resampler, rest, first = Resampler(rate), b"", True
    while data := await asyncio.to_thread(pipe.read1, 2 * rate):  # type: ignore[attr-defined]  # buffered readers have it
        if first and data.startswith(b"RIFF"):
            raise SourceError(
                "this is a WAV file; pipe raw samples, such as: ffmpeg -i FILE -f s16le -ar 16000 -ac 1 -"
            )
        data, first = rest + data, False
        rest = data[len(data) // 2 * 2 :]
        samples = np.frombuffer(data[: len(data) // 2 * 2], "<i2")
        yield resampler.feed(samples[:, None].astype(np.float32) / np.float32(FULL_SCALE))
    yield resampler.feed(np.zeros((0, 1), np.float32), last=True)


def level_db(block: bytes) -> float:
    """Root mean square of s16le samples, dB below full scale; -100 for silence."""
    samples = np.frombuffer(block, "<i2").astype(np.float32)
    power = float(np.mean(samples**2)) if len(samples) else 0.0
    return max(10 * float(np.log10(power / FULL_SCALE**2 + 1e-10)), -100.0)
