"""Where audio comes from: files, and pipes. A source is an async iterable of s16le mono blocks, and says their `rate`.

The server resamples, so a source keeps the rate that it has. Microphones are in client/microphone.py, since they need
PortAudio. Knows no server, and needs no numpy: a client's installation is small.
"""

from __future__ import annotations

import asyncio
import math
import operator
import sys
from array import array
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import Future
from functools import partial
from pathlib import Path
from threading import Thread
from typing import BinaryIO, Final, Protocol

import miniaudio

from client.errors import SourceError

RATES: Final = (8_000, 48_000)
"""Lowest and highest rate that `configure.sample_rate` may have, Hz."""
SAMPLE_RATE: Final = 16_000
BLOCK_MS: Final = 30
FULL_SCALE: Final = 32_768.0

FORMATS: Final = (
    miniaudio.wav_get_file_info,
    miniaudio.flac_get_file_info,
    miniaudio.vorbis_get_file_info,
    miniaudio.mp3_get_file_info,
)

DETECT: Final = "`deltaspot detect`"
"""What reads all that libsndfile does."""

MAGIC: Final = {b"RIFF": "WAV", b"fLaC": "FLAC", b"OggS": "OGG", b"ID3": "MP3"}
"""First bytes of files that somebody may pipe by mistake."""


class Source(Protocol):
    """What can be streamed: `connect(url, sample_rate=source.rate)`, then `play(source)`."""

    rate: int

    def __aiter__(self) -> AsyncIterator[bytes]:
        """Blocks of s16le mono samples."""


class AudioFile:
    """A recording (WAV, FLAC, MP3, OGG Vorbis) in blocks of 30 ms, each when a microphone would have it.

    Attributes:
        rate: of the blocks, Hz: the file's own, or the nearest that the protocol allows.
    """

    def __init__(self, path: Path | str, speed: float = 1.0) -> None:
        """Look at the file's head.

        Args:
            path: the file.
            speed: times real time; 0 for as fast as it is taken.

        Raises:
            SourceError: if there is no such file, or it is no audio.
        """
        self._path, self._speed = str(path), speed
        head = _head(Path(path))
        self.rate = min(max(head.sample_rate, RATES[0]), RATES[1])
        self._channels = head.nchannels if head.nchannels > 2 else 1  # what miniaudio mixes of more is noise
        self._stated_s = head.num_frames / head.sample_rate

    def __iter__(self) -> Iterator[bytes]:
        """All blocks at once; the last one may be shorter.

        Raises:
            SourceError: after the last block, if the file's head promised more, or there was none.
        """
        size, heard_s = block_samples(self.rate), 0.0
        channels = self._channels
        for block in miniaudio.stream_file(self._path, nchannels=channels, sample_rate=self.rate, frames_to_read=size):
            samples = mixed(block, channels)
            heard_s += len(samples) / self.rate
            yield le_bytes(samples)
        if not heard_s:
            raise SourceError(f"{self._path} holds no audio")
        if heard_s < self._stated_s - BLOCK_MS / 1_000:  # resampling may cost a few samples
            raise SourceError(
                f"{self._path} ends after {heard_s:.1f} s of {self._stated_s:.1f} s: it was cut or is broken"
            )

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Blocks at the pace that was asked for."""
        clock = asyncio.get_running_loop().time
        start, sent = clock(), 0
        for block in self:
            if self._speed:
                sent += len(block)
                await asyncio.sleep(start + sent / (2 * self.rate * self._speed) - clock())
            yield block


class Pipe:
    """Raw s16le mono samples from a pipe, as they come."""

    def __init__(self, pipe: BinaryIO, rate: int = SAMPLE_RATE) -> None:
        """Take a pipe, such as `sys.stdin.buffer`, and the rate of its samples, Hz."""
        self.rate = rate
        raw = getattr(pipe, "raw", None)  # Python cannot end while a thread reads through a buffer
        self._read: Callable[[int], bytes] = raw.read if raw else pipe.read1  # type: ignore[attr-defined]  # whatever has no `raw` has it

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Whole samples, until the pipe ends; half a one at its end is forgotten.

        Raises:
            SourceError: for a file of some format, whose bytes are no samples.
        """
        rest, first = b"", True
        while data := await _aside(partial(self._read, 2 * self.rate)):
            if first and (kind := next((kind for magic, kind in MAGIC.items() if data.startswith(magic)), None)):
                raise SourceError(
                    f"this is a file, {kind}; pipe raw samples, such as: ffmpeg -i FILE -f s16le -ar 16000 -ac 1 -"
                )
            data, first = rest + data, False
            whole = len(data) // 2 * 2
            rest = data[whole:]
            yield data[:whole]


def block_samples(rate: int) -> int:
    """Samples of a block of 30 ms at a rate, Hz."""
    return rate * BLOCK_MS // 1_000


def level_db(block: bytes) -> float:
    """Root mean square of s16le samples, dB below full scale; -100 for silence."""
    samples = samples_of(block)
    power = sum(map(operator.mul, samples, samples)) / max(len(samples), 1)
    return max(10 * math.log10(power / FULL_SCALE**2 + 1e-10), -100.0)


def samples_of(block: bytes) -> array[int]:
    """Bytes of s16le -> samples."""
    samples = array("h", block)
    if sys.byteorder == "big":
        samples.byteswap()
    return samples


def le_bytes(samples: array[int]) -> bytes:
    """Inverse of `samples_of`."""
    if sys.byteorder == "big":
        samples = samples[:]
        samples.byteswap()
    return samples.tobytes()


def mixed(samples: array[int], channels: int) -> array[int]:
    """Interleaved samples of several channels -> their mean."""
    if channels == 1:
        return samples
    return array("h", [total // channels for total in map(sum, zip(*[iter(samples)] * channels, strict=True))])


async def _aside(read: Callable[[], bytes]) -> bytes:
    """What a function returns, called on a thread that nobody has to wait for: a pipe may be silent for ever."""
    done: Future[bytes] = Future()
    done.set_running_or_notify_cancel()

    def work() -> None:
        try:
            done.set_result(read())
        except Exception as error:  # noqa: BLE001 (whoever waits is told)
            done.set_exception(error)

    Thread(target=work, daemon=True).start()
    return await asyncio.wrap_future(done)


def _head(path: Path) -> miniaudio.SoundFileInfo:
    """What a recording's head says; its format is told by its first bytes and not by its name."""
    if path.is_dir():
        raise SourceError(f"{path} is a folder, not a recording")
    if not path.exists():
        raise SourceError(f"{path}: there is no such file")
    if not path.is_file():
        raise SourceError(
            f"{path} is a pipe or a device, not a recording; `deltaspot listen -` reads raw samples from it"
        )
    for look in FORMATS:
        try:
            head = look(str(path))
        except miniaudio.DecodeError:
            continue
        if head.file_format is miniaudio.FileFormat.VORBIS and head.nchannels > 2:  # miniaudio loses some of them
            raise SourceError(f"{path}: OGG Vorbis of {head.nchannels} channels cannot be streamed; {DETECT} reads it")
        return head
    raise SourceError(f"{path} is no WAV, FLAC, MP3 or OGG Vorbis file; {DETECT} reads Opus and AIFF, too")
