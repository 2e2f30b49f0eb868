"""Gathering recordings: what is asked for, under names that do not meet, and readable by training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile

from models.data import SOUNDS_FOLDER, load_corpus
from models.gather_sounds import gather

RATE = 16_000


def record(path: Path, seconds: float) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    samples = np.random.default_rng(0).uniform(-0.1, 0.1, int(seconds * RATE))
    soundfile.write(path, samples, RATE)


def test_what_is_asked_for_is_copied_and_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    game, data = tmp_path / "game", tmp_path / "data"
    for name, seconds in (("dog.ogg", 1.0), ("farm/dog.wav", 2.0), ("voices/yes.wav", 1.0), ("click.wav", 0.05)):
        record(game / name, seconds)
    (game / "broken.wav").write_bytes(b"RIFF")
    (game / "picture.png").write_bytes(b"")
    gather(data / SOUNDS_FOLDER, [game], without="^voices/")
    assert sorted(path.name for path in (data / SOUNDS_FOLDER).iterdir()) == ["game-dog.ogg", "game-farm-dog.wav"]
    assert "2 recordings, 0.1 minutes" in capsys.readouterr().out
    record(data / "yes" / "004ae714_nohash_0.wav", 1.0)
    assert [len(noise) for noise in load_corpus(data, "training", tmp_path / "cache").noise] == [98, 198]


def test_only_those_that_are_named(tmp_path: Path) -> None:
    record(tmp_path / "stamps" / "animals" / "dog.wav", 1.0)
    record(tmp_path / "stamps" / "animals" / "dog_desc_fr.wav", 1.0)
    gather(tmp_path / "out", [tmp_path / "stamps"], only="_desc_")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["stamps-animals-dog_desc_fr.wav"]


def test_two_recordings_of_one_name_are_both_kept_and_one_is_once(tmp_path: Path) -> None:
    """Every game has its folder sounds; and a-b/c is not a/b-c."""
    for number, name in enumerate(("one/sounds/dog.wav", "two/sounds/dog.wav", "two/sounds/a-b/c.wav")):
        record(tmp_path / name, 1.0 + number)
    record(tmp_path / "two/sounds/a/b-c.wav", 4.0)
    for _ in range(2):
        gather(tmp_path / "out", [tmp_path / "one" / "sounds", tmp_path / "two" / "sounds"])
    kept = {path.name: soundfile.info(path).duration for path in (tmp_path / "out").iterdir()}
    assert sorted(kept.values()) == [1.0, 2.0, 3.0, 4.0], kept
    assert sorted(kept) == ["sounds-a-b-c-2.wav", "sounds-a-b-c.wav", "sounds-dog-2.wav", "sounds-dog.wav"]
