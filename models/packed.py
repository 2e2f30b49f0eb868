"""A checkpoint's weights and sizes, rearranged for the kernels."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from models.cache import Layout, block_layout, layout, offsets, padded
from models.checkpoint import Checkpoint, CheckpointError
from models.config import FILTER_SHAPES, ConfigError, ModelConfig
from models.filters import Filters, Shape, by_group, reached, shapes, with_edges
from models.kernels import BF16, F32, paired
from models.pages import together
from models.vectors import WIDTH


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

    Matrices are bfloat16, kept as uint16, which numba can hold; a checkpoint's are rounded already. Of two vectors of a
    row the first lies in the lower halves of sixteen words and the second in the upper ones; a row is whole pairs long.
    Every bias row follows its matrix's outputs; `age_bias` holds, per head, the bias by age twice in a row and
    reversed, so that any rotation of the ring is one slice; a folded layer has that for each of a token's sub-tokens.
    """

    stem: BF16
    stem_bias: F32
    norm1: F32
    qkv: BF16
    qkv_bias: F32
    age_bias: F32
    out: BF16
    out_bias: F32
    norm2: F32
    up: BF16
    up_bias: F32
    down: BF16
    down_bias: F32
    pool_norm: F32
    pool_query: BF16
    pool_age_bias: F32
    head: BF16
    head_bias: F32


class Net(NamedTuple):
    """All that is the same for every stream."""

    weights: Weights
    sizes: Sizes
    layout: Layout
    filters: Filters


class FoldedNet(NamedTuple):
    """All that is the same for every stream, where some layers are folded.

    weights, sizes, layout, filters: as a `Net` of the plain layers alone.
    folded: a `Net` of the folded layers alone, with the sizes and the block of their sub-tokens.
    layers: (layers, 3) factor of each layer, its number among those of its kind, and where its part of a row begins.
    """

    weights: Weights
    sizes: Sizes
    layout: Layout
    filters: Filters
    folded: Net
    layers: NDArray[np.int64]


def pack(checkpoint: Checkpoint) -> Net | FoldedNet:
    """Make a checkpoint ready for the kernels.

    Raises:
        CheckpointError: where a weight is missing or has another shape than the configuration says.
        ConfigError: for sizes that are no whole number of vectors, and for layers folded by different factors.
    """
    config, factors = checkpoint.config, checkpoint.config.factors
    factor, ends, whole = max(factors), _ends(checkpoint), layout(config)
    if set(factors) - {1, factor}:
        raise ConfigError(
            f"layers must be folded by one factor to be compiled, got {factors}; the torch engine may mix"
        )
    net = Net(_weights(ends, _blocks(checkpoint, 1)), _sizes(config), whole, _filters(checkpoint))
    if factor == 1:
        return net
    block = whole._replace(block=block_layout(config, factor))
    folded = Net(_weights(ends, _blocks(checkpoint, factor)), _sizes(config.folded(factor)), block, net.filters)
    numbers = [factors[:layer].count(each) for layer, each in enumerate(factors)]
    ends_at = whole.blocks + np.cumsum([block_layout(config, each).size for each in factors])
    places = [whole.blocks, *ends_at[:-1]]
    return FoldedNet(*net, folded, np.array([factors, numbers, places], np.int64).T.copy())


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


def _weights(ends: dict[str, Any], blocks: dict[str, Any]) -> Weights:
    """All weights, side by side in memory."""
    return Weights(*together(Weights(**ends, **blocks)))


def _get(checkpoint: Checkpoint, name: str, *shape: int) -> F32:
    array = checkpoint.weights.get(name)
    if array is None or array.shape != shape:
        found = "missing" if array is None else f"of shape {array.shape}"
        raise CheckpointError(f"weight {name} is {found}; the configuration asks for {shape}")
    return array


def _ends(checkpoint: Checkpoint) -> dict[str, Any]:
    """Weights of the stem and the read-out."""
    config = checkpoint.config
    c, labels = config.channels, len(config.labels)
    get = partial(_get, checkpoint)
    return {
        "stem": pack_matrix([_by_band(get("stem.weight", c, config.stem_inputs), config)]),
        "stem_bias": get("stem.bias", c),
        "pool_norm": _flat([get("readout.norm.weight", c), get("readout.norm.bias", c)]),
        "pool_query": pack_matrix([get("readout.query.weight", config.heads, c)]),
        "pool_age_bias": _flat([_by_slot(get("readout.attend.bias", config.heads, config.pool_span))]),
        "head": pack_matrix([get("readout.head.weight", labels, c)]),
        "head_bias": np.pad(get("readout.head.bias", labels), (0, padded(labels) - labels)),
    }


def _by_band(stem: F32, config: ModelConfig) -> F32:
    """The stem's inputs frame by frame -> band by band, filled up with zeros to whole vectors."""
    bands = stem.reshape(-1, config.kernel, config.frontend.bands).transpose(0, 2, 1).reshape(stem.shape)
    return np.pad(bands, ((0, 0), (0, padded(config.stem_inputs) - config.stem_inputs)))


def _filters(checkpoint: Checkpoint) -> Filters:
    """Convolutions over frequency, if the checkpoint has any."""
    config, get = checkpoint.config, partial(_get, checkpoint)
    rows, biases, sizes = [], [], shapes(config)
    for number, shape in enumerate(sizes):
        reach, stride = FILTER_SHAPES[number]
        weight = get(f"filters.layers.{number}.weight", shape.filters, shape.inputs // stride, reach)
        rows.append(by_group(weight, stride))
        biases.append(with_edges(get(f"filters.layers.{number}.bias", shape.filters), shape))
    begins = layout(config).filters + np.array(offsets([n for one in sizes for n in (one.sums, one.outputs)]))
    join = [get("filters.join.weight", config.channels, sizes[-1].outputs)] if sizes else []
    table = np.array(sizes, np.int64).reshape(len(sizes), len(Shape._fields))
    places = (table, reached(sizes), begins[1::2], begins[:-1:2])
    return Filters(*together((pack_matrix(rows), _flat(biases), *places, pack_matrix(join))))


def _blocks(checkpoint: Checkpoint, factor: int) -> dict[str, Any]:
    """Weights of the blocks that are folded by a factor; of the plain ones, for 1."""
    config = checkpoint.config.folded(factor)
    layers = [layer for layer, each in enumerate(checkpoint.config.factors) if each == factor]
    c, hidden, ring = config.channels, config.hidden, factor * config.span

    def each(name: str, *shape: int) -> list[F32]:
        return [_get(checkpoint, f"blocks.{i}.{name}", *shape) for i in layers]

    # Counted back from the newest key, the biases of a token's sub-token `part` begin `part` places further on.
    biases = each("attention.attend.bias", config.heads, ring + factor - 1)
    return {
        "norm1": _flat(zip(each("norm1.weight", c), each("norm1.bias", c), strict=True)),
        "qkv": pack_matrix(each("attention.qkv.weight", 3 * c, c)),
        "qkv_bias": _flat(each("attention.qkv.bias", 3 * c)),
        "age_bias": _flat(_by_slot(bias[:, part : part + ring]) for bias in biases for part in range(factor)),
        "out": pack_matrix(each("attention.out.weight", c, c)),
        "out_bias": _flat(each("attention.out.bias", c)),
        "norm2": _flat(zip(each("norm2.weight", c), each("norm2.bias", c), strict=True)),
        "up": pack_matrix(each("up.weight", hidden, c)),
        "up_bias": _flat(each("up.bias", hidden)),
        "down": pack_matrix(each("down.weight", c, hidden)),
        "down_bias": _flat(each("down.bias", c)),
    }


def pack_matrix(matrices: list[F32]) -> BF16:
    """Matrices (out, in) -> one flat array, input-major, filled up with zeros to whole pairs of vectors."""
    return _paired(np.pad(m.T, ((0, 0), (0, paired(len(m)) - len(m)))) for m in matrices)


def _paired(matrices: Iterable[F32]) -> BF16:
    """Matrices whose rows are whole pairs of vectors -> one flat array of bfloat16, as `Weights` has them."""
    flat = _flat(matrices).reshape(-1, 2, WIDTH).swapaxes(1, 2)
    return (np.ascontiguousarray(flat).view(np.uint32) >> 16).astype(np.uint16).ravel()


def _flat(arrays: Iterable[F32 | tuple[F32, ...]]) -> F32:
    return np.concatenate([np.zeros(0, np.float32), *(np.asarray(a, np.float32).ravel() for a in arrays)])


def _by_slot(bias: F32) -> F32:
    """Bias by age (H, W) -> (H, 2 W): from place W - p on, the biases of slots 0..W - 1 when slot p is newest."""
    span = bias.shape[1]
    return bias[:, -np.arange(2 * span) % span]
