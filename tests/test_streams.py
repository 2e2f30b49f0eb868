"""Streams are built as planned, to the sample, and labels are read as they were written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from models.config import KEYWORDS
from models.data import DataError
from models.streams import (
    SAMPLE_RATE,
    Clip,
    Plan,
    Utterance,
    amplify,
    build,
    patchwork,
    read_labels,
    reverberate,
    rms,
    spoken_span,
    telephone,
    write_labels,
)

SECOND = SAMPLE_RATE


def tone(hz: float, length: int, loudness: float) -> np.ndarray:
    return (loudness * np.sin(2 * np.pi * hz * np.arange(length) / SAMPLE_RATE)).astype(np.float32)


def spoken(word: str, seed: int = 0) -> Clip:
    """A clip whose middle fifth is loud."""
    samples = np.random.default_rng(seed).normal(0, 5, SECOND).astype(np.float32)
    samples[6_400:9_600] += tone(500 + 10 * seed, 3_200, 4_000)
    return Clip(samples, word, *spoken_span(samples))


CLIPS = [spoken(word, i) for i, word in enumerate([*KEYWORDS, "bed", "cat"])]
NOISE = [np.random.default_rng(i).normal(0, 300, 3 * SECOND).astype(np.float32) for i in range(3)]


def test_a_words_span_is_where_its_clip_is_loud() -> None:
    start, end = spoken_span(CLIPS[0].samples)
    assert start == pytest.approx(6_400, abs=400)
    assert end == pytest.approx(9_600, abs=400)
    assert spoken_span(np.zeros(SECOND, np.float32)) == (0, SECOND)


def test_equal_seeds_give_equal_streams_and_others_others() -> None:
    plan = Plan(minutes=0.5)
    first, again, other = (build(CLIPS, NOISE, plan, KEYWORDS, seed) for seed in (1, 1, 2))
    assert np.array_equal(first.samples, again.samples)
    assert first.utterances == again.utterances
    assert first.utterances != other.utterances


def test_words_stand_where_the_labels_say_and_at_the_planned_distance_from_the_noise() -> None:
    plan = Plan(minutes=1.0, snr_db=(10.0, 10.0), level_db=(-26.0, -26.0), unknown_share=0.5)
    clean, noisy = build(CLIPS, [], plan, KEYWORDS, 3), build(CLIPS, NOISE, plan, KEYWORDS, 3)
    assert len(clean.samples) == 60 * SECOND
    assert {u.word in KEYWORDS for u in clean.utterances} == {True, False}
    gaps = [b.start - a.end for a, b in zip(clean.utterances, clean.utterances[1:], strict=False)]
    assert min(gaps) >= plan.gap_s[0] * SECOND - 1
    for one in clean.utterances:
        assert rms(clean.samples[one.start : one.end]) == pytest.approx(32_767 * 10 ** (-26 / 20), rel=0.02)
    second = build(CLIPS, NOISE, Plan(minutes=1.0, snr_db=(10, 10), level_db=(-26, -26), words=0), KEYWORDS, 3)
    assert second.utterances == ()
    assert rms(second.samples) == pytest.approx(32_767 * 10 ** (-36 / 20), rel=0.05)
    assert set(np.unique(noisy.samples % 1)) == {0.0}


def test_every_background_is_heard_before_one_comes_again_each_at_one_level() -> None:
    """Tones of one second at levels far apart, told by their pitch: in twelve seconds each of four has three."""
    pitches = (200, 400, 800, 1_600)
    recordings = [tone(hz, SECOND, 10.0 ** (1 + i)) for i, hz in enumerate(pitches)]
    heard = patchwork(recordings, 12 * SECOND, np.random.default_rng(0))
    assert rms(heard) == pytest.approx(1.0, rel=0.02)
    power = np.abs(np.fft.rfft(heard)) ** 2
    shares = [power[12 * hz - 24 : 12 * hz + 24].sum() / power.sum() for hz in pitches]
    assert shares == pytest.approx([0.25] * 4, abs=0.02)
    first = np.abs(np.fft.rfft(heard[: 4 * SECOND])) ** 2
    assert all(first[4 * hz - 8 : 4 * hz + 8].sum() > 0.2 * first.sum() for hz in pitches)


def test_streams_need_clips() -> None:
    with pytest.raises(DataError, match="no clips"):
        build([], NOISE, Plan(), KEYWORDS, 0)


def test_gain_clips_as_a_sound_card_does() -> None:
    loud = amplify(tone(100, SECOND, 20_000), 10)
    assert loud.max() == 32_767
    assert loud.min() == -32_768


def test_a_telephone_passes_a_voice_and_nothing_above_4_khz() -> None:
    low, high = tone(1_000, SECOND, 8_000), tone(5_500, SECOND, 8_000)
    assert rms(telephone(low) - low) < 0.02 * rms(low)
    assert rms(telephone(high)) < 0.02 * rms(high)


def test_a_room_adds_a_tail_behind_each_sound() -> None:
    click = np.zeros(2 * SECOND, np.float32)
    click[1_000] = 30_000
    heard = reverberate(click, 0.5, 3.0, seed=0)
    assert heard[1_000] == 30_000
    assert not heard[:1_000].any(), "nothing comes before its cause"
    energy = np.square(heard[1_001:], dtype=np.float64)
    assert 10 * np.log10(30_000**2 / energy.sum()) == pytest.approx(3.0, abs=0.1)
    fall = 10 * np.log10(energy[:1_600].sum() / energy[3_200:4_800].sum())
    assert fall == pytest.approx(60 * 0.2 / 0.5, abs=1.5)


def test_labels_are_read_as_they_were_written(tmp_path: Path) -> None:
    words = (Utterance(0, 160, "yes"), Utterance(1_600, 16_000, "bed"))
    write_labels(words, tmp_path / "words.tsv")
    assert read_labels(tmp_path / "words.tsv") == words


def test_labels_are_read_as_editors_and_tables_leave_them(tmp_path: Path) -> None:
    path = tmp_path / "words.tsv"
    path.write_bytes(b'\xef\xbb\xbf0\t1\tno\r\n\r\n1\t2\t"yes\n2\t3\tup')
    assert [word.word for word in read_labels(path)] == ["no", '"yes', "up"]
    path.write_bytes(b"0\t1\tno\n1\t2\tcaf\xe9\n")
    with pytest.raises(DataError, match=r"words\.tsv, line 2: this is no UTF-8"):
        read_labels(path)
    path.write_bytes(b"0\t1\tno\n\0" + b"x" * 200_000)
    with pytest.raises(DataError, match=r"words\.tsv, line 2: expected"):
        read_labels(path)


@pytest.mark.parametrize("line", ["1.0\tyes", "one\t2.0\tyes", "1.0,2.0,yes", "nan\t2.0\tyes", "1.0\tinf\tyes"])
def test_a_line_that_is_no_label_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "words.tsv").write_text(f"start_s\tend_s\tword\n0\t1\tno\n{line}\n")
    with pytest.raises(DataError, match="line 3"):
        read_labels(tmp_path / "words.tsv")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("1.0\t1.0\tyes", "'yes' must start at 0 s or later and end after its start"),
        ("2.0\t1.0\tyes", "'yes' must start at 0 s or later and end after its start"),
        ("-0.1\t1.0\tyes", "'yes' must start at 0 s or later and end after its start"),
        ("2.5\t3.2\tyes", "'yes' ends at 3.2 s, the recording at 3 s"),
        ("1.0\t1.5\tYes", "'Yes' is no keyword, 'yes' is: write it so"),
    ],
)
def test_a_label_that_cannot_be_true_is_named(tmp_path: Path, line: str, told: str) -> None:
    words = tmp_path / "words.tsv"
    words.write_text(f"start_s\tend_s\tword\n0\t1\tno\n{line}\n")
    with pytest.raises(DataError, match=rf"words\.tsv, line 3: {told}$"):
        read_labels(words, 3 * SECOND, KEYWORDS)


def test_labels_may_be_rounded_and_have_words_that_are_no_keywords(tmp_path: Path) -> None:
    (tmp_path / "words.tsv").write_text("0\t1\tBed\n2.5\t3.05\tno\n")
    assert [word.word for word in read_labels(tmp_path / "words.tsv", 3 * SECOND, KEYWORDS)] == ["Bed", "no"]
