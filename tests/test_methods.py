"""The table of methods: its rows, its report, and the command that prints it."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator
from dataclasses import fields, replace
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
import soundfile
import torch
import typer.testing

from models import kwt_weights
from models.checkpoint import Checkpoint, CheckpointError, load_checkpoint, save
from models.config import ModelConfig, gate_names
from models.data import DataError, Item, pad_clip, read_audio, split_of, walk
from models.evaluate import LabelledClips
from models.folding import network_of
from models.kwt import KWT
from models.kwt_weights import KWTConfig
from models.methods import (
    FOUND,
    Row,
    attentions,
    cuts,
    learn_stock,
    learn_streaming,
    pruned_share,
    stock_bench,
    stock_rows,
    training_clips,
)
from models.methods_engines import folding_rows, streaming_rows
from models.methods_report import COUNTED, compiled, curves, styles, write_report
from models.network import Network
from models.pruning_tuned import tune
from models.transformer import StreamingKWT
from service.commands.evaluate import app
from service.commands.methods import check
from service.commands.model import app as model_app
from tests.stock import random_kwt

SMALL = KWTConfig(channels=8, layers=2, hidden=8)


@pytest.fixture
def stock() -> KWT:
    model = random_kwt(SMALL)
    model.frontend.mel.uniform_()
    return model


@pytest.fixture
def clips() -> LabelledClips:
    rng = np.random.default_rng(0)
    return LabelledClips([rng.normal(0, 1000, 16_000).astype(np.float32) for _ in range(4)], np.arange(4))


def test_cuts_in_three_scopes() -> None:
    dense = {"qkv": 2.0, "scores": 1.0, "values": 1.0, "out": 1.0, "up": 5.0}
    assert cuts({"qkv": 1.0, "scores": 0.0}, dense) == {
        "macs_cut_products": pytest.approx(2 / 4),
        "macs_cut_attention": pytest.approx(2 / 5),
        "macs_cut_model": pytest.approx(2 / 10),
    }


def test_shipped_thresholds_fit_kwt1() -> None:
    found, config = json.loads(FOUND.read_text())["kwt1"], KWTConfig()
    assert {np.shape(point["thresholds"]) for point in found["delta"]} == {(config.layers, 4)}
    assert {np.shape(point["thresholds"]) for point in found["leopard"]} == {(config.layers, config.heads)}
    assert {np.shape(point["centres"]) for point in found["leopard"]} == {(config.layers, config.heads, 64)}
    assert {method for method, _, _ in attentions(found)} == {"delta", "leopard", "hybrid"}


def test_what_was_learned_for_the_stock_network_makes_rows(stock: KWT, clips: LabelledClips) -> None:
    rows = list(stock_rows(stock, clips, {"kwt1": learn_stock(stock, clips, steps=10)}))
    assert rows[0].method == "dense"
    assert rows[0].macs_cut_model == pytest.approx(0)
    assert rows[0].parameters == sum(p.numel() for p in stock.parameters())
    assert {row.method for row in rows} >= {"leopard", "hybrid"}
    assert all(0 <= row.accuracy <= 1 and row.macs_cut_products < 1 for row in rows)


def test_pruned_share_counts_what_is_dropped(stock: KWT, clips: LabelledClips) -> None:
    bench, centres = stock_bench(stock, clips), torch.zeros(SMALL.layers, SMALL.heads, SMALL.channels)
    assert pruned_share(bench, torch.full((SMALL.layers, SMALL.heads), -1e9), centres) == 0
    best_alone = pruned_share(bench, torch.full((SMALL.layers, SMALL.heads), 1e9), centres)
    assert best_alone == pytest.approx(1 - 1 / SMALL.tokens, abs=0.01)


def test_tuned_weights_make_rows_of_their_own(stock: KWT, clips: LabelledClips) -> None:
    found = learn_stock(stock, clips, steps=5)
    found["delta"] = [{"cut": cut, "thresholds": np.full((SMALL.layers, 4), 0.1).tolist()} for cut in (0.8, 0.85)]
    tuned = tune(stock, stock_bench(stock, clips).clips, steps=10, tell=lambda _: None)
    rows = list(stock_rows(stock, clips, {"kwt1": found}, tuned))
    assert [row.method for row in rows[-2:]] == ["leopard", "delta + leopard"]
    assert rows[-1].setting == "weights tuned, gates of 80%"
    delta = next(row for row in rows if row.method == "delta")
    assert rows[-1].macs_cut_products > 0 < delta.macs_cut_products


def test_learning_says_what_it_lacks(tmp_path: Path) -> None:
    for what, lacks in (("kwt2", "name kwt1, skwt or kwt1-tuned"), ("kwt1-tuned", "name it with --stock")):
        result = typer.testing.CliRunner().invoke(app, ["methods", "--data", str(tmp_path), "--learn", what])
        assert result.exit_code == 2
        assert lacks in " ".join(result.output.replace("│", " ").split())


def test_pruning_of_the_streaming_network_is_for_its_own_weights_only(clips: LabelledClips) -> None:
    torch.manual_seed(0)
    config = ModelConfig(channels=32, heads=2, layers=2, hidden=16)
    weights = {name: value.numpy() for name, value in StreamingKWT(config).state_dict().items()}
    checkpoint = Checkpoint(config, weights)
    found = {"skwt": learn_streaming(checkpoint, clips, steps=2)}
    methods = [row.method for row in streaming_rows(Network(checkpoint), clips, found)]
    assert methods.count("leopard") == 2 * len(found["skwt"]["leopard"])  # in the compiled step, and in torch
    found["skwt"]["fingerprint"] = "of other weights"
    assert "leopard" not in {row.method for row in streaming_rows(Network(checkpoint), clips, found)}


def test_engines_rows_have_names_of_their_own_and_say_what_they_read(clips: LabelledClips) -> None:
    torch.manual_seed(0)
    config = ModelConfig(channels=32, heads=2, layers=2, hidden=32)
    weights = {name: value.numpy() for name, value in StreamingKWT(config).state_dict().items()}
    gates = dict.fromkeys(gate_names(config), 0.01)
    checkpoint = Checkpoint(config, weights, {"dense": dict.fromkeys(gates, 0.0), "shipped": gates})
    rows = [row for row in streaming_rows(Network(checkpoint), clips, {}) if row.setting.endswith("compiled")]
    assert [(row.method, row.setting) for row in rows[:2]] == [
        ("dense", "dense, compiled"),
        ("delta", "shipped, compiled"),
    ]
    assert {row.method for row in rows[2:]} == {"hybrid", "delta + hybrid"}
    assert rows[1].bytes_read_per_token < rows[0].bytes_read_per_token
    silent = [row.macs_cut_products for row in rows if row.method == "hybrid"]
    assert silent == sorted(silent)
    assert silent[-1] > rows[0].macs_cut_products
    (plain,) = folding_rows(Checkpoint(config, weights), clips)
    assert (plain.method, plain.setting) == ("folding", "1,1, seed unknown, dense, compiled")
    assert plain.accuracy == rows[0].accuracy
    folded = replace(config, folds=(1, 2))
    weights = {name: value.numpy() for name, value in network_of(folded).state_dict().items()}
    (thin,) = folding_rows(Checkpoint(folded, weights), clips)
    assert (thin.setting, thin.parameters < plain.parameters) == ("1,2, seed unknown, dense, compiled", True)


def test_training_clips_are_a_balanced_draw_of_training_speakers() -> None:
    recording = io.BytesIO()
    soundfile.write(recording, np.zeros(16_000), 16_000, format="WAV")
    items = [
        Item(PurePosixPath(word, f"{speaker}{'_' if word == 'archive.tar' else '_nohash_'}0.wav"), recording.getvalue())
        for word in ("yes", "bed", "archive.tar")
        for speaker in range(20)
    ]
    drawn = training_clips(lambda: items, SMALL.labels, per_word=5, others=2)
    assert sorted(drawn.targets) == [1, 1, 2, 2, 2, 2, 2]
    training = sum(split_of(str(speaker)) == "training" for speaker in range(20))
    assert len(training_clips(lambda: items, SMALL.labels, per_word=99, others=99).samples) == 2 * training


def test_of_all_training_clips_only_the_drawn_ones_are_held() -> None:
    """The public download has eighty thousand of them."""
    recording = io.BytesIO()
    soundfile.write(recording, np.zeros(16_000), 16_000, format="WAV")

    def items() -> Iterator[Item]:
        for speaker in range(400):
            yield Item(PurePosixPath("yes", f"{speaker}_nohash_0.wav"), bytes(bytearray(recording.getvalue())))

    tracemalloc.start()
    try:
        assert len(training_clips(items, SMALL.labels, per_word=5).samples) == 5
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 100 * len(recording.getvalue())


def test_the_report_never_joins_what_two_engines_counted(tmp_path: Path) -> None:
    """Of the rows that are beside the shipped weights: the torch reference counts no zeros of ReLU."""
    with FOUND.with_suffix(".csv").open() as file:
        rows = [row_of(cells) for cells in csv.DictReader(file)]
    lines = curves(rows)
    assert sum(map(len, lines.values())) == len(rows)
    assert all(len({compiled(row) for row in line}) == 1 for line in lines.values())
    assert {"skwt leopard", "skwt leopard, compiled", "skwt hybrid head gate, compiled"} <= set(lines)
    looks = [tuple(sorted(look.items())) for look in styles(lines).values()]
    assert len(looks) == len(set(looks)) > 10
    shipped = FOUND.with_suffix(".md").read_text()
    write_report(rows, [], tmp_path / "report.md", shipped.splitlines()[2].split(". ")[0])
    assert "ReLU's zeros" in COUNTED
    assert shipped.startswith((tmp_path / "report.md").read_text().split("![")[0])


def row_of(cells: dict[str, str]) -> Row:
    """A row as CSV gives it back."""
    text = ("network", "method", "setting")
    values = {name: cell if name in text else json.loads(cell or "null") for name, cell in cells.items()}
    return Row(**values)


@pytest.mark.system
def test_command_prints_rows_and_writes_a_report(tmp_path: Path, shared_data: Path, shared_models: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the litert extra")
    flac = [item for item in walk(shared_data) if item.path.suffix == ".flac"][::1000]
    for item in flac:
        (tmp_path / item.word).mkdir(exist_ok=True)
        soundfile.write(tmp_path / item.word / item.path.name, pad_clip(read_audio(item.data)) / 32768, 16_000)
    stock = shared_models / "kwt1_v2_12.tflite"
    options = ["--data", tmp_path, "--stock", stock, "--report", tmp_path / "new" / "report.md", "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "service.cli", "evaluate", "methods", *options],
        capture_output=True,
        text=True,
        check=True,
    )
    printed = json.loads(done.stdout)
    rows, sliding = printed["rows"], printed["sliding"]
    assert {row["method"] for row in sliding} == {"recomputed", "held", "sliding", "sliding delta"}
    assert {(row["network"], row["method"]) for row in rows} >= {
        ("kwt1", "dense"),
        ("kwt1", "delta"),
        ("kwt1", "leopard"),
        ("kwt1", "hybrid"),
        ("skwt", "dense"),
    }
    assert all(list(row) == [field.name for field in fields(Row)] for row in rows)
    assert rows[0]["accuracy"] > 0.8
    report = (tmp_path / "new" / "report.md").read_text()
    assert "| kwt1 | delta |" in report
    assert "| kwt1 | sliding delta | approximate" in report
    with (tmp_path / "new" / "report.csv").open() as file:
        assert len(list(csv.DictReader(file))) == len(rows)
    assert (tmp_path / "new" / "report.png").read_bytes().startswith(b"\x89PNG")


def test_import_command_writes_a_checkpoint(tmp_path: Path, shared_models: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the litert extra")
    out = tmp_path / "kwt1.safetensors"
    result = typer.testing.CliRunner().invoke(
        model_app, ["import", str(shared_models / "kwt1_v2_12.tflite"), "--out", str(out), "--json"]
    )
    assert json.loads(result.stdout)["parameters"] == 607_308
    assert kwt_weights.load(out)[0] == KWTConfig()


def folded_checkpoint(path: Path) -> Path:
    config = ModelConfig(channels=32, heads=2, layers=2, hidden=32, folds=(1, 2))
    save(Checkpoint(config, {name: value.numpy() for name, value in network_of(config).state_dict().items()}), path)
    return path


def test_command_learns_only_into_files_that_are_named_and_can_be_written(tmp_path: Path) -> None:
    """It finds out before it reads anything: there are no recordings."""

    def trouble(*words: str) -> BaseException:
        words = ("methods", "--data", str(tmp_path), "--learn", *words)
        return typer.testing.CliRunner().invoke(app, words, standalone_mode=False).exception

    before = FOUND.read_bytes(), FOUND.stat().st_mtime_ns
    assert "name it with --found" in str(trouble("skwt"))
    assert "nothing to learn for 'x'" in str(trouble("x"))
    assert "--stock" in str(trouble("kwt1-tuned"))
    assert isinstance(trouble("skwt", "--found", str(tmp_path)), IsADirectoryError)
    assert isinstance(trouble("skwt", "--found", str(tmp_path / "new" / "found.json")), DataError)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []
    assert before == (FOUND.read_bytes(), FOUND.stat().st_mtime_ns)
    with pytest.raises(typer.BadParameter, match="name it with --tuned"):
        check({"kwt1-tuned"}, random_kwt(SMALL), tmp_path / "found.json", None)


def test_folded_networks_are_told_where_they_are_judged(tmp_path: Path) -> None:
    path = str(folded_checkpoint(tmp_path / "folded.safetensors"))
    for command, *words in ((app, "methods"), (model_app, "prune", "--output", str(tmp_path / "out"))):
        refused = typer.testing.CliRunner().invoke(command, [*words, "--data", str(tmp_path), "--model", path])
        assert isinstance(refused.exception, CheckpointError)
        assert "--folded" in str(refused.exception)
    with pytest.raises(CheckpointError, match="folded layers"):
        learn_streaming(load_checkpoint(Path(path)), LabelledClips([np.zeros(16_000, np.float32)], np.zeros(1)))


def test_help_tells_what_the_command_compares() -> None:
    result = typer.testing.CliRunner().invoke(app, ["methods", "--help"])
    assert result.exit_code == 0
    assert "published methods" in result.stdout
