"""Clips, streams and sockets are judged as the documents say, down to whose fault a false alarm is."""

from __future__ import annotations

import asyncio
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from models.bounds import binomial_bounds, poisson_bounds
from models.config import KEYWORDS, LABELS, ModelConfig
from models.data import SPEECH_FOLDER, DataError, split_of, walk
from models.evaluate import LabelledClips, SpeakerReport, by_speaker, cut_silence, judge_clips, read_clips
from models.evaluate_sets import gather_material, standard_sets, sweeps
from models.evaluate_streams import Heard, Tally, decided_at, shifted, tally, total, trade_off
from models.streams import SAMPLE_RATE, Clip, Stream, Utterance, rms
from service.commands.evaluate_socket import Answer, judge, listen_to_all, single_words
from service.commands.replay import detector

CONFIG = ModelConfig()
SECOND = SAMPLE_RATE


class Fired(NamedTuple):
    """A detection, without a detector."""

    keyword: str
    token: int
    start: float = 0.0
    end: float = 0.0


def heard(*words: tuple[str, float, float]) -> Heard:
    """Ten seconds in which words are said from one time to another, in seconds."""
    utterances = tuple(Utterance(int(a * SECOND), int(b * SECOND), word) for word, a, b in words)
    return Heard(Stream("s", np.zeros(10 * SECOND, np.float32), utterances), np.zeros((0, 12), np.float32))


def at(seconds: float) -> int:
    """The first token decided at or after a time."""
    token = 0
    while decided_at(token, CONFIG) < seconds * SECOND:
        token += 1
    return token


CASES = {
    "right": ([("yes", 1.2)], 0, 0, {}),
    "before the word ends": ([("yes", 0.8)], 0, 0, {}),
    "too late": ([("yes", 1.9)], 1, 1, {}),
    "too early": ([("yes", 0.4)], 1, 1, {}),
    "twice": ([("yes", 1.0), ("yes", 1.5)], 0, 1, {"repeated": 1}),
    "another in its place": ([("no", 1.2)], 1, 1, {"substitutions": 1}),
    "another besides": ([("yes", 1.1), ("no", 1.2)], 0, 1, {"substitutions": 1}),
    "a word that is none": ([("yes", 1.2), ("up", 5.2)], 0, 1, {"others_fired": 1}),
    "nothing at all": ([("yes", 1.2), ("up", 8.0)], 0, 1, {}),
    "silent": ([], 1, 0, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_detection_is_right_or_somebodys_fault(case: str) -> None:
    fired, missed, alarms, blamed = CASES[case]
    result = tally(heard(("yes", 0.5, 1.0), ("bed", 4.5, 5.0)), [Fired(w, at(s)) for w, s in fired], CONFIG)
    assert result.missed.total() == missed
    assert result.false_alarms.total() == alarms
    blame = {name: getattr(result, name) for name in ("repeated", "substitutions", "others_fired")}
    assert blame == dict.fromkeys(blame, 0) | blamed
    assert result.others == 1
    assert result.unprovoked == alarms - blame["repeated"] - blame["substitutions"]


def test_a_word_that_begins_before_a_keyword_is_over_takes_no_blame_from_it() -> None:
    result = tally(heard(("yes", 0.5, 1.0), ("bed", 1.6, 2.0)), [Fired("no", at(1.65)), Fired("no", at(2.2))], CONFIG)
    assert (result.substitutions, result.others_fired, result.unprovoked) == (1, 1, 1)


def test_nothing_is_unprovoked_while_a_keyword_is_said() -> None:
    """Hours without whole words, overlapping ones and one at the very end; a word that is no keyword takes none."""
    said = heard(("yes", 0.5, 1.0), ("no", 1.5, 2.0), ("up", 1.6, 1.8), ("bed", 4.5, 5.0), ("go", 9.0, 9.8))
    whole = Tally()
    for _ in range(2):
        whole.add(tally(said, [Fired("up", at(5.2))], CONFIG))
    exposed = 2 * (10 - 2.25 - 1.0) / 3_600
    assert whole.exposed_hours == pytest.approx(exposed)
    report = whole.report()
    assert (report["hours"], report["exposed_hours"]) == (round(20 / 3_600, 5), round(exposed, 5))
    assert report["unprovoked_per_hour"] == pytest.approx(2 / exposed)
    assert report["unprovoked_per_hour_bounds"] == pytest.approx([b / exposed for b in poisson_bounds(2)])
    assert report["false_alarms_per_hour"] == pytest.approx(2 * 3_600 / 20)
    assert tally(heard(("yes", 0.0, 10.0)), [], CONFIG).report()["unprovoked_per_hour"] is None


def test_latency_runs_from_the_end_of_the_word_to_the_sample_that_decided() -> None:
    token = at(1.2)
    result = tally(heard(("yes", 0.5, 1.0)), [Fired("yes", token)], CONFIG)
    assert result.latencies == [(decided_at(token, CONFIG) - SECOND) / 16]
    early = tally(heard(("yes", 0.5, 1.0)), [Fired("yes", at(0.8))], CONFIG)
    assert early.latencies[0] < 0


def test_a_place_is_off_by_what_lies_between_it_and_the_word_s_own() -> None:
    token = at(1.2)
    result = tally(heard(("yes", 0.5, 1.0)), [Fired("yes", token, token - 20, token - 2.5)], CONFIG)
    decided, token_ms = decided_at(token, CONFIG) / 16, CONFIG.token_samples / 16
    start, end = decided - 20 * token_ms - 500, decided - 2.5 * token_ms - 1_000
    assert result.off == {"yes": [pytest.approx((start, end))]}
    whole = Tally()
    for _ in range(2):
        whole.add(result)
    report = whole.report()
    assert report["start_off_ms_p90"] == pytest.approx(abs(start), abs=0.1)
    assert report["end_off_ms_p50"] == pytest.approx(abs(end), abs=0.1)


@given(
    st.lists(st.tuples(st.sampled_from(KEYWORDS[:3]), st.integers(0, 300)), max_size=12),
    st.lists(st.tuples(st.sampled_from([*KEYWORDS[:3], "bed"]), st.floats(0, 8)), max_size=6),
)
def test_nothing_is_counted_twice_or_lost(fired: list[tuple[str, int]], said: list[tuple[str, float]]) -> None:
    hits = [Fired(*hit) for hit in sorted(fired, key=lambda hit: hit[1])]
    result = tally(heard(*sorted(((w, s, s + 0.5) for w, s in said), key=lambda word: word[1])), hits, CONFIG)
    assert result.keywords.total() == result.missed.total() + len(result.latencies)
    assert len(hits) == result.false_alarms.total() + len(result.latencies)
    assert result.false_alarms.total() >= result.repeated + result.substitutions + result.others_fired


def test_bounds_of_what_is_missed_are_wider_where_one_speaker_is_missed() -> None:
    """Ten speakers say ten words each; ten are missed."""
    spread, together = Tally(), Tally()
    for result, unheard in ((spread, [1] * 10), (together, [10] + [0] * 9)):
        for name, missed in zip("abcdefghij", unheard, strict=True):
            result.keywords["yes"] += 10
            result.missed["yes"] += missed
            result.said[name], result.unheard[name] = 10, missed
    exact = binomial_bounds(10, 100)
    assert spread.report()["miss_rate_bounds"] == (0.1, 0.1)
    low, high = together.report()["miss_rate_bounds"]
    assert low < exact[0] < exact[1] < high
    nobody = Tally(keywords=together.keywords, said=together.said)
    assert nobody.report()["miss_rate_bounds"] == binomial_bounds(0, 10), "no proof that nobody ever is"
    together.said[""] += 1
    assert together.report()["miss_rate_bounds"] == exact, "nobody knows who that was"


def test_a_report_has_bounds_and_none_where_nothing_was_said() -> None:
    whole = Tally(hours=2.0)
    report = whole.report()
    assert report["miss_rate"] is None
    assert report["latency_ms_p50"] is None
    assert report["start_off_ms_p50"] is None
    assert report["false_alarms_per_hour_bounds"] == pytest.approx([0, 3.6889 / 2], abs=1e-3)
    whole.add(tally(heard(("yes", 0.5, 1.0)), [], CONFIG))
    assert whole.report()["miss_rate"] == 1.0


def calibration(threshold: float) -> dict:
    rules = {word: {"threshold": threshold, "patience": 1} for word in KEYWORDS}
    return {"window_tokens": 3, "margin": 0.1, "refractory_ms": 300, "keywords": rules}


def test_a_stricter_trade_off_misses_more_and_errs_less() -> None:
    one = heard(("yes", 0.5, 1.0))
    posteriors = np.full((330, 12), 0.02, np.float32)
    posteriors[at(1.1) : at(1.3), LABELS.index("yes")] = 0.8
    posteriors[at(5.0) : at(5.2), LABELS.index("no")] = 0.6
    curve = trade_off([Heard(one.stream, posteriors)], calibration(0.5), detector(CONFIG), CONFIG, (-1.0, 0.8, 3.0))
    assert [(r["missed"], r["false_alarms"]) for r in curve] == [(0, 1), (0, 0), (1, 0)]
    assert shifted(calibration(0.5), 0.0) == calibration(0.5)


# --- folders


def save(path: Path, seconds: float = 1.0, value: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, np.full(int(seconds * SECOND), value, np.int16), SAMPLE_RATE)


def test_every_recording_in_a_labels_folder_counts_whatever_its_name(tmp_path: Path) -> None:
    for name in ("yes/a_nohash_0.wav", "yes/plain.flac", "_silence_/1.wav", "_unknown_/x.ogg", "bed/b_nohash_1.wav"):
        save(tmp_path / name)
    save(tmp_path / "_background_noise_/hum.wav", 9)
    save(tmp_path / "sentences/long.wav", 6)
    with tarfile.open(tmp_path / "more.tar", "w") as archive:
        buffer = io.BytesIO()
        soundfile.write(buffer, np.zeros(8_000, np.int16), SAMPLE_RATE, format="WAV")
        member = tarfile.TarInfo("no/c_nohash_0.wav")
        member.size = buffer.tell()
        buffer.seek(0)
        archive.addfile(member, buffer)
    found = read_clips(walk(tmp_path), CONFIG)
    assert sorted(LABELS[t] for t in found.targets) == ["_silence_", "_unknown_", "_unknown_", "no", "yes", "yes"]
    assert {len(samples) for samples in found.samples} == {SECOND}


def test_a_split_is_made_of_its_speakers(tmp_path: Path) -> None:
    names = [hashlib.md5(bytes([i]), usedforsecurity=False).hexdigest()[:8] for i in range(60)]
    for name in names:
        save(tmp_path / "yes" / f"{name}_nohash_0.wav", 0.1)
    counts = [len(read_clips(walk(tmp_path), CONFIG, split).targets) for split in ("training", "validation", "testing")]
    assert sum(counts) == len(names)
    assert counts[0] > counts[1] > 0 < counts[2]


def test_errors_are_counted_by_those_who_speak_and_not_by_noise() -> None:
    said = {"anna": [1, 1, 1, 1], "ben": [1, 0, 0, 0], "cleo": [1, 1, 1, 0], "": [0, 0]}
    speakers = [name for name, right in said.items() for _ in right]
    report = by_speaker(speakers, np.array([right == 1 for clips in said.values() for right in clips]))
    assert report is not None
    assert report == SpeakerReport(3, faultless=1, half=1, bounds=report.bounds)
    assert report.bounds[0] == 0.25, "the worst, thrice"
    assert report.bounds[1] == 1.0
    assert by_speaker(["", ""], np.array([True, False])) is None
    assert by_speaker(["anna"], np.array([True])) == SpeakerReport(1, 1, 0, binomial_bounds(1, 1))


def test_a_balanced_share_counts_every_label_alike(network) -> None:
    clips = LabelledClips([np.zeros(SECOND, np.float32)] * 4, np.array([LABELS.index("yes")] + [0] * 3))
    report = judge_clips(network, clips, "dense")
    assert (report.accuracy, report.silence, report.balanced) == (0.75, 1.0, 0.5)


def test_a_folder_without_clips_and_a_split_that_is_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no clips"):
        read_clips(walk(tmp_path), CONFIG)
    with pytest.raises(DataError, match="no split 'test'"):
        read_clips(walk(tmp_path), CONFIG, "test")
    with pytest.raises(DataError, match="recordings in a folder _background_noise_ or esc10"):
        cut_silence(walk(tmp_path), CONFIG)
    with pytest.raises(DataError, match="no clips, no running speech"):
        standard_sets(gather_material(walk(tmp_path)), 1, 0)


@pytest.mark.parametrize(
    ("name", "read"),
    [
        ("yes/a.wav", lambda items: read_clips(items, CONFIG)),
        ("esc10/a.wav", lambda items: cut_silence(items, CONFIG)),
        ("people/a.wav", gather_material),
    ],
)
def test_recording_that_cannot_be_decoded_is_named(tmp_path: Path, name: str, read: Callable[..., object]) -> None:
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).write_bytes(b"torn")
    with pytest.raises(DataError, match=f"cannot decode {name}"):
        read(walk(tmp_path))


def archives(shared_data: Path, folder: Path, *names: str) -> Path:
    """A data directory of some of the shared archives."""
    folder.mkdir()
    for archive in shared_data.glob("*.tar"):
        if any(name in archive.name for name in names):
            (folder / archive.name).symlink_to(archive)
    return folder


def test_material_keeps_to_validation_speakers_and_the_last_fifth_of_each_noise(
    shared_data: Path, tmp_path: Path
) -> None:
    items = list(walk(archives(shared_data, tmp_path / "data", "validation", "noise")))
    material = gather_material(items)
    assert len(material.clips) == 2_181
    assert not material.speech
    assert 0.1 < sum(map(len, material.noise)) / SECOND / 3_600 < 0.12
    assert min(map(rms, material.noise)) > 3, "the last second of many recordings is digital silence"
    assert len(material.unused) + len(material.noise) == 406
    assert len({clip.speaker for clip in material.clips}) == 206
    hums = [item for item in items if item.word == "gsc_background"]
    assert len(cut_silence(hums, CONFIG).samples) == pytest.approx(80, abs=6)
    assert gather_material((i for i in items if "_nohash_" in i.path.stem), "testing").clips == []
    harder = sweeps(material, 0, minutes=0.5)
    assert set(harder) == {"snr_db", "gain_db", "line", "room"}
    assert len({tuple(u.word for u in stream.utterances) for c in harder.values() for _, stream in c}) == 1


def test_clips_without_a_sound_or_too_long_for_a_word_are_no_words(tmp_path: Path) -> None:
    speaker = next(name for name in map(str, range(99)) if split_of(name) == "validation")
    for take, (seconds, value) in enumerate(((1.0, 9), (1.0, 0), (0.0, 9), (1.6, 9))):
        save(tmp_path / "yes" / f"{speaker}_nohash_{take}.wav", seconds, value)
    material = gather_material(walk(tmp_path))
    assert len(material.clips) == 1
    assert [path.stem[-1] for path in material.unused] == ["1", "2", "3"]
    assert not material.speech


def test_a_calm_room_is_calm_through_a_socket_too(running) -> None:
    calm = [Clip(np.zeros(SECOND, np.float32), "yes", 0, SECOND)]
    material = gather_material([])
    material.clips += calm
    words = single_words(material, KEYWORDS, 5, (0, 20), 0)
    assert [len(word.samples) for word in words] == [3 * SECOND]
    answers = asyncio.run(listen_to_all(running.stream, words))
    assert answers == [Answer("yes", ())]


def test_only_exactly_one_right_detection_counts() -> None:
    report = judge([Answer("yes", heard) for heard in (("yes",), (), ("no",), ("yes", "no"), ("yes", "yes"))])
    assert report["words"] == 5
    assert report["share"] == 0.2
    assert (report["nothing"], report["wrong_only"], report["right_and_more"]) == (1, 1, 2)


def test_scores_are_totalled_over_streams() -> None:
    streams = [heard(("yes", 0.5, 1.0)), heard(("no", 0.5, 1.0))]
    quiet = [Heard(one.stream, np.zeros((330, 12), np.float32)) for one in streams]
    whole, each = total(quiet, calibration(0.5), detector(CONFIG), CONFIG)
    assert whole.missed.total() == 2 == sum(part.missed.total() for part in each)
    assert whole.hours == pytest.approx(20 / 3_600)


def test_speech_made_for_training_judges_nothing(tmp_path: Path) -> None:
    for folder in (SPEECH_FOLDER, "orders"):
        (tmp_path / folder).mkdir()
        soundfile.write(tmp_path / folder / "short.wav", np.full(SECOND, 0.1), SECOND)
        soundfile.write(tmp_path / folder / "long.wav", np.full(3 * SECOND, 0.1), SECOND)
    assert [len(stream.samples) for stream in gather_material(walk(tmp_path)).speech] == [3 * SECOND]
    assert len(read_clips(walk(tmp_path), CONFIG).samples) == 1
