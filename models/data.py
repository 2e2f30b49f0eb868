"""Speech Commands, noise and pictures of log-mels: from folders or tar archives into one feature space.

A data directory is walked once; what a file is follows from its path alone, so the full public download,
its `.tar.gz`, and loose folders all read the same way, and so do an archive and what was unpacked beside it:

    .../<word>/<speaker>_nohash_<take>.{wav,flac,ogg,opus}   a clip
    .../<word>/<speaker>_nohash_<take>.jpg                   a clip as a picture: row = frame, column = band
    .../{_background_noise_,gsc_background,esc10}/<name>     noise
    .../running_speech/<name>                                sentences without keywords, see `models.make_speech`

Speakers, not clips, are split, by the published rule (Warden 2018): `split_of`. Knows nothing of networks.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePath, PurePosixPath
from typing import Any

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

from models.aside import aside
from models.config import FrontEndConfig
from models.features import Array, frames

AUDIO = frozenset({".wav", ".flac", ".ogg", ".opus"})
ARCHIVES = (".tar", ".tar.gz", ".tgz")
NOISE_FOLDERS = frozenset({"_background_noise_", "gsc_background", "esc10"})
SPEECH_FOLDER = "running_speech"
WORDLESS = NOISE_FOLDERS | {SPEECH_FOLDER}
"""Folders in which nothing is a clip of the word that they are called."""
TAKE = "_nohash_"
"""Between a speaker and a take in a clip's name."""
CLIP_SAMPLES = 16_000
CLIP_FRAMES = 98
LAST_SAMPLES = 8_000
"""Silence after a stream's last sample; nine words in ten are decided within 0.31 s of their end."""
FRONTEND = FrontEndConfig()
NOISE_TRAINING_SHARE = 0.8
READING = 6
"""How a directory is read; what was read in another way is read anew."""

SPLITS = ("training", "validation", "testing")


def is_audio(path: PurePath) -> bool:
    """Whether a file is a recording, going by its name's end, in capitals or not."""
    return path.suffix.lower() in AUDIO


class DataError(ValueError):
    """Data that cannot be used; the message says what was looked for and where."""


@dataclass(frozen=True, slots=True)
class Item:
    """One file of a data directory: its path inside it, and how to read it."""

    path: PurePosixPath
    data: bytes

    @property
    def word(self) -> str:
        """The folder's name, which is the label; of what lies in an archive in no folder, the archive's own."""
        folder = self.path.parent.name
        return next((folder[: -len(end)] for end in ARCHIVES if folder.lower().endswith(end)), folder)

    @property
    def speaker(self) -> str:
        """The speaker's id."""
        return self.path.stem.split(TAKE)[0]

    @property
    def is_clip(self) -> bool:
        """Whether it is named and placed as a clip is: one word, by somebody who is known."""
        return TAKE in self.path.stem and self.word not in WORDLESS

    def audio(self) -> Array:
        """What `read_audio` makes of it.

        Raises:
            DataError: naming it, when it cannot be decoded.
        """
        return read_audio(self.data, self.path)


def audio_clips(items: Iterable[Item], split: str) -> Iterator[Item]:
    """A split's clips that are audio, in their order."""
    return (item for item in items if is_audio(item.path) and item.is_clip and split_of(item.speaker) == split)


def split_of(speaker: str) -> str:
    """Training, validation or testing: SHA-1 of the speaker id modulo 2^27, as a percentage."""
    percentage = int(hashlib.sha1(speaker.encode(), usedforsecurity=False).hexdigest(), 16) % 2**27 * 100 / (2**27 - 1)
    return "validation" if percentage < 10 else "testing" if percentage < 20 else "training"


def walk(directory: Path) -> Iterator[Item]:
    """Every file below a directory, and inside the tar archives below it, in a stable order.

    What is there twice comes once: equal bytes under one name in folders of one name, such as an archive and what was
    unpacked from it.

    Raises:
        DataError: where there is no such directory, or an archive is broken.
    """
    seen = set()
    for item in _walk(directory):
        known = hashlib.sha256(repr((item.word, item.path.name)).encode())
        known.update(item.data)
        if known.digest() not in seen:
            seen.add(known.digest())
            yield item


def _walk(directory: Path) -> Iterator[Item]:
    """As `walk`, whatever is there twice."""
    for path in _files(directory):
        if _is_archive(path):
            yield from _unpack(path)
        else:
            yield Item(PurePosixPath(path.relative_to(directory).as_posix()), path.read_bytes())


def digest(directory: Path) -> str:
    """Names, sizes and times of change of what `walk` would read, as 12 hex digits: for other data, others.

    For another way of reading, too.

    Raises:
        DataError: where there is no such directory.
    """
    files = [(path.relative_to(directory).as_posix(), path.stat()) for path in _files(directory)]
    told = repr((READING, [(name, status.st_size, status.st_mtime_ns) for name, status in files]))
    return hashlib.sha256(told.encode()).hexdigest()[:12]


def _files(directory: Path) -> list[Path]:
    """Recordings, pictures and archives below a directory, in a stable order."""
    if not directory.is_dir():
        raise DataError(f"there is no folder {directory}: name one with Speech Commands clips or archives")
    files = sorted(path for path in directory.rglob("*") if path.is_file())
    return [path for path in files if _is_archive(path) or is_audio(path) or path.suffix.lower() == ".jpg"]


def _is_archive(path: PurePath) -> bool:
    return path.name.lower().endswith(ARCHIVES)


def _unpack(path: Path) -> Iterator[Item]:
    """Every file of one archive, in its own order."""
    try:
        with tarfile.open(path) as archive:
            for member in archive:
                if member.isfile() and (file := archive.extractfile(member)):
                    yield Item(PurePosixPath(path.name, member.name), file.read())
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise DataError(f"{path} is no whole archive ({error}); download it again") from error


def read_audio(source: Path | bytes, name: object = "the data") -> Array:
    """A recording as mono 16 kHz int16 values (S,), whatever its rate and channels; `name` is what bytes are called.

    Floats beyond full scale are clipped, as a server clips them.

    Raises:
        DataError: when there is no such file, no audio in it that can be decoded, or samples that are no numbers.
    """
    if isinstance(source, Path):
        try:
            return read_audio(source.read_bytes(), source)
        except OSError as error:
            raise DataError(f"{source}: {error.strerror}") from None
    try:
        samples, rate = soundfile.read(io.BytesIO(source), dtype="float32", always_2d=True)
    except soundfile.LibsndfileError as error:
        raise DataError(f"cannot decode {name}: {error.error_string}") from error
    if not np.isfinite(samples).all():
        raise DataError(f"{name} holds NaN or infinite samples")
    mono = np.clip(samples.mean(axis=1) * 32768.0, -32768.0, 32767.0)
    if rate != FRONTEND.sample_rate:
        mono = soxr.resample(mono, rate, FRONTEND.sample_rate)
    return mono.astype(np.float32)


def pad_clip(samples: Array) -> Array:
    """A clip of at most 1 s -> exactly 1 s, zeros on both sides; longer clips keep their middle second."""
    missing = CLIP_SAMPLES - len(samples)
    if missing < 0:
        start = -missing // 2
        return samples[start : start + CLIP_SAMPLES]
    return np.pad(samples, (missing // 2, missing - missing // 2))


def picture(data: bytes, name: object = "the data") -> NDArray[np.uint8]:
    """A log-mel picture -> pixels (98, `FRONTEND.base`): pictures end at 4 kHz; `name` is what it is called.

    Raises:
        DataError: when it is none, or one of another size.
    """
    from PIL import Image  # only training reads pictures

    try:
        pixels = np.asarray(Image.open(io.BytesIO(data)).convert("L"))
    except OSError:
        raise DataError(f"cannot decode {name}: no picture that is known") from None
    if pixels.shape != (CLIP_FRAMES, FRONTEND.base):
        raise DataError(f"{name}: a log-mel picture must be {(CLIP_FRAMES, FRONTEND.base)}, got {pixels.shape}")
    return pixels


@dataclass(frozen=True)
class Corpus:
    """Everything training needs, as pixels.

    pixels: (n, 98, M) uint8; words: n word names; raw: n bools, true for audio; a picture's treble is 0.
    beliefs: (n, K), posteriors of teachers for each clip, if there are any (`models.teachers`).
    noise: list of (T, M) uint8. speech: sentences end to end, (T, M) uint8; only training has any.
    """

    pixels: NDArray[np.uint8]
    words: NDArray[np.str_]
    raw: NDArray[np.bool_]
    noise: list[NDArray[np.uint8]]
    speech: NDArray[np.uint8] = field(default_factory=lambda: np.zeros((0, FRONTEND.bands), np.uint8))
    beliefs: Array | None = None


def load_corpus(directory: Path, split: str, cache: Path) -> Corpus:
    """Read one split of a data directory as pixels, once; later calls read `cache`, until the directory changes.

    Audio is rounded to whole grey levels like the pictures: half a level is far below their JPEG noise.

    Raises:
        DataError: where the directory holds no clip of that split.
    """
    file = cache / f"{split}-{digest(directory)}.npz"
    if not file.exists():
        cache.mkdir(parents=True, exist_ok=True)
        _write_corpus(walk(directory), split, file)
    with np.load(file) as stored:
        bounds = stored["noise_bounds"]
        noise = np.split(stored["noise"], bounds)
        return Corpus(stored["pixels"], stored["words"], stored["raw"], noise, stored["speech"])


def _write_corpus(items: Iterable[Item], split: str, file: Path) -> None:
    pixels, words, raw, noise, speech = [], [], [], [], []
    for item in items:
        if item.word in NOISE_FOLDERS and is_audio(item.path):
            noise.append(np.rint(frames(noise_part(item.audio(), split))).astype(np.uint8))
        elif item.word == SPEECH_FOLDER and is_audio(item.path) and split == "training":
            speech.append(np.rint(frames(item.audio())).astype(np.uint8))
        elif item.is_clip and split_of(item.speaker) == split:
            pixels.append(_pixels(item))
            words.append(item.word)
            raw.append(is_audio(item.path))
    if not pixels:
        wanted = "<word>/<speaker>_nohash_<take>.wav (or flac, ogg, opus, jpg)"
        raise DataError(f"no {split} clips found: expected {wanted}")
    arrays: dict[str, Any] = {
        "pixels": np.stack(pixels),
        "words": np.array(words),
        "raw": np.array(raw),
        "noise": _end_to_end(noise),
        "speech": _end_to_end(speech),
        "noise_bounds": np.cumsum([len(n) for n in noise], dtype=np.int64)[:-1],
    }
    with aside(file) as partial, partial.open("wb") as stream:
        np.savez(stream, **arrays)


def _pixels(item: Item) -> NDArray[np.uint8]:
    """A clip, or the picture of one, as pixels (98, M)."""
    if is_audio(item.path):
        return np.rint(frames(pad_clip(item.audio()))).astype(np.uint8)
    return np.pad(picture(item.data, item.path), ((0, 0), (0, FRONTEND.treble)))


def _end_to_end(recordings: list[NDArray[np.uint8]]) -> NDArray[np.uint8]:
    return np.concatenate([np.zeros((0, FRONTEND.bands), np.uint8), *recordings])


def noise_part(samples: Array, split: str) -> Array:
    """The part of a noise recording that a split may use: the first 80 % trains, the rest validates."""
    cut = int(len(samples) * NOISE_TRAINING_SHARE)
    return samples[:cut] if split == "training" else samples[cut:]
