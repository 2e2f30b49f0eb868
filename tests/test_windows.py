"""Clips judged by a network that knows no streams: window by window, and over REST."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import typer.testing
from hypothesis import given
from hypothesis import strategies as st
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from models import kwt_weights
from models.config import KEYWORDS, SILENCE
from models.data import pad_clip
from models.kwt_clip import ClipNetwork
from models.kwt_weights import KWTConfig, is_stock
from service.commands.serve import app
from service.errors import UnknownModel
from service.protocol import Configure
from service.windows import HOP, ClipModel, Windows

SMALL = KWTConfig(channels=8, heads=2, layers=1, hidden=16)


def random_network(seed: int = 0) -> ClipNetwork:
    rng = np.random.default_rng(seed)
    weights = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in SMALL.shapes().items()}
    return ClipNetwork(SMALL, weights | {"frontend.mel": np.abs(weights["frontend.mel"])})


NETWORK = random_network()


def noise(samples: int) -> np.ndarray:
    return np.random.default_rng(samples).normal(0, 3_000, samples).astype(np.float32)


def run(blocks: list[np.ndarray]) -> tuple[Windows, np.ndarray]:
    windows = Windows(NETWORK)
    return windows, np.concatenate([*map(windows.feed, blocks), windows.flush()])


@given(st.lists(st.integers(0, 9_000), max_size=6))
def test_any_split_gives_the_same_windows(sizes: list[int]) -> None:
    samples = noise(sum(sizes))
    _, pieces = run(np.split(samples, np.cumsum(sizes)[:-1]) if sizes else [])
    windows, whole = run([samples])
    np.testing.assert_array_equal(pieces, whole)
    assert (windows.samples, windows.judged) == (len(samples), len(whole))


@pytest.mark.parametrize(
    ("samples", "count"), [(0, 1), (5_000, 1), (16_000, 1), (16_001, 2), (17_600, 2), (17_601, 3), (40_000, 16)]
)
def test_windows_are_a_tenth_of_a_second_apart_and_reach_the_end(samples: int, count: int) -> None:
    clip = noise(samples)
    _, rows = run([clip])
    padded = pad_clip(clip) if samples <= 16_000 else np.pad(clip, (0, 16_000))
    expected = [NETWORK.judge(padded[n * HOP :][:16_000]) for n in range(count)]
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_fingerprint_tells_weights_apart(tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.safetensors" for seed in (0, 0, 1)]
    for path, seed in zip(paths, (0, 0, 1), strict=True):
        kwt_weights.save(path, SMALL, random_network(seed).weights)
    first, same, other = (ClipModel.load("kwt", path).fingerprint for path in paths)
    assert first == same != other
    assert not is_stock(tmp_path / "nothing")


def test_point_that_is_not_there_is_refused() -> None:
    model = ClipModel("kwt", "f", NETWORK)
    assert set(model.detector("dense").rules) == set(KEYWORDS)
    with pytest.raises(UnknownModel, match="dense only"):
        model.detector("shipped")


@pytest.fixture(scope="module")
def stock_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("stock") / "kwt.safetensors"
    kwt_weights.save(path, SMALL, NETWORK.weights)
    return path


def test_server_judges_clips_with_it_and_keeps_streams_away(
    serving: Callable[..., AbstractContextManager[Any]], stock_file: Path, spoken: np.ndarray
) -> None:
    with serving(models={"kwt": stock_file}) as running, httpx.Client(base_url=running.http, timeout=60) as web:
        shipped, described = web.get("/v1/models").json()
        assert (shipped["streams"], described["streams"], described["name"]) == (True, False, "kwt")
        assert set(described["keywords"]) == set(KEYWORDS)

        body, query = spoken[:40_000].astype("<i2").tobytes(), {"encoding": "s16le", "model": "kwt"}
        answer = web.post("/v1/detect", content=body, params=query).json()
        _, rows = run([spoken[:40_000].astype(np.float32)])
        assert {top["label"]: top["score"] for top in answer["top"]} == pytest.approx(
            {word: min(row) if word == SILENCE else max(row) for word, row in zip(SMALL.labels, rows.T, strict=True)},
            abs=1e-4,
        )
        assert (answer["model"], answer["seconds"]) == ("kwt", 2.5)
        assert web.post("/v1/detect", content=body, params=query | {"keywords": "yes"}).json()["field"] == "keywords"
        assert answer["macs"] == {
            "done": 16 * sum(SMALL.macs().values()),
            "skipped_vs_window": 0,
            "skipped_vs_causal": 0,
        }
        for content, more, status in ((b"", {}, 415), (body, {"point": "shipped"}, 422)):
            assert web.post("/v1/detect", content=content, params=query | more).status_code == status
        assert running.server.engine.places.used == 0
        with connect(running.stream) as socket:
            socket.send(Configure(model="kwt").model_dump_json())
            assert "judges clips only" in str(socket.recv())
            with pytest.raises(ConnectionClosed):
                socket.recv()


def test_serving_it_to_streams_says_where_it_belongs(stock_file: Path) -> None:
    result = typer.testing.CliRunner().invoke(app, ["--model", str(stock_file)])
    assert "DELTASPOT_MODELS" in str(result.exception)
