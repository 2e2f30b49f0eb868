"""Keywords of one's own: made of recordings that are fit for it, heard where they are said, refused elsewhere."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from client.connection import connect
from client.errors import SourceError, StreamFailed
from client.keywords import read_keyword, write_keyword
from models.background import SETTLE, Background, NoBackground
from models.checkpoint import CheckpointError, load_checkpoint, save
from models.data import split_of
from models.enroll import EnrolError, EnrolledKeyword, Spotting, enrol
from models.network import Network
from models.recordings import COPIES, embed_recording
from service.commands import enroll as command
from service.commands import model
from service.commands.demo import SAMPLE
from service.commands.detect import here
from service.protocol import Detection, Enrolled, KeywordSettings
from tests.conftest import Running
from tests.own_words import SECOND, embed_all, labels, variants


@pytest.fixture(scope="module")
def seven(network: Network, background: Background, spoken: np.ndarray) -> EnrolledKeyword:
    """A keyword with a threshold between what its word reaches, smoothed, and what all others do."""
    made = [(f"{i}.wav", samples) for i, samples in enumerate(variants(spoken, "seven", 8))]
    keyword = enrol(network, background, "lucky seven", made, "dense")
    inside, outside = levels(network, background, keyword, spoken)
    return replace(keyword, threshold=round((inside + outside) / 2, 3))


def levels(
    network: Network, background: Background, keyword: EnrolledKeyword, spoken: np.ndarray
) -> tuple[float, float]:
    """Highest smoothed scores while the word is said, and elsewhere."""
    scores = Spotting(background, [keyword]).scores(embed_all(network, spoken.astype(np.float32)))[:, 0]
    window = network.checkpoint.calibration["window_tokens"]
    smoothed = np.convolve(scores, np.full(window, 1 / window))[: len(scores)]
    at = (np.arange(len(scores)) + 1) * network.config.token_samples / SECOND
    start, end = said_at("seven")
    inside = (at > start) & (at < end + 0.75)
    elsewhere = (at < start) | (at > end + 1.2)  # an average takes its time to fall
    return float(smoothed[inside].max()), float(smoothed[elsewhere].max())


def said_at(word: str) -> tuple[float, float]:
    return next((start, end) for start, end, said in labels() if said == word)


# --- numbers


def test_a_keyword_stands_out_where_it_is_said_and_nowhere_else(
    network: Network, background: Background, seven: EnrolledKeyword, spoken: np.ndarray
) -> None:
    inside, outside = levels(network, background, seven, spoken)
    assert inside > outside + 0.1


def test_copies_of_a_recording_differ_and_come_back_the_same(network: Network, spoken: np.ndarray) -> None:
    (samples,) = variants(spoken, "seven", 1)
    one, again = (embed_recording(network, samples, "dense") for _ in range(2))
    np.testing.assert_array_equal(one, again)
    assert one.shape == (COPIES, len(SETTLE), network.config.channels)
    assert np.ptp(one, axis=0).max(axis=-1).min() > 0.1
    loud = embed_recording(network, samples * 4, "dense")
    assert np.corrcoef(loud.mean(axis=(0, 1)), one.mean(axis=(0, 1)))[0, 1] > 0.9


def test_a_keyword_is_the_same_word_in_another_backgrounds_coordinates(
    network: Network, background: Background, seven: EnrolledKeyword, spoken: np.ndarray
) -> None:
    turned = {name: -getattr(background, name) for name in ("projection", "rivals", "speech")}
    embedded = embed_all(network, spoken[: 3 * SECOND].astype(np.float32))
    one, other = (Spotting(b, [seven]).scores(embedded) for b in (background, replace(background, **turned)))
    np.testing.assert_allclose(one, other, atol=1e-5)


# --- recordings and files


def test_the_recording_of_another_word_is_found(network: Network, background: Background, spoken: np.ndarray) -> None:
    made = [(f"{i}.wav", samples) for i, samples in enumerate(variants(spoken, "seven", 3))]
    made.insert(1, ("wrong.wav", variants(spoken, "left", 1)[0]))
    with pytest.raises(EnrolError, match=r"wrong\.wav does not sound like"):
        enrol(network, background, "x", made, "dense")
    with pytest.raises(EnrolError, match="1 to 10 recordings, not 0"):
        enrol(network, background, "x", [], "dense")


@pytest.mark.parametrize("name", ["yes", "_unknown_", "", "a/b", "x" * 40])
def test_a_name_is_no_label_and_no_path(name: str, network: Network, background: Background) -> None:
    with pytest.raises(EnrolError, match="name"):
        enrol(network, background, name, [("a", np.zeros(SECOND, np.float32))], "dense")


def test_a_file_holds_the_keyword(seven: EnrolledKeyword, tmp_path: Path) -> None:
    path = tmp_path / "seven.json"
    write_keyword(own(seven), path)
    assert path.stat().st_size < 4_000
    assert EnrolledKeyword(**read_keyword(path).model_dump()) == seven


def test_a_file_of_an_older_version_says_what_to_do(seven: EnrolledKeyword, tmp_path: Path) -> None:
    path = tmp_path / "seven.json"
    write_keyword(own(seven), path)
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format": "deltaspot-keyword-2"}))
    with pytest.raises(SourceError, match=r"seven\.json: .*another version.*enrol it again"):
        read_keyword(path)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"format": "other", "prototype": []}', '{"format": 1, "x": 2}'])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.json"
    path.write_text(text)
    with pytest.raises(SourceError, match=r"other\.json is no"):
        read_keyword(path)
    with pytest.raises(SourceError, match="deltaspot enroll"):
        read_keyword(tmp_path / "none.json")


def test_a_checkpoint_carries_its_background(able: Path, network: Network, background: Background) -> None:
    stored = load_checkpoint(able)
    assert stored.fingerprint == network.checkpoint.fingerprint
    assert stored.weights.keys() == network.checkpoint.weights.keys()
    for name, array in background.arrays().items():
        np.testing.assert_array_equal(Background.of(stored).arrays()[name], array)
    bare = replace(stored, background={})
    with pytest.raises(NoBackground, match="deltaspot model background"):
        Background.of(bare)
    with pytest.raises(NoBackground, match="lacks"):
        Background.of(replace(stored, background={"mean": background.mean}))
    assert CheckpointError is not NoBackground


# --- commands, and a real socket


def test_model_background_makes_a_checkpoint_able(tmp_path: Path, spoken: np.ndarray, network: Network) -> None:
    data, able, bare = tmp_path / "data", tmp_path / "able.safetensors", tmp_path / "bare.safetensors"
    save(replace(network.checkpoint, background={}), bare)
    speaker = next(f"{i:08x}" for i in range(100) if split_of(f"{i:08x}") == "training")
    for *_, word in labels():
        (data / word).mkdir(parents=True)
        for take, samples in enumerate(variants(spoken, word, 2)):
            soundfile.write(data / word / f"{speaker}_nohash_{take}.wav", samples.astype("int16"), SECOND)
    arguments = ["background", "--data", str(data), "--model", str(bare), "--output", str(able)]
    without = CliRunner().invoke(model.app, arguments)
    assert "running_speech" in str(without.exception)
    (data / "running_speech").mkdir()
    soundfile.write(data / "running_speech" / "a.wav", np.tile(spoken, 2), SECOND)
    done = CliRunner().invoke(model.app, arguments)
    assert done.exit_code == 0, done.output
    stored = load_checkpoint(able)
    assert stored.fingerprint == network.checkpoint.fingerprint
    assert all(np.isfinite(array).all() for array in Background.of(stored).arrays().values())
    assert "written over" not in done.output
    over = CliRunner().invoke(model.app, arguments[:-2])
    assert f"no --output: {bare} will be written over\n" in over.output
    assert load_checkpoint(bare).background.keys() == stored.background.keys()


def test_enroll_writes_a_keyword(able: Path, spoken: np.ndarray, tmp_path: Path) -> None:
    files = []
    for i, samples in enumerate(variants(spoken, "seven", 3)):
        files.append(tmp_path / f"{i}.wav")
        soundfile.write(files[-1], samples.astype("int16"), SECOND)
    out = tmp_path / "new" / "seven.json"
    arguments = ["seven", *map(str, files), "--model", str(able), "--out", str(out), "--threshold", "0.6"]
    done = CliRunner().invoke(command.app, arguments)
    assert done.exit_code == 0, done.output
    keyword = read_keyword(out)
    assert (keyword.name, keyword.recordings, keyword.threshold) == ("seven", 3, 0.6)
    assert json.loads(out.read_text())["fingerprint"] == load_checkpoint(able).fingerprint
    assert done.stderr == f"{out}: 'seven', recordings: 3; try: deltaspot listen mic --enrolled {out}\n", "one line"
    again = CliRunner().invoke(command.app, ["seven", *[str(files[0])] * 3, "--model", str(able), "--out", str(out)])
    assert again.exit_code == 0, again.output
    told = again.stderr.splitlines()[1:]
    assert "some of them are the same" in told[0]
    assert "this has 1" in told[1]


def test_a_model_without_background_says_what_to_do(tmp_path: Path, spoken: np.ndarray, network: Network) -> None:
    bare, clip = tmp_path / "bare.safetensors", tmp_path / "a.wav"
    save(replace(network.checkpoint, background={}), bare)
    soundfile.write(clip, variants(spoken, "seven", 1)[0].astype("int16"), SECOND)
    done = CliRunner().invoke(command.app, ["seven", str(clip), "--model", str(bare)])
    assert "deltaspot model background" in str(done.exception)


def own(keyword: EnrolledKeyword) -> Enrolled:
    return Enrolled(**{name: getattr(keyword, name) for name in Enrolled.model_fields})


async def test_detect_finds_it_in_a_file(able: Path, seven: EnrolledKeyword, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTASPOT_MODEL", str(able))
    ((_, result),) = [pair async for pair in here([SAMPLE / "commands.flac"], "dense", [own(seven)])]
    assert "lucky seven" in [found["keyword"] for found in result["detections"]]
    assert "lucky seven" in [top["label"] for top in result["top"]]


async def heard(url: str, audio: np.ndarray, **settings: object) -> list[Detection]:
    async with connect(url, point="dense", **settings) as spotter:
        await spotter.send(audio.astype("<i2").tobytes())
        await spotter.finish()
        return [event async for event in spotter if isinstance(event, Detection)]


async def test_a_stream_hears_its_own_keyword_and_no_other_stream_does(
    learning: Running, seven: EnrolledKeyword, spoken: np.ndarray, tmp_path: Path
) -> None:
    write_keyword(own(seven), tmp_path / "seven.json")
    start, end = said_at("seven")
    theirs, mine, still = await asyncio.gather(
        heard(learning.stream, spoken),
        heard(learning.stream, spoken, enrolled=[tmp_path / "seven.json"]),
        heard(learning.stream, np.zeros_like(spoken), enrolled=[own(seven)]),
    )
    only = await heard(learning.stream, spoken, keywords=["yes"], enrolled=[own(seven)])
    off = {"lucky seven": KeywordSettings(enabled=False), "yes": KeywordSettings()}
    without = await heard(learning.stream, spoken, keywords=off, enrolled=[own(seven)])
    (found,) = [event for event in mine if event.keyword == "lucky seven"]
    assert start < found.at_s < end + 0.75
    assert [e.keyword for e in mine if e.keyword != "lucky seven"] == [e.keyword for e in theirs]
    assert still == []
    assert [event.keyword for event in only] == ["yes", "lucky seven"]
    assert [event.keyword for event in without] == ["yes"]


@pytest.mark.parametrize("most", [1e6, -1e6])
def test_the_greatest_numbers_of_a_keyword_are_reckoned_with(
    network: Network, background: Background, seven: EnrolledKeyword, spoken: np.ndarray, most: float
) -> None:
    own(huge := replace(seven, prototype=(most,) * len(seven.prototype), weights=(most,) * len(seven.weights)))
    scores = Spotting(background, [huge]).scores(embed_all(network, spoken[:SECOND].astype(np.float32)))
    assert np.isfinite(scores).all()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"fingerprint": "0" * 12}, "enrol it again"),
        ({"prototype": (0.0,)}, "enrol it again"),
        ({"weights": (0.0,)}, "enrol it again"),
        ({"name": "yes"}, "another name"),
    ],
)
async def test_a_keyword_that_does_not_fit_is_refused(
    learning: Running, seven: EnrolledKeyword, changes: dict[str, object], said: str
) -> None:
    with pytest.raises(StreamFailed, match=said):
        async with connect(learning.stream, enrolled=[own(replace(seven, **changes))]):
            pass


async def test_two_keywords_of_one_name_are_refused(learning: Running, seven: EnrolledKeyword) -> None:
    with pytest.raises(StreamFailed, match="same name"):
        async with connect(learning.stream, enrolled=[own(seven), own(seven)]):
            pass
