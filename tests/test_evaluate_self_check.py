"""The ground of the self-check's bound: differences are those of the networks, and statistics those of the checks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from models.evaluate_self_check import compare, differences
from models.network import Network
from models.offline import judge
from models.self_check import BOUND, COMPARED_TOKENS
from service.commands.evaluate import app

SECOND = 16_000


def test_statistics_are_of_tokens_and_of_every_check() -> None:
    ours = [np.zeros((2 * COMPARED_TOKENS, 3)) for _ in range(2)]
    theirs = [posteriors.copy() for posteriors in ours]
    theirs[1][COMPARED_TOKENS:, 2] = 0.5
    theirs[1][-1, 0] = -0.75
    row = compare(ours, theirs, 0.03, point="p", scale=1.0, against="q")
    assert row.hours == pytest.approx(4 * COMPARED_TOKENS * 0.03 / 3600)
    assert (row.token_min, row.token_max) == (0.0, 0.75)
    assert row.check_min == 0.0
    assert row.check_max == pytest.approx(0.5 + 0.25 / COMPARED_TOKENS)
    assert row.check_median < row.check_p99 < row.check_max


def test_streams_shorter_than_a_check_are_refused() -> None:
    short = [np.zeros((COMPARED_TOKENS - 1, 3))]
    with pytest.raises(ValueError, match=f"at least {COMPARED_TOKENS * 0.03:g} s"):
        compare(short, short, 0.03)


def test_differences_are_those_of_the_points(network: Network, spoken: np.ndarray) -> None:
    recordings = [spoken.astype(np.float32), np.roll(spoken, 3 * SECOND).astype(np.float32)]
    rows = {(row.point, row.against): row for row in differences(network, network, recordings)}
    points = {point for point in network.points if point != "dense"}
    expected = {(point, against) for point in points for against in ("dense", "another", "torch")}
    assert rows.keys() == expected | {("dense", "torch")}
    assert all(row.token_max == 0 for (_, against), row in rows.items() if against == "torch")
    gated, dense = (judge(network, recordings[:1], point=point)[0][0] for point in ("shipped", "dense"))
    shipped = rows["shipped", "dense"]
    assert np.abs(gated - dense).max() <= shipped.token_max
    assert 0 < shipped.check_max < rows["shipped", "another"].check_max
    assert rows["shipped", "torch"].hours == pytest.approx(2 * len(spoken) / SECOND / 3600, rel=0.01)


def test_a_lone_stream_is_compared_with_no_other(network: Network, spoken: np.ndarray) -> None:
    rows = differences(network, None, [spoken.astype(np.float32)])
    assert {row.against for row in rows} == {"dense"}


def test_healthy_streams_stay_within_the_bound(network: Network, shared_data: Path, tmp_path: Path) -> None:
    for archive in shared_data.glob("*.tar"):
        if "validation" in archive.name or "noise" in archive.name:
            (tmp_path / archive.name).symlink_to(archive)
    options = ["self-check", "--data", str(tmp_path), "--hours", "0.1", "--json"]
    result = CliRunner().invoke(app, options, catch_exceptions=False)
    report = json.loads(result.stdout)
    assert report["bound"] == BOUND
    checked = {row["point"]: row["check_max"] for row in report["rows"] if row["against"] == "dense"}
    assert set(checked) == set(network.points) - {"dense"}
    assert max(checked.values()) < BOUND
