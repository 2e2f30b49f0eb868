"""The benchmark measures what it names; how fast anything was is no test's business."""

from __future__ import annotations

import gc
import json
import os
from dataclasses import asdict, fields
from pathlib import Path

import numpy as np
import pytest
import typer
from typer.testing import CliRunner

from models.bench import (
    SAMPLE_RATE,
    Entry,
    Line,
    Plan,
    Row,
    compiled_lines,
    lines,
    pinned,
    run_curves,
    run_table,
    with_silence,
)
from models.checkpoint import load_checkpoint, shipped_path
from models.contenders import FrontEnd, OursRecomputed, Recomputed, Streaming
from models.features import Array
from models.network import Network
from models.offline import judge
from service.commands.bench import app
from service.commands.bench_service import read_numbers

TINY = Plan(sessions=2, repeats=1, warm_up_s=1, stock_sessions=1, curve_sessions=(1, 2), curve_chunks_ms=(100, 500))
KEYS = {
    "name",
    "cpu_ms_per_audio_s",
    "streams_per_core",
    "chunk_ms_p50",
    "chunk_ms_p99",
    "macs_skipped_vs_window",
    "macs_skipped_vs_causal",
    "bytes_per_session",
}
OURS = [
    "ours, recomputed",
    "ours, torch causal",
    "ours, kernels dense",
    *(f"ours, {point}" for point in load_checkpoint(shipped_path()).points if point != "dense"),
    "ours, shipped, 50 % silence",
    "ours, shipped, 90 % silence",
    "front end",
]


@pytest.fixture(scope="module")
def network() -> Network:
    return Network(load_checkpoint(shipped_path()))


@pytest.fixture(scope="module")
def audio() -> list[Array]:
    random = np.random.default_rng(0)
    return [np.rint(random.normal(0, 1000, 3 * SAMPLE_RATE)).astype(np.float32)]


@pytest.fixture(scope="module")
def rows(network: Network, audio: list[Array]) -> dict[str, Row]:
    pytest.importorskip("torch", reason="one of the rows is run by torch")
    return {row.name: row for row in run_table(lines(network, audio, None, TINY)[0], TINY)}


def test_rows_are_the_ones_that_are_promised(rows: dict[str, Row]) -> None:
    assert list(rows) == OURS
    for row in rows.values():
        assert asdict(row).keys() == KEYS
        assert row.streams_per_core == pytest.approx(1000 / row.cpu_ms_per_audio_s)
        assert 0 < row.chunk_ms_p50 <= row.chunk_ms_p99
        assert row.bytes_per_session > 0


def test_work_is_counted_as_it_is_done(rows: dict[str, Row]) -> None:
    causal = {name: row.macs_skipped_vs_causal for name, row in rows.items()}
    assert causal["front end"] is None
    assert causal["ours, torch causal"] is None, "it multiplies by zeros"
    assert causal["ours, kernels dense"] > 0
    assert causal["ours, recomputed"] < -5
    assert rows["ours, recomputed"].macs_skipped_vs_window is None, "it is the window, at another pace"
    assert causal["ours, kernels dense"] < causal["ours, shipped"] < causal["ours, aggressive"]
    assert all(row.macs_skipped_vs_window > 0.5 for row in rows.values() if row.macs_skipped_vs_window is not None)


def test_streaming_contender_computes_what_a_recording_takes(network: Network, audio: list[Array]) -> None:
    entry = Entry(Line(lambda sessions: Streaming(network, "shipped", sessions), audio, 1), 1, 1600)
    entry.turn(3.0)
    (_, work) = judge(network, [audio[0]], flush=False)[0]
    assert entry.work() is not None
    assert entry.work().total == work.total
    assert entry.work().tokens == work.tokens == (3 * SAMPLE_RATE - 320) // network.config.token_samples


def test_recomputing_contender_hears_the_last_second() -> None:
    heard = []
    contender = Recomputed(heard.append, sessions=2, window=4)
    for chunk in np.arange(12, dtype=np.float32).reshape(3, 2, 2):
        contender.hear(chunk)
    np.testing.assert_array_equal(heard[-1], [[4, 5, 8, 9], [6, 7, 10, 11]])


def test_recomputing_ours_forgets_between_chunks(network: Network, audio: list[Array]) -> None:
    contender = OursRecomputed(network, sessions=1)
    second = audio[0][None, :SAMPLE_RATE]
    contender.hear(second)
    once = contender.work().total
    contender.hear(second)
    assert contender.work().total == 2 * once


def test_front_end_cuts_the_tokens_of_every_stream(network: Network, audio: list[Array]) -> None:
    front_end = FrontEnd(network.config, 2)
    frames, counts = front_end.frames(np.stack((audio[0][:1600], audio[0][1600:3200])))
    assert counts.tolist() == [2, 2]
    assert frames.shape == (4, network.config.stride, network.config.frontend.bands)


def test_curves_have_a_point_for_every_size(network: Network, audio: list[Array], tmp_path: Path) -> None:
    points = run_curves(compiled_lines(network, audio, TINY.sessions), TINY)
    assert {(p.name, p.sessions, p.chunk_ms) for p in points} == {
        (name, sessions, chunk_ms)
        for name in ("ours, kernels dense", "ours, shipped")
        for sessions, chunk_ms in ((1, 100), (2, 100), (2, 500))
    }
    pytest.importorskip("matplotlib", reason="plots need the train extra")
    from models.bench_plots import draw_curves

    for file in draw_curves(points, TINY, tmp_path / "plots"):
        assert file.read_bytes().startswith(b"\x89PNG")


def test_many_sessions_take_fewer_turns() -> None:
    plan = Plan(repeats=20, enough_s=4_000, fewest=3)
    assert [plan.turns(sessions) for sessions in (1, 200, 500, 2_000)] == [20, 20, 8, 3]
    assert Plan(repeats=2).turns(2_000) == 2


def test_command_draws_and_writes_the_curves(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="plots need the train extra")
    options = ["curves", "--output", str(tmp_path), "--most", "2", "--sessions", "1", "--repeats", "1"]
    result = CliRunner().invoke(app, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    points = json.loads((tmp_path / "curves.json").read_text())["curves"]
    assert {(p["sessions"], p["chunk_ms"]) for p in points if p["name"] == "ours, shipped"} >= {(1, 30), (2, 100)}
    assert all(point["cpu_ms_per_audio_s"] > 0 for point in points)
    for name in ("sessions.png", "chunks.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")


def test_curves_that_cannot_be_written_are_not_measured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setattr("models.bench.run_curves", None)
    with pytest.raises(OSError, match="file"):
        CliRunner().invoke(app, ["curves", "--output", str(tmp_path / "file" / "x")], catch_exceptions=False)


@pytest.mark.parametrize("sessions", ["foo", "1,,2", "0", "-1", "1.5", ""])
def test_numbers_of_streams_are_numbers(sessions: str) -> None:
    assert read_numbers("1, 10,100") == [1, 10, 100]
    with pytest.raises(typer.BadParameter, match="such as 1,10,100"):
        read_numbers(sessions)
    assert CliRunner().invoke(app, ["service", "--sessions", sessions]).exit_code == 2


@pytest.mark.parametrize("share", [0.0, 0.5, 0.9])
def test_silence_takes_its_share(share: float) -> None:
    samples = np.full(20 * SAMPLE_RATE, 5000.0, np.float32)
    quiet = with_silence(samples, share)
    assert np.mean(np.abs(quiet) < 100) == pytest.approx(share, abs=1e-4)


def test_pinning_ends() -> None:
    before = os.sched_getaffinity(0)
    with pinned():
        assert os.sched_getaffinity(0) == {max(before)}
    assert os.sched_getaffinity(0) == before


def test_where_nothing_can_be_pinned_the_benchmark_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "sched_getaffinity")
    monkeypatch.delattr(os, "sched_setaffinity")
    with pinned():
        assert not gc.isenabled()
    assert gc.isenabled()


def test_stock_network_runs_wherever_its_runtime_is(network: Network, audio: list[Array], shared_models: Path) -> None:
    table, notes = lines(network, audio, shared_models / "kwt1_v2_12.tflite", TINY)
    stock = {name: line for name, line in table.items() if name.startswith("stock")}
    assert len(stock) + len(notes) == 3
    assert stock, notes
    for row in run_table(stock, TINY):
        assert row.name in {"stock KWT-1, LiteRT", "stock KWT-1, ONNX Runtime", "stock KWT-1, torch"}
        assert row.bytes_per_session == 4 * SAMPLE_RATE


def test_runtimes_agree_on_the_stock_network(audio: list[Array], shared_models: Path) -> None:
    from models.contenders import stock_judges

    judges, _ = stock_judges(shared_models / "kwt1_v2_12.tflite")
    answers = [np.ravel(judge(audio[0][None, :SAMPLE_RATE])) for judge in judges.values()]
    for answer in answers[1:]:
        np.testing.assert_allclose(answer, answers[0], atol=1e-3)


def test_command_prints_json_and_says_what_it_left_out() -> None:
    options = ["engine", "--json", "--repeats", "1", "--sessions", "2"]
    result = CliRunner().invoke(app, options)
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert [set(row) for row in report["rows"]] == [KEYS] * len(report["rows"])
    assert [row["name"] for row in report["rows"]] == OURS
    assert any("stock" in note for note in report["notes"])
    assert {f.name for f in fields(Row)} == KEYS
