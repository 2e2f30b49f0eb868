"""The convolutions over frequency of `models.transformer.Filters`, compiled: each follows only what moved.

What moved at one place along frequency has a part in the outputs of a few neighbouring places: one stretch of sums,
and a small matrix that is the same at every place of one phase (place mod stride). The gate lists channels place by
place, so a convolution is one small gated product after another.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from models import kernels
from models.config import FILTER_SHAPES, ModelConfig
from models.kernels import F16, F32, Matrix, accumulate, changes, compiled, copy, rectify
from models.stale import forget_stale


class Filters(NamedTuple):
    """All convolutions of a network, one after another; without any, every array is empty.

    rows: for each convolution, phase and input, its weights in the outputs that reach it, low places first.
    bias: what sums begin with, for every place and filter.
    places: (places of all inputs, 3) where the sums begin in which a place has a part, where in `rows` the weights of
        its first input lie, and how many sums they are.
    shapes: (convolutions, 6) inputs at a place, first of them in `places`, places, length of a row, outputs, bias.
    held, sums: (convolutions,) where a stream's row has the outputs last propagated, and the sums.
    join: (outputs of the last one, C) into the stem's sums.
    """

    rows: F16
    bias: F32
    places: NDArray[np.int64]
    shapes: NDArray[np.int64]
    held: NDArray[np.int64]
    sums: NDArray[np.int64]
    join: F16


def tables(config: ModelConfig) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """`places` and `shapes` of a configuration's convolutions."""
    places, shapes, rows_at, bias_at = [], [], 0, 0
    counts, inputs = config.filter_places, config.filter_inputs
    for number, filters in enumerate(config.filters):
        reach, stride = FILTER_SHAPES[number]
        taps = reach // stride
        shape = (inputs[number], len(places), counts[number], taps * filters, counts[number + 1] * filters, bias_at)
        shapes.append(shape)
        for place in range(counts[number]):
            newest = place // stride
            oldest, last = newest - taps + 1, min(newest, counts[number + 1] - 1)
            first = max(oldest, 0)
            row = rows_at + place % stride * inputs[number] * taps * filters + (first - oldest) * filters
            places.append((first * filters, row, max(0, last - first + 1) * filters))
        rows_at += stride * inputs[number] * taps * filters
        bias_at += counts[number + 1] * filters
    return np.array(places, np.int64).reshape(-1, 3), np.array(shapes, np.int64).reshape(-1, 6)


def by_phase(weight: F32, stride: int) -> F32:
    """Weights (filters, inputs, reach) -> flat (phase, input, place, filter), as `Filters.rows` has them."""
    taps = weight.shape[2] // stride
    return weight.reshape(*weight.shape[:2], taps, stride)[:, :, ::-1].transpose(3, 1, 2, 0).ravel()


@compiled
def convolve(state, sums, number, filters, scratch, count):
    """Let one convolution's sums follow the `count` inputs listed; the multiply-accumulates done."""
    shape = filters.shapes[number]
    inputs, first, stride = shape[0], shape[1], shape[3]
    start, macs = 0, 0
    for place in range(shape[2]):
        end, behind = start, (place + 1) * inputs
        while end < count and scratch.index[end] < behind:
            end += 1
        if end > start:
            at, row, width = filters.places[first + place]
            matrix = Matrix(filters.rows, row - place * inputs * stride, width, stride, filters.bias, 0)
            accumulate(state, sums + at, matrix, scratch.index[start:end], scratch.change[start:end], end - start)
            macs += (end - start) * width
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
        shape, held, sums = filters.shapes[number], filters.held[number], filters.sums[number]
        size = shape[4]
        if turn.rebase:
            copy(filters.bias, shape[5], state, sums, size)
        macs[number] += convolve(state, sums, number, filters, scratch, count)
        rectify(state, sums, scratch.wide, size)
        count = changes(scratch.wide, 0, state, held, size, theta[number + 1], turn.rebase, scratch)
    join = Matrix(filters.join, 0, c, c, scratch.zero, 0)
    accumulate(state, sum_at, join, scratch.index, scratch.change, count)
    macs[len(filters.shapes)] += c * count


forget_stale(convolve, kernels.__file__, __file__)
