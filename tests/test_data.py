"""Reading recordings: the same clips from folders and archives, speakers split by the published rule."""

from __future__ import annotations

import io
import os
import tarfile
from collections import Counter
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from models.config import ModelConfig
from models.data import (
    CLIP_SAMPLES,
    SPEECH_FOLDER,
    DataError,
    load_corpus,
    noise_part,
    pad_clip,
    picture,
    read_audio,
    split_of,
    walk,
)
from models.evaluate import cut_silence, read_clips
from models.evaluate_sets import gather_material
from service.audio import clip_blocks

TRAINING, VALIDATION, TESTING = "0a7c2a8d", "026290a7", "0c40e715"
"""Speakers of the public data, in the split that its own lists name for them."""
RATE = 16_000


def wav(samples: np.ndarray, rate: int = RATE, container: str = "WAV") -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, samples, rate, format=container, subtype=None if container == "OGG" else "PCM_16")
    return stream.getvalue()


def jpeg(pixels: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "JPEG", quality=95)
    return stream.getvalue()


def tone(seconds: float = 1.0, hz: float = 440) -> np.ndarray:
    return 0.5 * np.sin(2 * np.pi * hz * np.arange(int(seconds * RATE)) / RATE)


FILES = {
    f"yes/{TRAINING}_nohash_0.wav": wav(tone()),
    f"yes/{VALIDATION}_nohash_1.wav": wav(tone(0.7)),
    f"bed/{TRAINING}_nohash_0.FLAC": wav(tone(0.9), container="FLAC"),
    f"training/no/{TRAINING}_nohash_3.JPG": jpeg(np.full((98, 40), 100, np.uint8)),
    f"no/{TESTING}_nohash_0.wav": wav(tone()),
    "_background_noise_/white_noise.WAV": wav(tone(5.0, 3000)),
    "_background_noise_/README.md": b"where the noise comes from",
    "validation_list.txt": b"yes/026290a7_nohash_1.wav\n",
}


def as_folder(root: Path) -> None:
    for name, data in FILES.items():
        path = root / "speech_commands_v0.02" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)


def as_archive(root: Path, mode: str, prefix: str = "") -> None:
    with tarfile.open(root / f"data.{mode}", "w:gz" if mode.endswith("gz") else "w") as archive:
        for name, data in FILES.items():
            member = tarfile.TarInfo(prefix + name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


LAYOUTS = {
    "folder": as_folder,
    "tar": lambda root: as_archive(root, "tar"),
    "TAR": lambda root: as_archive(root, "TAR"),
    "tar.gz": lambda root: as_archive(root, "tar.gz", "./"),
    "tgz": lambda root: as_archive(root, "tgz", "speech_commands_v0.02/"),
}


@pytest.fixture(params=LAYOUTS)
def data(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    LAYOUTS[request.param](folder)
    return folder


def test_every_layout_holds_the_same_clips(data: Path) -> None:
    found = {(item.word, item.path.name): item.data for item in walk(data) if item.path.suffix not in {".md", ".txt"}}
    wanted = {tuple(name.split("/")[-2:]): content for name, content in FILES.items()}
    assert found == {key: content for key, content in wanted.items() if not key[-1].endswith((".md", ".txt"))}


def test_an_archive_of_one_folder_packed_without_it_is_that_folder(tmp_path: Path) -> None:
    """Its sentences would not be trained with but judged by, its keywords would be other words."""
    said = {"yes": tone(0.8), "_background_noise_": tone(5.0, 3000), SPEECH_FOLDER: tone(2.0)}
    for folder, samples in said.items():
        recording, member = wav(samples), tarfile.TarInfo(f"./{TRAINING}_nohash_0.wav")
        member.size = len(recording)
        with tarfile.open(tmp_path / f"{folder}.{'tar.gz' if folder == 'yes' else 'tar'}", "w") as archive:
            archive.addfile(member, io.BytesIO(recording))
    (tmp_path / SPEECH_FOLDER).mkdir()
    (tmp_path / SPEECH_FOLDER / f"{TRAINING}_nohash_0.wav").write_bytes(wav(said[SPEECH_FOLDER]))  # unpacked, too
    corpus = load_corpus(tmp_path, "training", tmp_path / "cache")
    assert (corpus.words.tolist(), len(corpus.speech)) == (["yes"], 198)
    assert [len(noise) for noise in corpus.noise] == [398]
    assert [stream.name for stream in gather_material(walk(tmp_path)).speech] == []


def test_endings_in_capitals_are_those_of_recordings_wherever_they_are_judged(data: Path) -> None:
    config = ModelConfig()
    assert len(read_clips(walk(data), config, "training").samples) == 2
    assert len(cut_silence(walk(data), config).samples) == 1
    material = gather_material(walk(data), "training")
    assert sorted(clip.word for clip in material.clips) == ["bed", "yes"]
    assert [len(noise) for noise in material.noise] == [4 * RATE]


@pytest.mark.parametrize("prefix", ["", "./", "speech_commands_v0.02/"])
def test_an_archive_beside_what_was_unpacked_from_it_is_read_once(tmp_path: Path, prefix: str) -> None:
    """While recordings of one name in another folder, and others in a folder of that name, are their own."""
    as_folder(tmp_path)
    as_archive(tmp_path, "tar.gz", prefix)
    taken_anew = tmp_path / "more" / "yes" / f"{TRAINING}_nohash_0.wav"
    mislaid = tmp_path / "more" / "no" / f"{TRAINING}_nohash_0.wav"
    for path, seconds in ((taken_anew, 0.8), (mislaid, 1.0)):
        path.parent.mkdir(parents=True)
        path.write_bytes(wav(tone(seconds)))
    corpus = load_corpus(tmp_path, "training", tmp_path / "cache")
    assert sorted(corpus.words) == ["bed", "no", "no", "yes", "yes"]
    assert len(corpus.noise) == 1


def test_order_is_stable(data: Path) -> None:
    assert [item.path for item in walk(data)] == [item.path for item in walk(data)]


def test_corpus_is_the_same_from_every_layout(data: Path, tmp_path: Path) -> None:
    training, validation = (load_corpus(data, split, tmp_path / "cache") for split in ("training", "validation"))
    assert sorted(training.words) == ["bed", "no", "yes"]
    assert dict(zip(training.words.tolist(), training.raw.tolist(), strict=True)) == {
        "yes": True, "bed": True, "no": False,
    }  # fmt: skip
    assert validation.words.tolist() == ["yes"]
    assert training.pixels.shape == (3, 98, 48)
    picture_of_no = training.pixels[training.words == "no"]
    assert abs(int(picture_of_no[..., :40].mean()) - 100) <= 1
    assert not picture_of_no[..., 40:].any()
    assert [noise.shape for noise in training.noise] == [((4 * RATE - 480) // 160 + 1, 48)]
    assert [noise.shape for noise in validation.noise] == [((RATE - 480) // 160 + 1, 48)]


def tear(data: Path) -> None:
    """Make every file below a directory unreadable as what it is, in a way that its size and time do not tell."""
    for path in filter(Path.is_file, data.rglob("*")):
        status = path.stat()
        path.write_bytes(bytes(status.st_size))
        os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def test_corpus_is_read_once(data: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    first = load_corpus(data, "training", cache)
    tear(data)
    second = load_corpus(data, "training", cache)
    np.testing.assert_array_equal(first.pixels, second.pixels)
    assert [path.suffix for path in cache.iterdir()] == [".npz"]


def test_data_that_changed_is_read_again(tmp_path: Path) -> None:
    """Files that were added, replaced or taken away, and a cache that lies within the data."""
    as_folder(tmp_path)
    root = tmp_path / "speech_commands_v0.02"

    def loaded() -> tuple[list[str], int]:
        corpus = load_corpus(tmp_path, "training", tmp_path / "cache")
        return sorted(corpus.words), len(corpus.speech)

    assert loaded() == loaded() == (["bed", "no", "yes"], 0)
    (root / "yes" / f"{TRAINING}_nohash_7.wav").write_bytes(wav(tone()))
    (root / SPEECH_FOLDER).mkdir()
    sentence = root / SPEECH_FOLDER / "000001.wav"
    sentence.write_bytes(wav(tone(2.0)))
    assert loaded() == (["bed", "no", "yes", "yes"], 198)
    status = sentence.stat()
    sentence.write_bytes(wav(tone(1.0)).ljust(status.st_size, b"\0"))
    os.utime(sentence, ns=(status.st_atime_ns, status.st_mtime_ns + 1))
    assert loaded() == (["bed", "no", "yes", "yes"], 98)
    (root / "bed" / f"{TRAINING}_nohash_0.FLAC").unlink()
    assert loaded() == (["no", "yes", "yes"], 98)


@pytest.mark.parametrize(
    ("speaker", "split"), [(TRAINING, "training"), (VALIDATION, "validation"), (TESTING, "testing")]
)
def test_speakers_of_the_public_lists(speaker: str, split: str) -> None:
    assert split_of(speaker) == split


def test_one_speaker_in_ten_validates_and_one_tests() -> None:
    shares = Counter(split_of(f"{n:08x}") for n in range(20_000))
    assert shares["validation"] == pytest.approx(2000, abs=200)
    assert shares["testing"] == pytest.approx(2000, abs=200)


def test_splits_of_the_recordings_beside_us(shared_data: Path) -> None:
    """The archives were split by the published lists; so the rule must put each speaker where the archive has it."""
    for archive, split in (
        ("speech_commands_validation_flac", "validation"),
        ("speech_commands_train_opus_0", "training"),
    ):
        with tarfile.open(shared_data / f"{archive}.tar") as members:
            names = [Path(member.name).name for member in islice(members, 2000) if "_nohash_" in member.name]
        assert len(names) > 1000
        assert {split_of(name.split("_nohash_")[0]) for name in names} == {split}


@given(st.integers(0, 40_000))
def test_padded_clip_lasts_a_second_with_the_recording_in_its_middle(length: int) -> None:
    samples = np.arange(1, length + 1, dtype=np.float32)
    clip = pad_clip(samples)
    assert len(clip) == CLIP_SAMPLES
    if length <= CLIP_SAMPLES:
        before = (CLIP_SAMPLES - length) // 2
        np.testing.assert_array_equal(clip[before : before + length], samples)
        assert np.count_nonzero(clip) == length
    else:
        assert (np.diff(clip) == 1).all()
        assert abs((clip[0] - 1) - (length - clip[-1])) <= 1


@pytest.mark.parametrize("container", ["WAV", "FLAC", "OGG"])
@pytest.mark.parametrize("rate", [8_000, 16_000, 44_100, 48_000])
def test_audio_is_read_at_its_own_pitch_and_level(container: str, rate: int) -> None:
    t = np.arange(rate) / rate
    heard = read_audio(wav(0.5 * np.sin(2 * np.pi * 440 * t), rate, container))
    assert len(heard) == pytest.approx(RATE, abs=2)
    middle = heard[4000:12000]
    assert np.abs(middle).max() == pytest.approx(0.5 * 32768, rel=0.03)
    spectrum = np.abs(np.fft.rfft(middle))
    assert spectrum.argmax() * RATE / len(middle) == pytest.approx(440, abs=3)


def test_channels_are_mixed_down(tmp_path: Path) -> None:
    stereo = np.stack((tone(), -tone() / 2), axis=1)
    (tmp_path / "stereo.wav").write_bytes(wav(stereo))
    np.testing.assert_allclose(read_audio(tmp_path / "stereo.wav"), tone() / 4 * 32768, atol=1.5)


def test_int16_values_come_back_exactly() -> None:
    values = np.array([-32768, -1, 0, 1, 32767], np.int16)
    np.testing.assert_array_equal(read_audio(wav(values)), values)


@pytest.mark.parametrize("rubbish", [b"", b"RIFF", b"this is no audio" * 100])
def test_what_is_no_audio_is_refused(rubbish: bytes) -> None:
    with pytest.raises(DataError, match=r"^cannot decode the data: [^<]*$"):
        read_audio(rubbish)


def test_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    for path, reason in ((tmp_path / "none.wav", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(DataError) as caught:
            read_audio(path)
        assert str(caught.value) == f"{path}: {reason}"


def test_picture_of_another_size_is_refused() -> None:
    with pytest.raises(DataError, match=r"\(98, 40\)"):
        picture(jpeg(np.zeros((40, 98), np.uint8)))


@pytest.mark.parametrize("suffix", ["wav", "jpg"])
def test_broken_clip_is_named(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "yes").mkdir()
    (tmp_path / "yes" / f"{TRAINING}_nohash_0.{suffix}").write_bytes(b"torn")
    with pytest.raises(DataError, match=rf"^cannot decode yes/{TRAINING}_nohash_0.{suffix}: [^<]*$"):
        load_corpus(tmp_path, "training", tmp_path / "cache")


@pytest.mark.parametrize("mode", ["tar", "tar.gz"])
@pytest.mark.parametrize("keep", [0, 700, 3000])
def test_broken_archive_is_named(tmp_path: Path, mode: str, keep: int) -> None:
    as_archive(tmp_path, mode)
    archive = tmp_path / f"data.{mode}"
    archive.write_bytes(archive.read_bytes()[:keep])
    with pytest.raises(DataError, match=rf"data\.{mode}"):
        list(walk(tmp_path))


def test_folder_that_is_absent_or_empty_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"there is no folder .*absent"):
        next(walk(tmp_path / "absent"))
    with pytest.raises(DataError, match="no training clips"):
        load_corpus(tmp_path, "training", tmp_path / "cache")
    assert not list((tmp_path / "cache").iterdir())


def floats(*values: float) -> bytes:
    stream = io.BytesIO()
    soundfile.write(stream, np.array(values), RATE, format="WAV", subtype="FLOAT")
    return stream.getvalue()


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_samples_that_are_no_numbers_are_refused_by_name(tmp_path: Path, value: float) -> None:
    path = tmp_path / "broken.wav"
    path.write_bytes(floats(0.1, value, 0.1))
    with pytest.raises(DataError, match=r"broken\.wav holds NaN or infinite samples"):
        read_audio(path)


def test_floats_beyond_full_scale_are_clipped_as_a_server_does() -> None:
    data = floats(0.5, 1.5, -3.0)
    np.testing.assert_array_equal(read_audio(data), [16384, 32767, -32768])
    np.testing.assert_array_equal(read_audio(data), np.concatenate(list(clip_blocks(data, 1))))


def test_noise_is_cut_once() -> None:
    samples = np.arange(1000, dtype=np.float32)
    np.testing.assert_array_equal(
        np.concatenate([noise_part(samples, split) for split in ("training", "validation")]), samples
    )
