"""Streams that come and go leave nothing in a server's memory."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from service.commands.bench import app

pytestmark = pytest.mark.system

OPENS = 2_000
MOST = 1.05
"""Memory at the end, as a share of that after the first thousand; a stream's own 200 kB would make it 1.7."""


def test_a_thousand_streams_more_take_no_more_memory() -> None:
    done = CliRunner().invoke(app, ["churn", "--opens", str(OPENS), "--json"], catch_exceptions=False)
    report = json.loads(done.stdout)
    assert report["ended"] == {"1000": OPENS}
    assert [look["opens"] for look in report["looks"]][:: len(report["looks"]) - 1] == [1_000, OPENS]
    assert report["ratio"] == pytest.approx(report["looks"][-1]["bytes"] / report["looks"][0]["bytes"], abs=1e-4)
    assert report["ratio"] < MOST
