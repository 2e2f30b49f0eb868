"""The stock Keyword Transformer: imported from the published file, in torch, and without torch."""

from __future__ import annotations

import base64
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from models import kwt_weights
from models.config import ConfigError
from models.data import pad_clip, read_audio, walk
from models.kwt import KWT, Attention
from models.kwt_clip import ClipNetwork
from models.kwt_weights import PRODUCTS, KWTConfig, KWTFileError

if TYPE_CHECKING:
    from pathlib import Path

    from models.features import Array

SMALL = KWTConfig(channels=8, heads=2, layers=2, hidden=16, clip_samples=4_000)


def random_weights(config: KWTConfig) -> dict[str, Array]:
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(0, 0.2, shape).astype(np.float32) for name, shape in config.shapes().items()}
    weights["frontend.mel"] = np.abs(weights["frontend.mel"])
    return weights


@pytest.fixture(scope="module")
def clips(shared_data: Path) -> list[Array]:
    """Thirty validation clips, spread over the words, and exact silence."""
    archive = [item for item in walk(shared_data) if item.path.suffix == ".flac"]
    chosen = [pad_clip(read_audio(item.data)) for item in archive[:: len(archive) // 30]]
    return [*chosen, np.zeros(16_000, np.float32)]


@pytest.mark.parametrize("config", [SMALL, KWTConfig(channels=192, heads=3, layers=1, hidden=768)])
def test_numpy_equals_torch(config: KWTConfig) -> None:
    weights = random_weights(config)
    samples = np.random.default_rng(1).normal(0, 3_000, config.clip_samples).astype(np.float32)
    with torch.inference_mode():
        expected = KWT(config, weights)(torch.from_numpy(samples)[None])[0]
    network = ClipNetwork(config, weights)
    np.testing.assert_allclose(network.logits(samples), expected.numpy(), atol=1e-4)
    np.testing.assert_allclose(network.judge(samples), expected.softmax(-1).numpy(), atol=1e-5)


def test_batch_equals_alone() -> None:
    model = KWT(SMALL, random_weights(SMALL))
    samples = torch.from_numpy(np.random.default_rng(2).normal(0, 3_000, (3, SMALL.clip_samples)).astype(np.float32))
    with torch.inference_mode():
        together, alone = model(samples), torch.cat([model(clip[None]) for clip in samples])
    torch.testing.assert_close(together, alone, atol=1e-5, rtol=1e-5)


def test_dense_attention_counts_what_the_shape_says() -> None:
    attention = Attention()
    with torch.inference_mode():
        KWT(SMALL, random_weights(SMALL))(torch.zeros(2, SMALL.clip_samples), attention)
    assert {group: macs.item() / attention.clips for group, macs in attention.done.items()} == {
        group: SMALL.macs()[group] for group in PRODUCTS
    }


def test_cost_and_size_of_kwt1_are_the_published_ones() -> None:
    config = KWTConfig()
    weights = {name: shape for name, shape in config.shapes().items() if not name.startswith("frontend.")}
    assert sum(int(np.prod(shape)) for shape in weights.values()) == 607_308
    assert round(sum(config.macs().values()) / 1e6, 1) == 73.7


def test_checkpoint_round_trip(tmp_path: Path) -> None:
    weights = random_weights(SMALL)
    kwt_weights.save(tmp_path / "kwt.safetensors", SMALL, weights)
    config, loaded = kwt_weights.load(tmp_path / "kwt.safetensors")
    assert config == SMALL
    for name, value in weights.items():
        np.testing.assert_array_equal(loaded[name], value)


def test_files_and_shapes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    weights = random_weights(SMALL)
    with pytest.raises(KWTFileError, match=r"head\.bias must be"):
        kwt_weights.save(tmp_path / "x", SMALL, weights | {"head.bias": np.zeros(3, np.float32)})
    with pytest.raises(KWTFileError, match=r"stem\.bias is missing"):
        kwt_weights.save(tmp_path / "x", SMALL, {k: v for k, v in weights.items() if k != "stem.bias"})
    (tmp_path / "broken").write_bytes(b"no safetensors")
    with pytest.raises(KWTFileError, match="cannot read"):
        kwt_weights.load(tmp_path / "broken")
    with pytest.raises(KWTFileError, match=r"head\.bias holds NaN"):
        kwt_weights.save(tmp_path / "x", SMALL, weights | {"head.bias": np.full(len(SMALL.labels), np.nan, "f4")})
    for config in ({}, {"config": "{"}, {"config": "3"}, {"config": "{}"}, {"config": '{"labels": [], "heads": 0}'}):
        save_file(weights, tmp_path / "bent", {"format": kwt_weights.FORMAT, **config})
        with pytest.raises(KWTFileError, match="bent has a broken shape"):
            kwt_weights.load(tmp_path / "bent")
    assert not (tmp_path / "x").exists()
    kwt_weights.save(tmp_path / "new" / "x", SMALL, weights)
    with pytest.raises(ConfigError, match="multiple of heads"):
        KWTConfig(channels=10, heads=3)


def test_import_matches_the_published_interpreter(shared_models: Path, clips: list[Array]) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the litert extra")
    from models.kwt_import import import_tflite, reference

    config, weights = import_tflite(shared_models / "kwt1_v2_12.tflite")
    published = reference(shared_models / "kwt1_v2_12.tflite")
    expected = np.array([published(clip) for clip in clips])
    with torch.inference_mode():
        ours = KWT(config, weights)(torch.from_numpy(np.array(clips))).numpy()
    np.testing.assert_allclose(ours, expected, atol=1e-3)
    network = ClipNetwork(config, weights)
    np.testing.assert_allclose([network.logits(clip) for clip in clips], expected, atol=1e-3)


def test_import_refuses_other_files(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the litert extra")
    from models.kwt_import import import_tflite

    (tmp_path / "other.tflite").write_bytes(b"not a flatbuffer")
    with pytest.raises(KWTFileError, match="cannot read"):
        import_tflite(tmp_path / "other.tflite")


BENT = (
    "GAAAAFRGTDMAAA4AFAAQAAwACAAAAAQADgAAABAAAAAQAAAAbAAAAAMAAAAAAAAAAQAAABAAAAAMABQAEAAMAAgABAAMAAAAEAAAADgAAAA4AAAA"
    "OAAAAAEAAAAQAAAAAAAKAAwAAAAIAAQACgAAAAgAAAAIAAAAAAAAAAEAAAAHAAAAAAAAAAAAAAAAAAAAAQAAAAgAAAAEAAQABAAAAA=="
)
"""A tflite file in which the one node of the graph reads tensor 7, and there are no tensors."""


def test_import_refuses_a_graph_that_cannot_run(tmp_path: Path) -> None:
    pytest.importorskip("ai_edge_litert", reason="needs the litert extra")
    from models.kwt_import import import_tflite

    (tmp_path / "bent.tflite").write_bytes(base64.b64decode(BENT))
    with pytest.raises(KWTFileError, match=r"cannot read .*bent\.tflite: Invalid tensor index 7"):
        import_tflite(tmp_path / "bent.tflite")
