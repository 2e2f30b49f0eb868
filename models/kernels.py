"""Gated products, norm and softmax on one stream's state, compiled: what `models.step` is made of.

For every matrix product the delta gate lists the channels that moved and by how much (`lists.move`), and the
sum behind the matrix takes one row of weights per listed channel: y += d * W[i, :], with as much of y as
possible held in registers. Scores and attention-weighted values are the same product with the ring of keys
or values as the matrix.

Arrays are flat float32; a part of one is named by the array and where it begins (`..._at`). Lengths are whole
vectors. Nothing is allocated, nothing is checked, nothing is reference-counted: only arrays that the caller
keeps alive come in.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models import lanes, lists, vectors
from models.lanes import (
    FAST,
    exp,
    fma,
    keep_below,
    keep_from,
    largest,
    load,
    maximum,
    splat,
    store,
    total,
    zeros,
)
from models.lists import add_rows_1, add_rows_2, add_rows_6, add_rows_12, move
from models.stale import forget_stale
from models.vectors import WIDTH

F32 = NDArray[np.float32]
BF16 = NDArray[np.uint16]
"""Numbers of bfloat16, two vectors of each row side by side in the halves of sixteen words (`models.packed`)."""
EMPTY = np.float32(-1e30)
EPSILON = np.float32(1e-5)

compiled = njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True, forceinline=True, _nrt=False)
"""Inlined into its callers, so arrays stay in registers; `_nrt` off, since counting references cost half the step."""


class Matrix(NamedTuple):
    """A matrix to be followed row by row: one row of `width` outputs per input, `stride` floats apart from `at` on.

    Its sums begin with `bias[bias_at : bias_at + width]`.
    """

    rows: F32 | BF16
    at: int
    width: int
    stride: int
    bias: F32
    bias_at: int


@compiled
def paired(size):
    """The next multiple of two vectors."""
    return (size + 2 * WIDTH - 1) // (2 * WIDTH) * (2 * WIDTH)


@compiled
def matrix(rows, number, inputs, width, bias):
    """Matrix (inputs, width) of that number among several in one array, as `models.packed` puts them there."""
    return Matrix(rows, number * inputs * paired(width), width, paired(width), bias, number * width)


class Scratch(NamedTuple):
    """Working memory of one thread: vectors for one token.

    frames: room for as many frames as a vector has lanes, and lines where each begins. weights: of every head, and
    gates what each head's must move by. index: channels that moved, and change by how much each did.
    """

    x: F32
    wide: F32
    frames: F32
    lines: NDArray[np.int64]
    weights: F32
    gates: F32
    index: NDArray[np.uint16]
    change: F32
    origin: F32
    zero: F32
    mixed: F32


@compiled
def copy(source, source_at, target, target_at, size):
    """target = source."""
    for lane in range(0, size, WIDTH):
        store(target, target_at + lane, load(source, source_at + lane))


@compiled
def add(x, x_at, y, y_at, size):
    """x += y."""
    for lane in range(0, size, WIDTH):
        store(x, x_at + lane, load(x, x_at + lane) + load(y, y_at + lane))


@compiled
def accumulate(y, y_at, matrix, index, change, count):
    """y (matrix.width) += sum over the first `count` channels i of the index of change[i] * row i of the matrix."""
    rows, width, stride = matrix.rows, matrix.width, matrix.stride
    done = 0
    while done + 12 * WIDTH <= width:
        add_rows_12(y, y_at + done, rows, matrix.at + done, stride, index, change, count)
        done += 12 * WIDTH
    while done + 6 * WIDTH <= width:
        add_rows_6(y, y_at + done, rows, matrix.at + done, stride, index, change, count)
        done += 6 * WIDTH
    while done + 2 * WIDTH <= width:
        add_rows_2(y, y_at + done, rows, matrix.at + done, stride, index, change, count)
        done += 2 * WIDTH
    while done < width:
        add_rows_1(y, y_at + done, rows, matrix.at + done, stride, index, change, count)
        done += WIDTH


@compiled
def moved(x, x_at, held, held_at, size, theta, index, change):
    """Gate `size` channels of x against the values held, and update those; how many are in the index."""
    count = 0
    for lane in range(0, size, WIDTH):
        count = move(x, x_at + lane, held, held_at + lane, theta, index, change, count, lane)
    return count


@compiled
def all_held(held, held_at, size, scratch):
    """List every held value that is not zero, as if it had moved from zero; the length of the list."""
    count = 0
    for lane in range(0, size, WIDTH):
        store(scratch.origin, 0, splat(np.float32(0.0)))
        count = move(
            held, held_at + lane, scratch.origin, 0, np.float32(0.0), scratch.index, scratch.change, count, lane
        )
    return count


@compiled
def changes(x, x_at, state, held_at, size, theta, rebase, scratch):
    """List the channels of x (size) that moved by more than theta; a rebase, every held value. The list's length."""
    count = moved(x, x_at, state, held_at, size, theta, scratch.index, scratch.change)
    if rebase:
        count = all_held(state, held_at, size, scratch)
    return count


@compiled
def product(x, x_at, size, state, held_at, sum_at, matrix, theta, rebase, scratch):
    """One gated matrix product: state's sum follows x (size) as far as x moved by more than theta.

    A rebase starts over from the bias and counts every held value as moved.

    Returns:
        How many rows of the matrix were read.
    """
    count = changes(x, x_at, state, held_at, size, theta, rebase, scratch)
    if rebase:
        copy(matrix.bias, matrix.bias_at, state, sum_at, matrix.width)
    accumulate(state, sum_at, matrix, scratch.index, scratch.change, count)
    return count


@compiled
def normalise(x, x_at, size, norm, norm_at, y):
    """Layer norm of x into y; `norm` holds gains, then shifts."""
    mean = splat(np.float32(0.0))
    for lane in range(0, size, WIDTH):
        mean = mean + load(x, x_at + lane)
    centre = splat(total(mean) / np.float32(size))
    spread = splat(np.float32(0.0))
    for lane in range(0, size, WIDTH):
        centred = load(x, x_at + lane) - centre
        spread = fma(centred, centred, spread)
    scale = splat(np.float32(1.0) / np.sqrt(total(spread) / np.float32(size) + EPSILON))
    for lane in range(0, size, WIDTH):
        centred = (load(x, x_at + lane) - centre) * scale
        store(y, lane, fma(centred, load(norm, norm_at + lane), load(norm, norm_at + size + lane)))


@compiled
def softmax(scores, scores_at, scale, bias, bias_at, filled, size, lowest, weights, weights_at):
    """Weights (size) of scale * scores + bias; places from `filled` on weigh nothing.

    Nor do those below `lowest`, the row's largest always excepted.
    """
    peak = splat(EMPTY)
    for lane in range(0, size, WIDTH):
        score = fma(splat(scale), load(scores, scores_at + lane), load(bias, bias_at + lane))
        score = keep_below(score, lane, filled, EMPTY)
        store(weights, weights_at + lane, score)
        peak = maximum(peak, score)
    top = largest(peak)
    highest, limit = splat(top), min(lowest, top)
    mass = splat(np.float32(0.0))
    for lane in range(0, size, WIDTH):
        score = load(weights, weights_at + lane)
        weight = keep_from(exp(score - highest), score, limit)
        store(weights, weights_at + lane, weight)
        mass = mass + weight
    share = splat(np.float32(1.0) / total(mass))
    for lane in range(0, size, WIDTH):
        store(weights, weights_at + lane, load(weights, weights_at + lane) * share)


@compiled
def mean_size(scores, scores_at, scale, filled, size):
    """Mean |scale * score| of the `filled` places; the others (up to `size`) hold 0."""
    sizes = splat(np.float32(0.0))
    for lane in range(0, size, WIDTH):
        score = load(scores, scores_at + lane)
        sizes = sizes + maximum(score, splat(np.float32(0.0)) - score)
    return scale * total(sizes) / np.float32(filled)


@compiled
def spared(weights, at, filled, size, index, count):
    """How many of the `filled` places without weight, from `at` on, are not among the `count` listed in `index`."""
    places = filled - size
    for lane in range(0, size, WIDTH):
        places += zeros(load(weights, at + lane))
    for k in range(count):
        if weights[at + index[k]] == np.float32(0.0):
            places -= 1
    return places


@compiled
def dot(x, x_at, y, y_at, size):
    """Inner product."""
    products = splat(np.float32(0.0))
    for lane in range(0, size, WIDTH):
        products = fma(load(x, x_at + lane), load(y, y_at + lane), products)
    return total(products)


@compiled
def rectify(x, x_at, y, size):
    """y = max(x, 0)."""
    for lane in range(0, size, WIDTH):
        store(y, lane, maximum(load(x, x_at + lane), splat(np.float32(0.0))))


forget_stale(product, vectors.__file__, lanes.__file__, lists.__file__, __file__)
