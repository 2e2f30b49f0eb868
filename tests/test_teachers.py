"""Teachers: clips are judged by whoever can, labels are matched by name, and the mean is believed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from PIL import Image

from models.checkpoint import Checkpoint, save
from models.config import ModelConfig
from models.data import Corpus, DataError, load_corpus
from models.kwt import KWT
from models.kwt_weights import KWTConfig
from models.kwt_weights import save as save_stock
from models.teachers import Teacher, load_teacher, taught
from models.transformer import StreamingKWT

LABELS = ("_silence_", "_unknown_", "yes", "no")
SHUFFLED = ("no", "_unknown_", "yes", "_silence_")
CONFIG = ModelConfig(channels=32, heads=2, layers=1, hidden=32, span=16, labels=LABELS)
SPEAKER = "0a7c2a8d"


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two words as audio, one as a picture."""
    random = np.random.default_rng(0)
    for word in ("yes", "bed"):
        (tmp_path / "data" / word).mkdir(parents=True)
        soundfile.write(tmp_path / "data" / word / f"{SPEAKER}_nohash_0.wav", random.normal(0, 0.1, 16_000), 16_000)
    (tmp_path / "data" / "no").mkdir()
    Image.fromarray(random.integers(0, 200, (98, 40)).astype(np.uint8)).save(
        tmp_path / "data" / "no" / f"{SPEAKER}_nohash_1.jpg"
    )
    return tmp_path / "data"


@pytest.fixture
def corpus(data: Path, tmp_path: Path) -> Corpus:
    return load_corpus(data, "training", tmp_path / "cache")


def ours(path: Path, labels: tuple[str, ...] = LABELS, seed: int = 0) -> Teacher:
    """A random network that says something else of every clip."""
    config = ModelConfig(channels=32, heads=2, layers=1, hidden=32, span=16, labels=labels)
    torch.manual_seed(seed)
    weights = {name: tensor.numpy() for name, tensor in StreamingKWT(config).state_dict().items()}
    save(Checkpoint(config, weights), path)
    return load_teacher(path)


def stock(path: Path) -> Teacher:
    torch.manual_seed(0)
    config = KWTConfig(labels=LABELS, channels=16, layers=1, hidden=32)
    weights = {name: tensor.numpy() for name, tensor in KWT(config).state_dict().items()}
    weights["frontend.scale"] = np.ones_like(weights["frontend.scale"])
    save_stock(path, config, weights)
    return load_teacher(path)


def test_without_teachers_nothing_is_believed(corpus: Corpus, data: Path, tmp_path: Path) -> None:
    assert taught(corpus, data, CONFIG, [], tmp_path).beliefs is None


def test_our_own_network_judges_every_clip(corpus: Corpus, data: Path, tmp_path: Path) -> None:
    beliefs = taught(corpus, data, CONFIG, [ours(tmp_path / "a")], tmp_path).beliefs
    assert beliefs.shape == (3, 4)
    np.testing.assert_allclose(beliefs.sum(axis=1), 1.0, atol=1e-5)
    assert len({tuple(row) for row in beliefs.tolist()}) == 3


def test_labels_are_matched_by_name(corpus: Corpus, data: Path, tmp_path: Path) -> None:
    """The same random weights call the same column by another name."""
    plain = taught(corpus, data, CONFIG, [ours(tmp_path / "a")], tmp_path).beliefs
    renamed = taught(corpus, data, CONFIG, [ours(tmp_path / "b", SHUFFLED)], tmp_path).beliefs
    np.testing.assert_allclose(renamed, plain[:, [SHUFFLED.index(label) for label in LABELS]], atol=1e-6)


def test_stock_network_judges_audio_and_labels_stand_for_the_rest(corpus: Corpus, data: Path, tmp_path: Path) -> None:
    beliefs = taught(corpus, data, CONFIG, [stock(tmp_path / "kwt")], tmp_path).beliefs
    picture = corpus.words.tolist().index("no")
    np.testing.assert_array_equal(beliefs[picture], np.eye(4)[LABELS.index("no")])
    assert (beliefs[corpus.raw].max(axis=1) < 1).all()


def test_a_stock_network_judges_no_sentence_that_is_named_as_a_clip(data: Path, tmp_path: Path) -> None:
    """Such as running speech of which each sentence is called after its speaker."""
    alone = taught(load_corpus(data, "training", tmp_path), data, CONFIG, [stock(tmp_path / "kwt")], tmp_path).beliefs
    (data / "running_speech").mkdir()
    noise = np.random.default_rng(1).normal(0, 0.1, 16_000)
    soundfile.write(data / "running_speech" / f"{SPEAKER}_nohash_0.wav", noise, 16_000)
    Image.new("L", (40, 98)).save(data / "running_speech" / f"{SPEAKER}_nohash_1.jpg")
    corpus = load_corpus(data, "training", tmp_path)
    assert corpus.words.tolist() == ["bed", "no", "yes"]
    np.testing.assert_array_equal(taught(corpus, data, CONFIG, [stock(tmp_path / "kwt")], tmp_path).beliefs, alone)


def test_the_mean_of_several_is_believed_where_several_judge(corpus: Corpus, data: Path, tmp_path: Path) -> None:
    one, other = ours(tmp_path / "a"), stock(tmp_path / "kwt")
    first, second, both = (
        taught(corpus, data, CONFIG, who, tmp_path).beliefs for who in ([one], [other], [one, other])
    )
    np.testing.assert_allclose(both[corpus.raw], (first + second)[corpus.raw] / 2, atol=1e-6)
    np.testing.assert_array_equal(both[~corpus.raw], first[~corpus.raw])


def rewrite(clip: Path, content: bytes, later_ns: int) -> None:
    """Put something else in a clip's place, so much later."""
    status = clip.stat()
    clip.write_bytes(content)
    os.utime(clip, ns=(status.st_atime_ns, status.st_mtime_ns + later_ns))


def test_verdicts_are_kept(corpus: Corpus, data: Path, tmp_path: Path) -> None:
    teacher, cache = stock(tmp_path / "kwt"), tmp_path / "cache"
    first = taught(corpus, data, CONFIG, [teacher], cache).beliefs
    clip = data / "yes" / f"{SPEAKER}_nohash_0.wav"
    rewrite(clip, bytes(clip.stat().st_size), 0)  # cannot be read, and looks as it was
    again = taught(corpus, data, CONFIG, [teacher], cache).beliefs
    np.testing.assert_array_equal(again, first)
    assert sorted(path.suffix for path in cache.iterdir()) == [".npy", ".npz"]


def test_data_that_changed_is_judged_again(corpus: Corpus, data: Path, tmp_path: Path) -> None:
    """As many clips as before, one of them another."""
    teacher, cache = ours(tmp_path / "a"), tmp_path / "cache"
    first = taught(corpus, data, CONFIG, [teacher], cache).beliefs
    clip, other = (data / word / f"{SPEAKER}_nohash_0.wav" for word in ("yes", "bed"))
    rewrite(clip, other.read_bytes(), 1)
    changed = taught(load_corpus(data, "training", cache), data, CONFIG, [teacher], cache).beliefs
    yes, bed = (corpus.words.tolist().index(word) for word in ("yes", "bed"))
    np.testing.assert_allclose(changed[[yes, bed]], first[[bed, bed]], atol=1e-6)
    assert (first[yes] != first[bed]).any()


def test_teacher_of_other_labels_is_refused(corpus: Corpus, data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="teacher must know the labels _silence_, _unknown_, yes, no"):
        taught(corpus, data, CONFIG, [ours(tmp_path / "a", ("_silence_", "_unknown_", "yes"))], tmp_path)
