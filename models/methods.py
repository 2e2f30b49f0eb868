"""Every published method on the same clips: one row each of accuracy, work and time.

Thresholds are learned on training clips (`learn_thresholds`) and travel in one JSON file; accuracy is measured on
the split asked for. Shares of multiply-accumulates cut are against the same network dense, in three scopes: the
three attention products, those with the output projection, and the whole model. `cpu_ms_per_audio_s` of the
stock network is the torch reference's, which computes everything and counts what it could have left out; only
the streaming network's compiled step leaves work out on the clock.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models import kwt_delta, pruning
from models.config import ModelConfig
from models.data import AUDIO, NOISE_FOLDERS, split_of
from models.evaluate import LabelledClips, read_clips
from models.hybrid import HybridAttention
from models.kwt import KWT, Attention
from models.kwt_weights import PRODUCTS
from models.offline import judge

if TYPE_CHECKING:
    from torch import Tensor

    from models.data import Item
    from models.kwt_weights import KWTConfig
    from models.network import Network

THRESHOLDS = Path(__file__).parent / "weights" / "kwt1_thresholds.json"
"""Thresholds learned for KWT-1 by `learn_thresholds` on Speech Commands training clips."""
CUTS = (0.7, 0.8, 0.85, 0.87, 0.9, 0.92, 0.94)
"""Shares of the three products' operations at which a point of the delta curve is kept."""
PRICES = (0.1, 0.2, 0.4)
"""Nats per share of surviving scores, for which thresholds of score pruning are learned."""
BATCH = 32


@dataclass(frozen=True, slots=True)
class Row:
    """One method at one setting. Shares are 0..1; a stream of the stock network keeps its last second of audio."""

    network: str
    method: str
    setting: str
    accuracy: float
    macs_cut_products: float
    macs_cut_attention: float
    macs_cut_model: float
    cpu_ms_per_audio_s: float
    parameters: int
    bytes_per_session: int


def cuts(done: Mapping[str, float], dense: Mapping[str, float]) -> dict[str, float]:
    """Share of multiply-accumulates cut in the three scopes; a group not in `done` was dense."""
    scopes = {"products": PRODUCTS, "attention": (*PRODUCTS, "out"), "model": tuple(dense)}
    left = {**dense, **done}
    return {
        f"macs_cut_{scope}": 1 - sum(left[group] for group in groups) / sum(dense[group] for group in groups)
        for scope, groups in scopes.items()
    }


@torch.inference_mode()
def embed(model: KWT, clips: LabelledClips) -> Tensor:
    """Clips as the first block of the stock network sees them: (n, N, C)."""
    samples = torch.from_numpy(np.stack(clips.samples))
    return torch.cat([model.embed(part) for part in samples.split(BATCH)])


@torch.inference_mode()
def stock_row(model: KWT, embedded: Tensor, targets: Tensor, method: str, setting: str, attention: Attention) -> Row:
    """Judge embedded clips with one attention."""
    began = time.process_time()
    verdicts = torch.cat([model.judge(part, attention).argmax(dim=-1) for part in embedded.split(BATCH)])
    spent = time.process_time() - began
    config = model.config
    return Row(
        network="kwt1",
        method=method,
        setting=setting,
        accuracy=(verdicts == targets).double().mean().item(),
        **cuts({group: macs.item() / attention.clips for group, macs in attention.done.items()}, config.macs()),
        cpu_ms_per_audio_s=1000 * spent / len(embedded),
        parameters=sum(p.numel() for p in model.parameters()),
        bytes_per_session=4 * config.clip_samples,
    )


def attentions(thresholds: Mapping[str, Any]) -> Iterator[tuple[str, str, Attention]]:
    """Every method and setting of the stock network, dense first."""
    yield "dense", "", Attention()
    for point in thresholds["delta"]:
        table = torch.tensor(point["thresholds"])
        yield "delta", f"{point['cut']:.0%} cut on training clips", kwt_delta.DeltaAttention(table)
    for point in thresholds["leopard"]:
        tables = torch.tensor(point["thresholds"]), torch.tensor(point["centres"])
        yield "leopard", f"{point['pruned']:.0%} pruned on training clips", pruning.PrunedAttention(*tables)
    for rho in (-1.0, -0.5, 0.0, 0.3):
        yield "hybrid", f"literal, rho {rho:+.1f}", HybridAttention(rho)
    for rho in (-0.5, 0.0, 0.1, 0.3):
        yield "hybrid", f"signed, rho {rho:+.1f}", HybridAttention(rho, signed=True)
    yield "hybrid", "signed, rho +0.0, tau 150", HybridAttention(0.0, 150.0, signed=True)


def stock_rows(model: KWT, clips: LabelledClips, thresholds: Mapping[str, Any]) -> Iterator[Row]:
    """The stock network's part of the table."""
    model = pruning.compact(model)
    embedded, targets = embed(model, clips), torch.from_numpy(clips.targets)
    for method, setting, attention in attentions(thresholds):
        yield stock_row(model, embedded, targets, method, setting, attention)


def streaming_rows(network: Network, clips: LabelledClips) -> Iterator[Row]:
    """The streaming network's part: dense, and the delta gate at each operating point, in the compiled step."""
    bytes_per_session = network.new_cache(1).bytes_per_row
    network.warm_up()
    for point in network.points:
        began = time.process_time()
        judged = [
            result
            for start in range(0, len(clips.samples), BATCH)
            for result in judge(network, clips.samples[start : start + BATCH], point=point)
        ]
        spent = time.process_time() - began
        verdicts = np.array([posteriors[-1].argmax() for posteriors, _ in judged])
        total = sum((count for _, count in judged[1:]), judged[0][1])
        seconds = sum(map(len, clips.samples)) / network.config.frontend.sample_rate
        yield Row(
            network="skwt",
            method="dense" if point == "dense" else "delta",
            setting=point,
            accuracy=float((verdicts == clips.targets).mean()),
            **cuts(total.done, total.causal),
            cpu_ms_per_audio_s=1000 * spent / seconds,
            parameters=network.checkpoint.parameters,
            bytes_per_session=bytes_per_session,
        )


def training_clips(items: Iterable[Item], config: KWTConfig, per_word: int = 80, per_other: int = 12) -> LabelledClips:
    """A balanced draw of training clips: so many of each keyword, fewer of each other word."""
    by_word: dict[str, list[Item]] = {}
    for item in items:
        if item.path.suffix in AUDIO and item.word not in NOISE_FOLDERS and split_of(item.speaker) == "training":
            by_word.setdefault(item.word, []).append(item)
    draw = np.random.default_rng(0)
    chosen = [
        item
        for word, found in sorted(by_word.items())
        for item in draw.permutation(np.array(found, object))[: per_word if word in config.labels else per_other]
    ]
    return read_clips(chosen, ModelConfig(labels=config.labels), "training")


def learn_thresholds(model: KWT, clips: LabelledClips, steps: int = 400) -> dict[str, Any]:
    """Learn every method's thresholds on training clips; weights stay as published."""
    torch.manual_seed(0)
    embedded, targets = embed(model, clips).clone(), torch.from_numpy(clips.targets)
    model = pruning.compact(model)
    return {
        "delta": list(_delta_points(model, embedded, targets, steps)),
        "leopard": list(_leopard_points(model, embedded, steps)),
    }


def _delta_points(model: KWT, embedded: Tensor, targets: Tensor, steps: int) -> Iterator[dict[str, Any]]:
    """The first thresholds on the way that reach each of `CUTS`."""
    wanted = list(CUTS)
    for left, table in kwt_delta.learn(model, embedded, steps=steps):
        if wanted and left < 1.1 * (1 - wanted[0]):
            attention = kwt_delta.DeltaAttention(table)
            cut = stock_row(model, embedded[::4], targets[::4], "delta", "", attention).macs_cut_products
            while wanted and cut >= wanted[0]:
                yield {"cut": wanted.pop(0), "thresholds": _rounded(table)}


def _leopard_points(model: KWT, embedded: Tensor, steps: int) -> Iterator[dict[str, Any]]:
    for price in PRICES:
        *_, learned = pruning.learn(model, embedded, steps=steps // 4, price=price, rates=(0.03, 0.0))
        yield {
            "pruned": round(1 - learned.survived, 2),
            "thresholds": _rounded(learned.thresholds),
            "centres": [_rounded(centre) for centre in learned.centres],
        }


def _rounded(table: Tensor) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in row] for row in table.tolist()]


def save_thresholds(thresholds: Mapping[str, Any], path: Path) -> None:
    """Write learned thresholds as JSON."""
    path.write_text(json.dumps(thresholds, indent=1) + "\n")
