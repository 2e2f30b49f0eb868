"""Every published method on the same clips: one row each of accuracy, work and time.

Thresholds are learned on training clips (`learn_stock`, `learn_streaming`) and travel in one JSON file; accuracy is
measured on the split asked for. Shares of multiply-accumulates cut are against the same network dense, in three
scopes: the three attention products, those with the output projection, and the whole model. `cpu_ms_per_audio_s` of
kwt1, and of skwt under score pruning and hybrid pruning, is the torch reference's, which computes everything and
counts what could be left out; what skwt's engines leave out on the clock is in `models.methods_engines`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from models import kwt_delta, pruning, pruning_tuned
from models.config import ModelConfig
from models.counting import causal_macs
from models.data import audio_clips
from models.evaluate import LabelledClips, read_clips
from models.hybrid import HybridAttention
from models.kwt import KWT, Attention
from models.kwt_combined import PrunedDelta
from models.kwt_weights import PRODUCTS
from models.methods_streaming import StreamingJudge

if TYPE_CHECKING:
    from torch import Tensor

    from models.checkpoint import Checkpoint
    from models.data import Item
    from models.kwt import Judge

Found = dict[str, Any]
FOUND = Path(__file__).parent / "weights" / "methods.json"
"""What `learn_stock` and `learn_streaming` found on Speech Commands training clips, by network."""
CUTS = (0.8, 0.85, 0.87, 0.9, 0.92, 0.94)
"""Shares of the three products' operations at which a point of the delta curve is kept."""
COMBINED = (0.8, 0.87, 0.94)
"""Those of `CUTS` at which the delta gate is tried together with score pruning."""
PRICES = (0.02, 0.06, 0.2)
"""Nats per share of surviving scores, for which thresholds of score pruning are learned."""
BATCH = 32


@dataclass(frozen=True, slots=True)
class Row:
    """One method at one setting. Shares are 0..1; a stream of kwt1 keeps its last second of audio.

    bytes_read_per_token: weights, keys and values that a token's products read, where an engine counts them.
    """

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
    bytes_read_per_token: int | None


def cuts(done: Mapping[str, float], dense: Mapping[str, float]) -> dict[str, float]:
    """Share of multiply-accumulates cut in the three scopes; a group not in `done` was dense."""
    scopes = {"products": PRODUCTS, "attention": (*PRODUCTS, "out"), "model": tuple(dense)}
    left = {**dense, **done}
    return {
        f"macs_cut_{scope}": 1 - sum(left[group] for group in groups) / sum(dense[group] for group in groups)
        for scope, groups in scopes.items()
    }


@dataclass(frozen=True)
class Bench:
    """A network in the torch reference, and prepared clips to judge with it.

    clips: (n, ...) as the network's `judge` takes them; dense: multiply-accumulates of a clip by group.
    """

    name: str
    model: Judge
    clips: Tensor
    targets: Tensor
    dense: Mapping[str, int]
    bytes_per_session: int

    @torch.inference_mode()
    def row(self, method: str, setting: str, attention: Attention) -> Row:
        """Judge all clips with one attention."""
        began = time.process_time()
        verdicts = torch.cat([self.model.judge(part, attention).argmax(dim=-1) for part in self.clips.split(BATCH)])
        spent = time.process_time() - began
        return Row(
            network=self.name,
            method=method,
            setting=setting,
            accuracy=(verdicts == self.targets).double().mean().item(),
            **cuts({group: macs.item() / attention.clips for group, macs in attention.done.items()}, self.dense),
            cpu_ms_per_audio_s=1000 * spent / len(self.clips),
            parameters=sum(p.numel() for p in self.model.parameters()),
            bytes_per_session=self.bytes_per_session,
            bytes_read_per_token=None,
        )


@torch.no_grad()
def stock_bench(model: KWT, clips: LabelledClips) -> Bench:
    """The stock network; the front end is done beforehand."""
    samples = torch.from_numpy(np.stack(clips.samples))
    embedded = torch.cat([model.embed(part) for part in samples.split(BATCH)])
    config = model.config
    targets = torch.from_numpy(clips.targets)
    return Bench("kwt1", model, embedded, targets, config.macs(), 4 * config.clip_samples)


def streaming_bench(checkpoint: Checkpoint, clips: LabelledClips, bytes_per_session: int = 0) -> Bench:
    """The streaming network's reference; the front end is done beforehand."""
    model = StreamingJudge(checkpoint).eval().requires_grad_(requires_grad=False)
    frames = model.prepare(clips.samples)
    dense = causal_macs(checkpoint.config, frames.shape[1] // checkpoint.config.stride)
    return Bench("skwt", model, frames, torch.from_numpy(clips.targets), dense, bytes_per_session)


def attentions(found: Mapping[str, Any]) -> Iterator[tuple[str, str, Attention]]:
    """Methods and settings beside the dense network: what was learned for it, and hybrid pruning."""
    for point in found.get("delta", ()):
        table = torch.tensor(point["thresholds"])
        yield "delta", f"{point['cut']:.0%} cut on training clips", kwt_delta.DeltaAttention(table)
    for point in found.get("leopard", ()):
        tables = torch.tensor(point["thresholds"]), torch.tensor(point["centres"])
        yield "leopard", f"{point['pruned']:.0%} pruned on training clips", pruning.PrunedAttention(*tables)
    for rho in (-1.0, -0.5, 0.0, 0.3):
        yield "hybrid", f"literal, rho {rho:+.1f}", HybridAttention(rho)
    for rho in (-0.5, 0.0, 0.1, 0.3):
        yield "hybrid", f"signed, rho {rho:+.1f}", HybridAttention(rho, signed=True)
    yield "hybrid", "signed, rho +0.0, tau 150", HybridAttention(0.0, 150.0, signed=True)


def stock_rows(
    model: KWT, clips: LabelledClips, found: Mapping[str, Any], tuned: pruning_tuned.Tuned | None = None
) -> Iterator[Row]:
    """The stock network's part of the table; with score pruning's tuned weights, if there are any."""
    bench = stock_bench(model, clips)
    turned = replace(bench, model=pruning.compact(model))
    learned = found.get("kwt1", {})
    for method, setting, attention in (("dense", "", Attention()), *attentions(learned)):
        yield (turned if method == "leopard" else bench).row(method, setting, attention)
    if tuned is not None:
        yield from _tuned_rows(bench, tuned, learned)


def _tuned_rows(stock: Bench, tuned: pruning_tuned.Tuned, learned: Mapping[str, Any]) -> Iterator[Row]:
    """Score pruning with its own weights: alone, and on top of the delta gate."""
    tables = tuned.thresholds, tuned.centres
    bench, turned = replace(stock, model=tuned.model), replace(stock, model=pruning.compact(tuned.model))
    share = pruned_share(bench, *tables)
    yield turned.row("leopard", f"weights tuned, {share:.0%} pruned", pruning.PrunedAttention(*tables))
    for point in learned.get("delta", ()):
        if point["cut"] in COMBINED:
            gates = torch.tensor(point["thresholds"])
            yield bench.row(
                "delta + leopard", f"weights tuned, gates of {point['cut']:.0%}", PrunedDelta(gates, *tables)
            )


def training_clips(
    items: Callable[[], Iterable[Item]], labels: tuple[str, ...], per_word: int = 80, others: int = 12
) -> LabelledClips:
    """A balanced draw of training clips: so many of each keyword, fewer of each other word.

    Items are walked twice, so that no more than what is drawn is held.
    """
    by_word: dict[str, list[int]] = {}
    for place, item in enumerate(audio_clips(items(), "training")):
        by_word.setdefault(item.word, []).append(place)
    draw = np.random.default_rng(0)
    chosen = [
        int(place)
        for word, found in sorted(by_word.items())
        for place in draw.permutation(found)[: per_word if word in labels else others]
    ]
    wanted = set(chosen)
    drawn = {place: item for place, item in enumerate(audio_clips(items(), "training")) if place in wanted}
    return read_clips([drawn[place] for place in chosen], ModelConfig(labels=labels), "training")


def learn_stock(model: KWT, clips: LabelledClips, steps: int = 400) -> Found:
    """Thresholds of the delta method and of score pruning for the stock network; weights stay as published."""
    torch.manual_seed(0)
    bench = stock_bench(model, clips)
    turned = replace(bench, model=pruning.compact(model))
    return {
        "delta": list(_delta_points(model, bench, steps)),
        "leopard": list(_pruning_points(turned, steps // 5)),
    }


def learn_streaming(checkpoint: Checkpoint, clips: LabelledClips, steps: int = 80) -> Found:
    """Thresholds of score pruning for a streaming checkpoint, and which one; its delta thresholds are its own."""
    torch.manual_seed(0)
    points = _pruning_points(streaming_bench(checkpoint, clips), steps)
    return {"fingerprint": checkpoint.fingerprint, "leopard": list(points)}


def _delta_points(model: KWT, bench: Bench, steps: int) -> Iterator[Found]:
    """The first thresholds on the way that reach each of `CUTS`, looked at every fifth step."""
    wanted = list(CUTS)
    sample = replace(bench, clips=bench.clips[::4], targets=bench.targets[::4])
    for step, (_, table) in enumerate(kwt_delta.learn(model, bench.clips, steps=steps)):
        if step % 5 == 4 and wanted:
            cut = sample.row("delta", "", kwt_delta.DeltaAttention(table)).macs_cut_products
            while wanted and cut >= wanted[0]:
                yield {"cut": wanted.pop(0), "thresholds": _rounded(table)}


def _pruning_points(bench: Bench, steps: int) -> Iterator[Found]:
    for price in PRICES:
        *_, learned = pruning.learn(bench.model, bench.clips, steps=steps, price=price, rates=(0.03, 0.0))
        yield {
            "pruned": pruned_share(bench, learned.thresholds, learned.centres),
            "thresholds": _rounded(learned.thresholds),
            "centres": [_rounded(centre) for centre in learned.centres],
        }


def pruned_share(bench: Bench, thresholds: Tensor, centres: Tensor) -> float:
    """Share of scores that score pruning drops at run time, on every fourth clip."""
    attention = pruning.PrunedAttention(thresholds, centres, early=False)
    replace(bench, clips=bench.clips[::4], targets=bench.targets[::4]).row("leopard", "", attention)
    return round(1 - attention.done["values"].item() / attention.clips / bench.dense["values"], 2)


def _rounded(table: Tensor) -> list[list[float]]:
    return [[float(f"{value:.4g}") for value in row] for row in table.tolist()]
