"""Training: resumable to the bit, and it learns. The data is laid out as the public download is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from safetensors import safe_open

from models.checkpoint import Checkpoint, load_checkpoint
from models.compose import Composer
from models.config import ConfigError, ModelConfig
from models.data import DataError, load_corpus, split_of
from models.folding import network_of
from models.gated import LEARNED, Gated
from models.recipe import Recipe
from models.train import CURVES, LOG, MODEL, Dense, advance, slope, train
from models.train_state import STATE, Schedule, State, TrainingError, load_state, new_state, read_settings, save_state
from service.commands.train import Stage, begin

LABELS = ("_silence_", "_unknown_", "yes", "no")
CONFIG = ModelConfig(channels=32, heads=2, layers=1, hidden=32, span=16, filters=(16, 16), labels=LABELS)
RECIPE = Recipe(segments=1)
SCHEDULE = Schedule(steps=6, streams=4, warmup=2, report_every=3)
SPEAKERS = [f"{n:08x}" for n in range(60)]


def tone(hz: float, seconds: float, seed: int) -> np.ndarray:
    """A tone in a little noise, that swells and fades: values -1..1."""
    t = np.arange(int(seconds * 16_000)) / 16_000
    noise = np.random.default_rng(seed).normal(0, 0.003, len(t))
    return 0.3 * np.sin(2 * np.pi * hz * t) * np.hanning(len(t)) + noise


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder like the public one, with a few words of three kinds, and papers that are no clips."""
    root = tmp_path_factory.mktemp("public") / "speech_commands_v0.02"
    for word, hz in (("yes", 300), ("no", 900), ("bed", 2000)):
        (root / word).mkdir(parents=True)
        for take, speaker in enumerate(SPEAKERS[:30]):
            name = f"{speaker}_nohash_0.wav"
            soundfile.write(root / word / name, tone(hz, 0.9 + 0.1 * (take % 2), take), 16_000, subtype="PCM_16")
    (root / "_background_noise_").mkdir()
    soundfile.write(root / "_background_noise_" / "pink_noise.wav", tone(0, 12, 99), 16_000, subtype="PCM_16")
    for paper in ("README.md", "LICENSE", "validation_list.txt", "testing_list.txt", "_background_noise_/README.md"):
        (root / paper).write_text("yes/00000001_nohash_0.wav\n")
    return root.parent


@pytest.fixture(scope="module")
def cache(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cache")
    for split in ("training", "validation"):
        load_corpus(data, split, folder)
    return folder


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Sums are split over threads; equal to the bit means equal threads."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def start(stage: str) -> State:
    return new_state(CONFIG, RECIPE, SCHEDULE, objective(stage))


def objective(stage: str) -> Dense | Gated:
    return Dense(CONFIG, RECIPE) if stage == "dense" else Gated(CONFIG, RECIPE)


def numbers(path: Path) -> dict[str, np.ndarray]:
    with safe_open(path, "np") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize("stage", ["dense", "gated"])
def test_interrupted_run_reaches_the_same_weights_to_the_bit(
    stage: str, data: Path, cache: Path, tmp_path: Path
) -> None:
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert [report.step for report in train(start(stage), data, whole, cache)] == [1, 2, 3, 4, 5, 6]
    for report in train(start(stage), data, parts, cache):
        if report.step == 5:
            break
    resumed = load_state(parts / STATE, objective(stage))
    assert resumed.step == 3
    torch.rand(7)  # nothing may depend on torch's own generator
    assert [report.step for report in train(resumed, data, parts, cache)] == [4, 5, 6]
    one, other = numbers(whole / STATE), numbers(parts / STATE)
    assert one.keys() == other.keys()
    for name, wanted in one.items():
        np.testing.assert_array_equal(other[name], wanted, err_msg=name)
    assert load_checkpoint(whole / MODEL).fingerprint == load_checkpoint(parts / MODEL).fingerprint
    assert (whole / LOG).read_text() == (parts / LOG).read_text()


def test_run_leaves_checkpoint_log_and_curves(data: Path, cache: Path, tmp_path: Path) -> None:
    reports = list(train(start("gated"), data, tmp_path, cache))
    lines = [json.loads(line) for line in (tmp_path / LOG).read_text().splitlines()]
    assert [line["step"] for line in lines] == [3, 6]
    assert lines[-1]["validation"] == reports[-1].validation
    dense, gated = (reports[-1].validation[point] for point in ("dense", LEARNED))
    assert dense.keys() == {"accuracy", "keywords", "unknown", "silence", "done"}
    assert gated["done"] < dense["done"] <= 1.1
    checkpoint = load_checkpoint(tmp_path / MODEL)
    assert checkpoint.config == CONFIG
    assert checkpoint.points.keys() == {LEARNED}
    assert json.loads(checkpoint.metadata["schedule"])["steps"] == 6
    assert (tmp_path / CURVES).read_bytes().startswith(b"\x89PNG")


def test_loss_falls_on_a_batch_seen_again_and_again(data: Path, cache: Path) -> None:
    state = start("dense")
    state.schedule = replace(SCHEDULE, steps=60, learning_rate=5e-3)
    batch = Composer(load_corpus(data, "training", cache), CONFIG, RECIPE, state.generator).batch(16)
    losses = []
    for _ in range(60):
        state.figures.clear()
        advance(state, [slope(state, batch, state.generator)])
        losses.append(state.figures["loss"])
    assert losses[-1] < 0.3 * losses[0]


def test_seed_decides_the_weights() -> None:
    one, same, other = (
        new_state(CONFIG, Recipe(), replace(SCHEDULE, seed=seed), objective("dense")).model.stem.weight
        for seed in (1, 1, 2)
    )
    assert torch.equal(one, same)
    assert not torch.equal(one, other)


def test_gated_stage_starts_from_the_checkpoints_weights(data: Path, cache: Path, tmp_path: Path) -> None:
    for _ in train(start("dense"), data, tmp_path, cache):
        pass
    checkpoint = load_checkpoint(tmp_path / MODEL)
    state = new_state(CONFIG, Recipe(), SCHEDULE, objective("gated"), checkpoint)
    for model in (state.model, state.average):
        for name, tensor in model.state_dict().items():
            np.testing.assert_array_equal(tensor.numpy(), checkpoint.weights[name])


def test_layers_that_are_folded_otherwise_begin_anew() -> None:
    plain = replace(CONFIG, layers=2)
    weights = {name: value.numpy() for name, value in network_of(plain).state_dict().items()}
    folded = replace(plain, folds=(1, 2))
    state = new_state(folded, Recipe(), SCHEDULE, Dense(folded, Recipe()), Checkpoint(plain, weights))
    for name, tensor in state.model.state_dict().items():
        if not name.startswith("blocks.1."):
            np.testing.assert_allclose(tensor.numpy(), weights[name], rtol=5e-3, atol=1e-6)  # of eight bits
    assert state.model.blocks[1].factor == 2


def test_rate_warms_up_and_falls_to_nothing() -> None:
    schedule = Schedule(steps=100, warmup=10)
    rates = [schedule.rate(step) for step in range(101)]
    assert rates[:10] == sorted(rates[:10])
    assert max(rates) == pytest.approx(schedule.learning_rate)
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[100] == pytest.approx(0.0)


def test_loss_that_is_no_number_ends_the_run(data: Path, cache: Path) -> None:
    state = start("dense")
    batch = Composer(load_corpus(data, "training", cache), CONFIG, state.recipe, state.generator).batch(2)
    batch.frames[0, 0, 0] = torch.nan
    with pytest.raises(TrainingError, match="step 0"):
        advance(state, [slope(state, batch, state.generator)])


@pytest.mark.parametrize(("labels", "message"), [(("yes", "no", "hey"), "hey"), (("yes", "no", "bed"), "other words")])
def test_data_that_cannot_teach_the_labels_is_refused(
    labels: tuple[str, ...], message: str, data: Path, cache: Path, tmp_path: Path
) -> None:
    config = replace(CONFIG, labels=("_silence_", "_unknown_", *labels))
    with pytest.raises(DataError, match=message):
        next(train(new_state(config, RECIPE, SCHEDULE, Dense(config, RECIPE)), data, tmp_path, cache))


def test_state_is_plain_tensors_and_json(tmp_path: Path) -> None:
    state = start("dense")
    save_state(state, tmp_path / STATE)
    assert b"pickle" not in (tmp_path / STATE).read_bytes()
    assert read_settings(tmp_path / STATE)["stage"] == "dense"
    assert list(tmp_path.iterdir()) == [tmp_path / STATE]
    again = load_state(tmp_path / STATE, objective("dense"))
    assert (again.config, again.recipe, again.schedule) == (state.config, state.recipe, state.schedule)


def test_files_that_are_no_state_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / STATE
    with pytest.raises(TrainingError, match="nothing to resume"):
        load_state(path, objective("dense"))
    path.write_bytes(b"torn")
    with pytest.raises(TrainingError, match="whole"):
        load_state(path, objective("dense"))
    save_state(start("dense"), path)
    with pytest.raises(TrainingError, match="stage"):
        load_state(path, objective("gated"))
    monkeypatch.setattr("models.train_state.asdict", lambda _part: {"unheard_of": 1})
    save_state(start("dense"), path)
    with pytest.raises(TrainingError, match="another version"):
        read_settings(path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(TrainingError, match="whole"):
        load_state(path, objective("dense"))


def test_speakers_of_the_synthetic_data_fall_in_both_splits(data: Path, cache: Path) -> None:
    shares = [split_of(speaker) for speaker in SPEAKERS[:30]]
    for split in ("training", "validation"):
        assert len(load_corpus(data, split, cache).pixels) == 3 * shares.count(split) > 0


def test_a_folded_network_trains_through_both_stages(data: Path, cache: Path, tmp_path: Path) -> None:
    """Its state and its checkpoint keep its folds; validation judges it in the compiled step."""
    config = replace(CONFIG, layers=2, folds=(1, 2))
    dense = new_state(config, RECIPE, SCHEDULE, Dense(config, RECIPE))
    assert list(train(dense, data, tmp_path / "dense", cache))[-1].validation["dense"]["done"] > 0.5
    assert load_state(tmp_path / "dense" / STATE, Dense(config, RECIPE)).config == config
    trained = load_checkpoint(tmp_path / "dense" / MODEL)
    assert trained.config == config
    gated = new_state(config, RECIPE, SCHEDULE, Gated(config, RECIPE), trained)
    *_, report = train(gated, data, tmp_path / "gated", cache)
    assert report.validation[LEARNED]["done"] < 1
    with pytest.raises(TrainingError, match="for the dense stage"):
        begin(Stage.GATED, tmp_path / "dense" / MODEL, steps=2, seed=0, folds=(1, 2))
    for folds in ((1, 2), (0,) * 6):
        with pytest.raises(ConfigError, match="one factor for each of 6 layers"):
            begin(Stage.DENSE, None, steps=2, seed=0, folds=folds)
    with pytest.raises(TrainingError, match="one factor beside 1"):
        begin(Stage.DENSE, None, steps=2, seed=0, folds=(1, 2, 3, 1, 1, 1))


def test_a_torch_that_knows_no_processor_trains_in_single_precision() -> None:
    code = "import torch; del torch.cpu.get_capabilities; import models.precision as here; print(here.HALF_PRECISION)"
    root = Path(__file__).parent.parent
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, check=False)
    assert done.stdout == "False\n", done.stderr
