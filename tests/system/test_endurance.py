"""The benches of endurance measure what they name; streams that come and go leave nothing in a server's memory."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from client.hostile import MANNERS
from service.commands import bench_hostile
from service.commands.bench import app

pytestmark = pytest.mark.system

OPENS = 1_500
MOST = 1.05
"""Memory at the end, as a share of that after the first thousand; a stream's own 200 kB would make it 1.4."""


def test_a_thousand_streams_more_take_no_more_memory() -> None:
    done = CliRunner().invoke(app, ["churn", "--opens", str(OPENS), "--json"], catch_exceptions=False)
    report = json.loads(done.stdout)
    assert report["ended"] == {"1000": OPENS}
    assert [look["opens"] for look in report["looks"]][:: len(report["looks"]) - 1] == [1_000, OPENS]
    assert report["ratio"] == pytest.approx(report["looks"][-1]["bytes"] / report["looks"][0]["bytes"], abs=1e-4)
    assert report["ratio"] < MOST


def test_honest_streams_are_measured_while_hostile_ones_come(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench_hostile, "STAY_S", 1.0)
    size = ["--connections", str(2 * len(MANNERS)), "--streams", "2", "--seconds", "1", "--quiet", "1"]
    done = CliRunner().invoke(app, ["hostile", *size, "--json"], catch_exceptions=False)
    report = json.loads(done.stdout)
    assert [phase["name"] for phase in report["phases"]] == ["before", "during", "after"]
    for phase in report["phases"]:
        assert phase["bytes"] > 0
        assert (phase["felt"]["sessions"], phase["felt"]["lost_chunks"]) == (2, 0)
        assert phase["felt"]["latency_ms_p50"] > 0
    ended = report["hostile"]
    assert ended["thrown_out"] + ended["stayed"] + ended["not_let_in"] == 2 * len(MANNERS)
    assert ended["thrown_out"] > 0
