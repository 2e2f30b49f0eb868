"""The network as ONNX graphs, for runtimes other than ours. Dense arithmetic: delta gates do not fit a fixed graph.

clip: frames (B, T, M) of one second -> logits (B, N, K), from an empty past.
step: frames (B, stride, M) of one token, and the cache -> logits (B, K), and the next cache. The cache is explicit:

    past_frames  (B, kernel - stride, M)    -1 at the start of a stream
    keys, values (B, L, H, P, D)            P = 0 at the start, then one more with each token up to span - 1
    pool_scores  (B, H, R, 1)               likewise up to pool_span - 1
    pool_values  (B, H, R, D)               likewise

Both read network input, pixel / 64 - 1 of the front end (`models.features.log_mel`); labels, front end and
fingerprint stand in the graph's metadata. Knows torch, and nothing of sessions.
"""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any, cast

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from models.checkpoint import Checkpoint, CheckpointError
from models.config import ModelConfig
from models.data import CLIP_SAMPLES
from models.features import SILENT, Array
from models.folding import filled
from models.transformer import Past, StreamingKWT

OPSET = 17
CACHE = ("past_frames", "keys", "values", "pool_scores", "pool_values")
"""The cache's tensors, as the step's inputs; its outputs are called the same with `next_` before."""
POOL = "readout"


def reference(checkpoint: Checkpoint) -> StreamingKWT:
    """The checkpoint's weights in the torch network, ready to judge.

    Raises:
        CheckpointError: for layers that fold; the tracer does not understand them.
    """
    if max(checkpoint.config.factors) > 1:
        raise CheckpointError("a network whose layers fold cannot be exported; serve it as it is")
    return filled(StreamingKWT(checkpoint.config), checkpoint)


class ClipGraph(nn.Module):
    """A recording as a stream with an empty past."""

    def __init__(self, model: StreamingKWT) -> None:
        super().__init__()
        self.model = model

    def forward(self, frames: Tensor) -> Tensor:
        """(B, T, M) -> (B, N, K)."""
        config = self.model.config
        silent = frames[:, : config.kernel - config.stride] * 0.0 + SILENT  # keeps the graph's shapes known
        return self.model(frames, Past(silent))[0]


class StepGraph(nn.Module):
    """One token, with the past as plain tensors."""

    def __init__(self, model: StreamingKWT) -> None:
        super().__init__()
        self.model = model
        self.names = [f"block{i}" for i in range(model.config.layers)]

    def forward(
        self, frames: Tensor, past_frames: Tensor, keys: Tensor, values: Tensor, scores: Tensor, pooled: Tensor
    ) -> tuple[Tensor, ...]:
        """(B, stride, M) and the cache -> (B, K) and the next cache."""
        memory = {name: (keys[:, i], values[:, i]) for i, name in enumerate(self.names)}
        logits, future = self.model(frames, Past(past_frames, {**memory, POOL: (scores, pooled)}))
        keys, values = (torch.stack([future.memory[name][part] for name in self.names], dim=1) for part in (0, 1))
        return logits[:, 0], cast("Tensor", future.frames), keys, values, *future.memory[POOL]


def empty_cache(config: ModelConfig, batch: int) -> dict[str, Array]:
    """The step's cache at the start of `batch` streams."""
    keep, heads, channels = config.kernel - config.stride, config.heads, config.head_channels
    shapes = {
        "past_frames": (batch, keep, config.frontend.bands),
        "keys": (batch, config.layers, heads, 0, channels),
        "values": (batch, config.layers, heads, 0, channels),
        "pool_scores": (batch, heads, 0, 1),
        "pool_values": (batch, heads, 0, channels),
    }
    return {name: np.full(shape, SILENT, np.float32) for name, shape in shapes.items()}


def export_clip(checkpoint: Checkpoint, path: Path) -> None:
    """Write the clip graph: exactly one second, any number of clips."""
    config = checkpoint.config
    example = torch.zeros(2, config.tokens_over(CLIP_SAMPLES) * config.stride, config.frontend.bands)
    axes = {"frames": {0: "batch"}, "logits": {0: "batch"}}
    _export(ClipGraph(reference(checkpoint)), (example,), ["frames"], ["logits"], axes, path)
    _describe(checkpoint, "clip", path)


def export_step(checkpoint: Checkpoint, path: Path) -> None:
    """Write the step graph: one token, any number of streams of the same age."""
    config = checkpoint.config
    model = StepGraph(reference(checkpoint))
    example = [torch.zeros(2, config.stride, config.frontend.bands)]
    example += [torch.tensor(array) for array in empty_cache(config, 2).values()]
    for _ in range(3):  # an example whose past is neither empty nor full, so that its length stays open
        example[1:] = model(*example)[1:]
    inputs, outputs = ["frames", *CACHE], ["logits", *(f"next_{name}" for name in CACHE)]
    axes = {name: {0: "batch"} for name in (*inputs, *outputs)}
    for name, place in {"keys": 3, "values": 3, "pool_scores": 2, "pool_values": 2}.items():
        ring = "pooled" if place == 2 else "past"
        axes[name] |= {place: ring}
        axes[f"next_{name}"] |= {place: f"{ring}_kept"}
    _export(model, tuple(example), inputs, outputs, axes, path)
    _describe(checkpoint, "step", path)


def _export(
    graph: nn.Module,
    example: tuple[Tensor, ...],
    inputs: list[str],
    outputs: list[str],
    axes: dict[str, dict[int, str]],
    path: Path,
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # the tracer tells of every Python number it met; parity is tested instead
        torch.onnx.export(
            graph,
            example,
            path,
            input_names=inputs,
            output_names=outputs,
            dynamic_axes=axes,
            opset_version=OPSET,
            dynamo=False,
        )


def _describe(checkpoint: Checkpoint, form: str, path: Path) -> None:
    """Write into the graph what its user has to know; and check it."""
    graph = onnx.load(path)
    config = checkpoint.config
    facts: dict[str, Any] = {
        "form": form,
        "fingerprint": checkpoint.fingerprint,
        "labels": json.dumps(config.labels),
        "config": json.dumps(config.to_dict()),
    }
    onnx.helper.set_model_props(graph, facts)
    onnx.checker.check_model(graph)
    onnx.save(graph, path)
