"""The convolutions over frequency of `models.transformer.Filters`, compiled: each follows only what moved.

What moved at `stride` neighbouring places along frequency, a group, has a part in the outputs of the same few places:
one stretch of sums, and a small matrix that is the same for every group. The gate lists channels place by place, so a
convolution is one small gated product after another.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models import kernels
from models.cache import filter_outputs, filter_sums
from models.config import FILTER_SHAPES, ModelConfig
from models.kernels import BF16, F32, Matrix, accumulate, changes, compiled, copy, matrix, paired, rectify
from models.stale import forget_stale


class Filters(NamedTuple):
    """All convolutions of a network, one after another; without any, every array is empty.

    rows: the matrix of each convolution's groups: its weights in the outputs that an input reaches, low places first.
    bias: what sums begin with, for every place and filter. Before and behind the outputs there are sums that nobody
        reads, so that a group at the edge is as wide as any other.
    shapes: (convolutions, 10) a `Shape` each.
    reached: (groups of all convolutions,) how many outputs an input of a group has a part in.
    held, sums: (convolutions,) where a stream's row has the outputs last propagated, and the sums.
    join: (outputs of the last one, C) into the stem's sums.
    """

    rows: BF16
    bias: F32
    shapes: NDArray[np.int64]
    reached: NDArray[np.int64]
    held: NDArray[np.int64]
    sums: NDArray[np.int64]
    join: BF16


class Shape(NamedTuple):
    """Sizes of one convolution.

    inputs: of a group. groups: how many there are. first: number of the first in `Filters.reached`. filters: at each
    place. width: sums in which a group has a part. sums, before, outputs: all sums, those before the outputs, and
    these. rows, bias: where in `Filters.rows` and `Filters.bias` its own begin.
    """

    inputs: int
    groups: int
    first: int
    filters: int
    width: int
    sums: int
    before: int
    outputs: int
    rows: int
    bias: int


def shapes(config: ModelConfig) -> list[Shape]:
    """Shapes of a configuration's convolutions."""
    found: list[Shape] = []
    first = rows = bias = 0
    sizes = zip(config.filters, filter_sums(config), filter_outputs(config), strict=True)
    for number, (filters, sums, outputs) in enumerate(sizes):
        reach, stride = FILTER_SHAPES[number]
        inputs, groups = stride * config.filter_inputs[number], -(-config.filter_places[number] // stride)
        width = reach // stride * filters
        found.append(Shape(inputs, groups, first, filters, width, sums, width - filters, outputs, rows, bias))
        first, rows, bias = first + groups, rows + inputs * paired(width), bias + sums
    return found


def reached(sizes: Sequence[Shape]) -> NDArray[np.int64]:
    """`Filters.reached` of convolutions of some shapes."""
    counts = []
    for shape in sizes:
        newest, taps, outputs = np.arange(shape.groups), shape.width // shape.filters, shape.outputs // shape.filters
        places = np.minimum(newest, outputs - 1) - np.maximum(newest - taps + 1, 0) + 1
        counts.append(np.maximum(places, 0) * shape.filters)
    return np.concatenate([np.zeros(0, np.int64), *counts])


def by_group(weight: F32, stride: int) -> F32:
    """Weights (filters, inputs, reach) -> the matrix of a group (taps * filters, stride * inputs), low places first."""
    filters, inputs, reach = weight.shape
    taps = weight.reshape(filters, inputs, reach // stride, stride)[:, :, ::-1]
    return taps.transpose(2, 0, 3, 1).reshape(-1, stride * inputs)


def with_edges(bias: F32, shape: Shape) -> F32:
    """Biases (filters,) -> what all sums of a convolution begin with; those that nobody reads, with zero."""
    behind = shape.sums - shape.before - shape.outputs
    return np.pad(np.tile(bias, shape.outputs // shape.filters), (shape.before, behind))


@compiled
def shape_of(shapes, number):
    """A row of `Filters.shapes`, by name."""
    one = shapes[number]
    return Shape(one[0], one[1], one[2], one[3], one[4], one[5], one[6], one[7], one[8], one[9])


@compiled
def convolve(state, sums, shape, filters, scratch, count):
    """Let one convolution's sums follow the `count` inputs listed; the multiply-accumulates done."""
    start, macs, stride = 0, 0, paired(shape.width)
    for group in range(shape.groups):
        end, begin = start, group * shape.inputs
        while end < count and scratch.index[end] < begin + shape.inputs:
            end += 1
        if end > start:
            part = Matrix(filters.rows, shape.rows - begin * stride, shape.width, stride, filters.bias, 0)
            listed = scratch.index[start:end]
            accumulate(state, sums + group * shape.filters, part, listed, scratch.change, end - start)
            macs += (end - start) * filters.reached[shape.first + group]
            start = end
    return macs


@compiled
def filters_step(state, sum_at, turn, theta, net, scratch, macs, count):
    """Let every convolution, and the token's sums behind the last, follow the `count` changes of the stem's input.

    `theta` and `macs` hold the stem's numbers, then one for each convolution's outputs.
    """
    filters, c = net.filters, net.sizes.channels
    size = 0
    for number in range(len(filters.shapes)):
        shape, held, sums = shape_of(filters.shapes, number), filters.held[number], filters.sums[number]
        size = shape.outputs
        if turn.rebase:
            copy(filters.bias, shape.bias, state, sums, shape.sums)
        macs[number] += convolve(state, sums, shape, filters, scratch, count)
        rectify(state, sums + shape.before, scratch.wide, size)
        count = changes(scratch.wide, 0, state, held, size, theta[number + 1], turn.rebase, scratch)
    join = matrix(filters.join, 0, size, c, scratch.zero)
    accumulate(state, sum_at, join, scratch.index, scratch.change, count)
    macs[len(filters.shapes)] += c * count


forget_stale(convolve, kernels.__file__, __file__)
