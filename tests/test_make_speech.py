"""Synthetic running speech: no keyword in the text, and recordings that training finds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer

from models.config import ModelConfig
from models.data import SPEECH_FOLDER, load_corpus
from models.make_speech import LONGEST, RATE, make, sentences
from tests.programs import need

PROSE = """The kettle is singing in the kitchen.  We should go before dinner is cold.  He knows nothing about gardens!
A second line
of the same sentence -- with a dash in it, and what follows.  Nobody stopped them from dancing.  Short one.
"""


def test_sentences_hold_nothing_that_sounds_like_a_keyword() -> None:
    found = list(sentences(PROSE))
    assert found == [
        "The kettle is singing in the kitchen.",
        "A second line of the same sentence",
        "with a dash in it, and what follows.",
    ]


@pytest.mark.parametrize("word", ModelConfig().keywords)
def test_every_keyword_bars_its_sentence(word: str) -> None:
    for said in (word.capitalize(), f"'{word}'", f"''{word}''", f"'{word}", f"{word}'s", f"({word})"):
        assert list(sentences(f"Somebody said {said} to all of them.")) == []


def test_long_sentences_end_with_a_whole_word() -> None:
    """A keyword that a cut would leave of a longer word is none; nor is one that is behind the cut."""
    start = "The kettle sings " * 9 + "loud"
    assert len(start) == LONGEST - 3
    assert list(sentences(f"{start} nothing else.")) == [start]
    assert list(sentences(f"{start} we say yes.")) == [f"{start} we"]
    assert list(sentences(f"{start} no more.")) == []
    assert list(sentences("a" * 2 * LONGEST)) == []


def test_what_the_voices_say_is_what_training_reads(tmp_path: Path) -> None:
    need("espeak-ng", "flite")
    text = tmp_path / "prose.txt"
    text.write_text("The kettle is singing in the kitchen. All the children came home before dinner was cold.")
    made = tmp_path / "data" / SPEECH_FOLDER
    make(made, [text], hours=1.0, seed=0, engines=["espeak-ng", "flite"])
    recordings = [soundfile.read(path) for path in sorted(made.iterdir())]
    assert [rate for _, rate in recordings] == [RATE, RATE]
    for samples, _ in recordings:
        assert 1.0 < len(samples) / RATE < 15.0
        assert np.abs(samples).max() == pytest.approx(0.5, abs=1e-3)
    clip = tmp_path / "data" / "yes" / "004ae714_nohash_0.wav"
    clip.parent.mkdir()
    soundfile.write(clip, np.zeros(RATE), RATE)
    corpus = load_corpus(tmp_path / "data", "training", tmp_path / "cache")
    assert len(corpus.speech) == sum((len(samples) - 480) // 160 + 1 for samples, _ in recordings)
    assert corpus.speech.mean() > 20


def test_an_engine_that_there_is_not_is_named(tmp_path: Path) -> None:
    with pytest.raises(typer.BadParameter, match=r"no engine siri: there are flite, espeak-ng, hibari"):
        make(tmp_path / "out", [], engines=["flite", "siri"])
    assert not (tmp_path / "out").exists()
