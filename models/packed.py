"""A checkpoint's weights and sizes, rearranged for the kernels."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np

from models.cache import Layout, layout, padded
from models.checkpoint import Checkpoint, CheckpointError
from models.config import ConfigError, ModelConfig
from models.counting import fold_factors
from models.kernels import F16, F32
from models.lanes import WIDTH


class Sizes(NamedTuple):
    """The model's shape: `labels` is `label_count` padded to whole vectors, `scale` the factor on scores."""

    bands: int
    stride: int
    kernel: int
    channels: int
    layers: int
    heads: int
    hidden: int
    span: int
    pool_span: int
    labels: int
    label_count: int
    scale: np.float32


class Weights(NamedTuple):
    """All weights, input-major: a matrix (in, out) is one flat row per input channel, layer after layer.

    Matrices are half-precision floats, kept as uint16, which numba can hold; a checkpoint's are rounded already.
    Every bias row follows its matrix's outputs; `age_bias` holds, per
    head, the bias by age twice in a row and reversed, so that any rotation of the ring is one slice.
    """

    stem: F16
    stem_bias: F32
    norm1: F32
    qkv: F16
    qkv_bias: F32
    age_bias: F32
    out: F16
    out_bias: F32
    norm2: F32
    up: F16
    up_bias: F32
    down: F16
    down_bias: F32
    pool_norm: F32
    pool_query: F16
    pool_age_bias: F32
    head: F16
    head_bias: F32


class Net(NamedTuple):
    """All that is the same for every stream."""

    weights: Weights
    sizes: Sizes
    layout: Layout


def pack(checkpoint: Checkpoint) -> Net:
    """Make a checkpoint ready for the kernels.

    Raises:
        CheckpointError: where a weight is missing or has another shape than the configuration says.
        ConfigError: for sizes that are no whole number of vectors, and for folded layers.
    """
    if max(fold_factors(checkpoint.config)) > 1:
        raise ConfigError("folded layers are not compiled; run them in the torch engine")
    return Net(_weights(checkpoint), _sizes(checkpoint.config), layout(checkpoint.config))


def _sizes(config: ModelConfig) -> Sizes:
    return Sizes(
        config.frontend.bands,
        config.stride,
        config.kernel,
        config.channels,
        config.layers,
        config.heads,
        config.hidden,
        config.span,
        config.pool_span,
        padded(len(config.labels)),
        len(config.labels),
        np.float32(config.head_channels**-0.5),
    )


def _weights(checkpoint: Checkpoint) -> Weights:
    config = checkpoint.config
    c, hidden, labels = config.channels, config.hidden, len(config.labels)

    def get(name: str, *shape: int) -> F32:
        array = checkpoint.weights.get(name)
        if array is None or array.shape != shape:
            found = "missing" if array is None else f"of shape {array.shape}"
            raise CheckpointError(f"weight {name} is {found}; the configuration asks for {shape}")
        return array

    def each(name: str, *shape: int) -> list[F32]:
        return [get(f"blocks.{i}.{name}", *shape) for i in range(config.layers)]

    return Weights(
        stem=_matrix([get("stem.weight", c, config.stem_inputs)], rows=padded(config.stem_inputs)),
        stem_bias=get("stem.bias", c),
        norm1=_flat(zip(each("norm1.weight", c), each("norm1.bias", c), strict=True)),
        qkv=_matrix(each("attention.qkv.weight", 3 * c, c)),
        qkv_bias=_flat(each("attention.qkv.bias", 3 * c)),
        age_bias=_flat(_by_slot(b) for b in each("attention.attend.bias", config.heads, config.span)),
        out=_matrix(each("attention.out.weight", c, c)),
        out_bias=_flat(each("attention.out.bias", c)),
        norm2=_flat(zip(each("norm2.weight", c), each("norm2.bias", c), strict=True)),
        up=_matrix(each("up.weight", hidden, c)),
        up_bias=_flat(each("up.bias", hidden)),
        down=_matrix(each("down.weight", c, hidden)),
        down_bias=_flat(each("down.bias", c)),
        pool_norm=_flat([get("readout.norm.weight", c), get("readout.norm.bias", c)]),
        pool_query=_matrix([get("readout.query.weight", config.heads, c)], columns=WIDTH),
        pool_age_bias=_flat([_by_slot(get("readout.attend.bias", config.heads, config.pool_span))]),
        head=_matrix([get("readout.head.weight", labels, c)], columns=padded(labels)),
        head_bias=np.pad(get("readout.head.bias", labels), (0, padded(labels) - labels)),
    )


def _matrix(matrices: list[F32], rows: int = 0, columns: int = 0) -> F16:
    """Matrices (out, in) -> one flat array, input-major, padded with zeros to `rows` inputs and `columns` outputs."""
    turned = [np.asarray(m, np.float16).T for m in matrices]
    padding = [((0, max(0, rows - m.shape[0])), (0, max(0, columns - m.shape[1]))) for m in turned]
    return np.concatenate([np.pad(m, p).ravel() for m, p in zip(turned, padding, strict=True)]).view(np.uint16)


def _flat(arrays: Iterable[F32 | tuple[F32, ...]]) -> F32:
    return np.concatenate([np.asarray(a, np.float32).ravel() for a in arrays])


def _by_slot(bias: F32) -> F32:
    """Bias by age (H, W) -> (H, 2 W): from place W - p on, the biases of slots 0..W - 1 when slot p is newest."""
    span = bias.shape[1]
    return bias[:, -np.arange(2 * span) % span]
