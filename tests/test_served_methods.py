"""A stream chooses its method and operating point, as far as the server lets it, and is told why work was left out."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, get_args

import httpx
import pytest

from client.connection import connect
from client.errors import StreamFailed
from models.checkpoint import CheckpointError, load_checkpoint, save, shipped_path
from models.config import ModelConfig
from models.counting import PRUNED, REASONS
from models.network import Network
from models.operating import METHODS, prune_names
from service import metrics, protocol
from service.errors import UnknownModel
from service.protocol import Configure, Heartbeat
from service.slots import Hosted
from service.spec import Spec

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import numpy as np

POINTS = {"dense": "dense", "shipped": "delta", "pruned": "pruned", "small": "delta+pruned"}
SPEC = Spec("default", "0" * 12, ModelConfig(), POINTS, {})


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The shipped model with two points that prune: scores alone, and scores and heads on top of the gates."""
    shipped = load_checkpoint(shipped_path())
    names = prune_names(shipped.config)
    scores, heads = dict.fromkeys((s for s, _ in names), 0.0), dict.fromkeys((h for _, h in names), 0.5)
    points = {
        "dense": shipped.points["dense"],
        "shipped": shipped.points["shipped"],
        "pruned": shipped.points["dense"] | scores,
        "small": shipped.points["shipped"] | scores | heads,
    }
    path = tmp_path_factory.mktemp("pruned") / "pruned.safetensors"
    save(replace(shipped, points=points), path)
    return path


@pytest.fixture(scope="module")
def pruning(serving: Any, checkpoint: Path) -> Iterator[Any]:
    """A server of that model which keeps score pruning alone to itself."""
    with serving(model=checkpoint, methods=("dense", "delta", "delta+pruned")) as running:
        yield running


async def beats(url: str, samples: np.ndarray, **wish: Any) -> tuple[str, list[Heartbeat]]:
    """The point that a stream got, and its heartbeats."""
    async with connect(url, **wish) as spotter:
        await spotter.send(samples.astype("<i2").tobytes())
        await spotter.finish()
        return spotter.ready.point, [event async for event in spotter if isinstance(event, Heartbeat)]


@pytest.mark.parametrize(("method", "point"), [(None, "shipped"), ("dense", "dense"), ("delta+pruned", "small")])
async def test_a_stream_gets_the_method_it_asks_for(
    pruning: Any, spoken: np.ndarray, method: str | None, point: str
) -> None:
    got, heard = await beats(pruning.stream, spoken, **({"method": method} if method else {}))
    assert got == point
    skipped = heard[-1].skipped
    assert list(skipped) == list(REASONS)
    assert sum(skipped.values()) == pytest.approx(heard[-1].macs_skipped_vs_window)
    assert [skipped["score"] > 0, skipped["head"] > 0] == [point == "small"] * 2
    assert (skipped["delta"] > 0.01) == (point != "dense")


async def test_what_the_server_keeps_to_itself_is_refused(pruning: Any) -> None:
    there = {"method": "this model has delta, delta\\+pruned, dense", "point": "has the points dense, shipped, small"}
    for field, message in there.items():
        with pytest.raises(StreamFailed, match=message):
            async with connect(pruning.stream, **{field: "pruned"}):
                pass


def test_models_tell_the_methods_that_may_be_chosen(pruning: Any) -> None:
    offered = httpx.get(f"{pruning.http}/v1/models").json()[0]["methods"]
    assert offered == {point: method for point, method in POINTS.items() if method != "pruned"}


async def test_metrics_tell_pruning_apart(pruning: Any, spoken: np.ndarray) -> None:
    await beats(pruning.stream, spoken, method="delta+pruned")
    registry = pruning.server.metrics.registry
    for reason in PRUNED:
        labels = {"group": "values", "reason": reason}
        assert registry.get_sample_value("deltaspot_macs_pruned_total", labels) > 0


@pytest.mark.parametrize(
    ("wish", "point"),
    [
        ({}, "shipped"),
        ({"method": "delta"}, "shipped"),
        ({"method": "pruned"}, "pruned"),
        ({"point": "small"}, "small"),
        ({"point": "small", "method": "delta+pruned"}, "small"),
    ],
)
def test_point_follows_from_the_wish(wish: dict[str, Any], point: str) -> None:
    assert SPEC.point(Configure(**wish)) == point


def test_a_point_of_another_method_is_no_choice() -> None:
    with pytest.raises(UnknownModel, match="the point small has delta\\+pruned") as refused:
        SPEC.point(Configure(point="small", method="dense"))
    assert refused.value.field == "method"


def test_a_model_without_an_allowed_point_is_not_served(checkpoint: Path) -> None:
    stored = load_checkpoint(checkpoint)
    gated = Network(replace(stored, points={"shipped": stored.points["shipped"]}))
    with pytest.raises(CheckpointError, match="no operating point of the methods pruned, but .*'shipped': 'delta'"):
        Hosted.of("x", gated, 1, 0.0, ("pruned",))


def test_both_sides_name_the_same_methods_and_reasons() -> None:
    assert get_args(protocol.Method) == METHODS
    assert metrics.PRUNED == PRUNED
