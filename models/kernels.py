"""The compiled step: the network of `models.transformer` without torch, doing only what changed.

Layer-major over a batch of streams: a block's weights are fetched once and serve every stream and token of
the batch. A stream's state is a row of the cache's arena (`models.cache`). For every matrix product the delta
gate lists the channels that moved and by how much (`lanes.move`), and the sum behind the matrix takes one
weight row per listed channel: y += d * W[i, :], six vectors of y held in registers at a time.

Sums of millions of small additions drift, so each stream rebuilds its sums from its held values every
`REBASE_TOKENS` tokens, rows taking turns. Nothing is allocated and no Python runs inside a step.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.cache import Layout
from models.features import SILENT
from models.lanes import (
    FAST,
    WIDTH,
    exp,
    fma,
    keep_below,
    largest,
    load,
    maximum,
    move,
    splat,
    store,
    total,
)

F32 = NDArray[np.float32]
REBASE_TOKENS = 256
"""Tokens between two rebuilds of a stream's sums: 7.7 s at 30 ms; 0.4 % of the dense work."""
REBASE_STRIDE = 37
"""Offset of neighbouring rows' rebuilds, so that a batch never rebuilds together."""

QKV, SCORES, VALUES, OUT, UP, DOWN = range(6)
EMPTY = np.float32(-1e30)
EPSILON = np.float32(1e-5)

compiled = njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True, forceinline=True, _nrt=False)


class Sizes(NamedTuple):
    """Integers of the model's shape; `labels` is padded to whole vectors."""

    bands: int
    stride: int
    kernel: int
    channels: int
    layers: int
    heads: int
    hidden: int
    span: int
    labels: int


class Weights(NamedTuple):
    """All weights, input-major: a matrix (in, out) is one flat row per input channel, layer after layer.

    The query's scale is folded into `qkv`; every bias row follows its matrix's outputs; `age_bias` holds, per
    head, the bias by age twice in a row and reversed, so that any rotation of the ring is one slice.
    """

    stem: F32
    stem_bias: F32
    norm1: F32
    qkv: F32
    qkv_bias: F32
    age_bias: F32
    out: F32
    out_bias: F32
    norm2: F32
    up: F32
    up_bias: F32
    down: F32
    down_bias: F32
    pool_norm: F32
    pool_query: F32
    pool_age_bias: F32
    head: F32
    head_bias: F32


class Scratch(NamedTuple):
    """Working memory of one thread: vectors for one token, and the gate's list of changes."""

    x: F32
    wide: F32
    weights: F32
    index: NDArray[np.int32]
    change: F32
    origin: F32
    zero: F32


@compiled
def accumulate(state, at, width, weights, row, index, change, count):
    """state[at : at + width] += sum over the list of change[k] * weights[row + index[k] * width + ...]."""
    done = 0
    while done + 6 * WIDTH <= width:
        y, w = at + done, row + done
        a, b, c = load(state, y), load(state, y + 16), load(state, y + 32)
        d, e, f = load(state, y + 48), load(state, y + 64), load(state, y + 80)
        for k in range(count):
            factor, at_row = splat(change[k]), w + index[k] * width
            a = fma(factor, load(weights, at_row), a)
            b = fma(factor, load(weights, at_row + 16), b)
            c = fma(factor, load(weights, at_row + 32), c)
            d = fma(factor, load(weights, at_row + 48), d)
            e = fma(factor, load(weights, at_row + 64), e)
            f = fma(factor, load(weights, at_row + 80), f)
        store(state, y, a)
        store(state, y + 16, b)
        store(state, y + 32, c)
        store(state, y + 48, d)
        store(state, y + 64, e)
        store(state, y + 80, f)
        done += 6 * WIDTH
    while done < width:
        a = load(state, at + done)
        for k in range(count):
            a = fma(splat(change[k]), load(weights, row + done + index[k] * width), a)
        store(state, at + done, a)
        done += WIDTH


@compiled
def moved(x, x_at, state, held_at, size, theta, index, change):
    """Gate `size` channels of x against the stream's held values; the length of the list of changes."""
    count = 0
    for lane in range(0, size, WIDTH):
        count = move(x, x_at + lane, state, held_at + lane, theta, index, change, count, lane)
    return count


@compiled
def linear(x, x_at, size, state, held_at, sum_at, width, weights, row, bias, bias_at, theta, rebase, scratch):
    """One gated matrix product; the number of input channels whose weights were read.

    A rebase starts over from the bias and counts every held value as moved from zero.
    """
    index, change = scratch.index, scratch.change
    count = moved(x, x_at, state, held_at, size, theta, index, change)
    if rebase:
        copy(bias, bias_at, state, sum_at, width)
        count = listed(state, held_at, size, scratch)
    accumulate(state, sum_at, width, weights, row, index, change, count)
    return count


@compiled
def listed(state, held_at, size, scratch):
    """List all held values that are not zero; the length of the list."""
    count, origin = 0, scratch.origin
    for lane in range(0, size, WIDTH):
        store(origin, 0, splat(np.float32(0.0)))
        count = move(state, held_at + lane, origin, 0, np.float32(0.0), scratch.index, scratch.change, count, lane)
    return count


@compiled
def copy(source, source_at, target, target_at, size):
    """target[...] = source[...], whole vectors."""
    for lane in range(0, size, WIDTH):
        store(target, target_at + lane, load(source, source_at + lane))


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
def attention_weights(state, scores_at, age_bias, bias_at, filled, slot, sizes, weights):
    """Softmax over the ring of scores + bias by age, per head: weights (H, W). Unfilled slots weigh nothing."""
    span = sizes.span
    for head in range(sizes.heads):
        row, bias = head * span, bias_at + head * 2 * span + span - slot
        peak = splat(EMPTY)
        for lane in range(0, span, WIDTH):
            score = load(state, scores_at + row + lane) + load(age_bias, bias + lane)
            score = keep_below(score, lane, filled, EMPTY)
            store(weights, row + lane, score)
            peak = maximum(peak, score)
        highest = splat(largest(peak))
        mass = splat(np.float32(0.0))
        for lane in range(0, span, WIDTH):
            weight = exp(load(weights, row + lane) - highest)
            store(weights, row + lane, weight)
            mass = mass + weight
        share = splat(np.float32(1.0) / total(mass))
        for lane in range(0, span, WIDTH):
            store(weights, row + lane, load(weights, row + lane) * share)


@compiled
def forget(state, held_at, values_at, sum_at, slot, sizes):
    """Take the oldest token's value row out of the sums before its slot is filled anew."""
    width = sizes.channels // sizes.heads
    for head in range(sizes.heads):
        held = held_at + head * sizes.span + slot
        factor = splat(-state[held])
        for lane in range(0, width, WIDTH):
            place = head * width + lane
            value = load(state, values_at + slot * sizes.channels + place)
            store(state, sum_at + place, fma(factor, value, load(state, sum_at + place)))
        state[held] = np.float32(0.0)


@compiled
def mix(state, held_at, values_at, sum_at, theta, rebase, sizes, scratch):
    """Gated attention-weighted values; the number of weights that moved."""
    width, span = sizes.channels // sizes.heads, sizes.span
    index, change = scratch.index, scratch.change
    count = moved(scratch.weights, 0, state, held_at, sizes.heads * span, theta, index, change)
    if rebase:
        for lane in range(0, sizes.channels, WIDTH):
            store(state, sum_at + lane, splat(np.float32(0.0)))
        count = listed(state, held_at, sizes.heads * span, scratch)
    for k in range(count):
        head, slot = index[k] // span, index[k] % span
        factor = splat(change[k])
        for lane in range(0, width, WIDTH):
            place = head * width + lane
            value = load(state, values_at + slot * sizes.channels + place)
            store(state, sum_at + place, fma(factor, value, load(state, sum_at + place)))
    return count


@compiled
def score(state, block, at, query_at, key_at, slot, theta, rebase, sizes, scratch):
    """Gated scores of the query against the ring of keys; the number of query channels that moved.

    Old keys meet the change of the query only; the new key, just written, meets the whole held query.
    """
    span, width = sizes.span, sizes.channels // sizes.heads
    index, change = scratch.index, scratch.change
    held, keys, scores = at + block.held_query, at + block.keys, at + block.scores
    for channel in range(sizes.channels):
        state[keys + channel * span + slot] = state[key_at + channel]
    count = moved(state, query_at, state, held, sizes.channels, theta, index, change)
    if rebase:
        for lane in range(0, sizes.heads * span, WIDTH):
            store(state, scores + lane, splat(np.float32(0.0)))
        count = listed(state, held, sizes.channels, scratch)
    for k in range(count):
        row, factor = scores + index[k] // width * span, splat(change[k])
        for lane in range(0, span, WIDTH):
            key = load(state, keys + index[k] * span + lane)
            store(state, row + lane, fma(factor, key, load(state, row + lane)))
    for head in range(sizes.heads):
        product = splat(np.float32(0.0))
        for lane in range(head * width, head * width + width, WIDTH):
            product = fma(load(state, held + lane), load(state, key_at + lane), product)
        state[scores + head * span + slot] = total(product)
    return count


@compiled
def attend(state, block, at, layer, token, weights, theta, rebase, sizes, scratch, macs):
    """Attention of one token from its sums of query, key and value, into `sum_values`."""
    channels, span = sizes.channels, sizes.span
    slot, filled = token % span, min(token + 1, span)
    query = at + block.sum_qkv
    count = score(state, block, at, query, query + channels, slot, theta[1], rebase, sizes, scratch)
    macs[SCORES] += count * (filled - 1) + channels
    attention_weights(
        state, at + block.scores, weights.age_bias, layer * sizes.heads * 2 * span, filled, slot, sizes, scratch.weights
    )
    held, values, sums = at + block.held_weights, at + block.values, at + block.sum_values
    if token >= span:
        forget(state, held, values, sums, slot, sizes)
        macs[VALUES] += channels
    copy(state, query + 2 * channels, state, values + slot * channels, channels)
    count = mix(state, held, values, sums, theta[2], rebase, sizes, scratch)
    macs[VALUES] += count * (channels // sizes.heads)


@compiled
def add(x, x_at, state, at, size):
    """x += state[at : at + size]."""
    for lane in range(0, size, WIDTH):
        store(x, x_at + lane, load(x, x_at + lane) + load(state, at + lane))


@compiled
def block_step(x, x_at, state, block, at, layer, token, weights, theta, rebase, sizes, scratch, macs):
    """One token through one block; x (C) is changed in place. `theta` holds the block's six thresholds."""
    c, hidden = sizes.channels, sizes.hidden
    normalise(x, x_at, c, weights.norm1, layer * 2 * c, scratch.x)
    count = linear(
        scratch.x, 0, c, state, at + block.held_in, at + block.sum_qkv, 3 * c,
        weights.qkv, layer * c * 3 * c, weights.qkv_bias, layer * 3 * c, theta[0], rebase, scratch,
    )
    macs[QKV] += count * 3 * c
    attend(state, block, at, layer, token, weights, theta, rebase, sizes, scratch, macs)
    count = linear(
        state, at + block.sum_values, c, state, at + block.held_mixed, at + block.sum_out, c,
        weights.out, layer * c * c, weights.out_bias, layer * c, theta[3], rebase, scratch,
    )
    macs[OUT] += count * c
    add(x, x_at, state, at + block.sum_out, c)
    normalise(x, x_at, c, weights.norm2, layer * 2 * c, scratch.x)
    count = linear(
        scratch.x, 0, c, state, at + block.held_up, at + block.sum_up, hidden,
        weights.up, layer * c * hidden, weights.up_bias, layer * hidden, theta[4], rebase, scratch,
    )
    macs[UP] += count * hidden
    for lane in range(0, hidden, WIDTH):
        store(scratch.wide, lane, maximum(load(state, at + block.sum_up + lane), splat(np.float32(0.0))))
    count = linear(
        scratch.wide, 0, hidden, state, at + block.held_down, at + block.sum_down, c,
        weights.down, layer * hidden * c, weights.down_bias, layer * c, theta[5], rebase, scratch,
    )
    macs[DOWN] += count * c
    add(x, x_at, state, at + block.sum_down, c)


@compiled
def stem_step(frames, first, x, x_at, state, layout, weights, theta, rebase, sizes, scratch, macs):
    """The newest `stride` frames of one stream, behind the ones it remembers, into one token x (C)."""
    new, old = sizes.stride * sizes.bands, (sizes.kernel - sizes.stride) * sizes.bands
    wide = scratch.wide
    for i in range(old):
        wide[i] = state[layout.frames + i]
    for i in range(new):
        wide[old + i] = frames[first + i]
    for i in range(old):
        state[layout.frames + i] = wide[new + i]
    size = old + new
    whole = (size + WIDTH - 1) // WIDTH * WIDTH
    for i in range(size, whole):
        wide[i] = np.float32(0.0)
    count = linear(
        wide, 0, whole, state, layout.held_stem, layout.sum_stem, sizes.channels,
        weights.stem, 0, weights.stem_bias, 0, theta[0], rebase, scratch,
    )
    macs[0] += count * sizes.channels
    copy(state, layout.sum_stem, x, x_at, sizes.channels)


@compiled
def readout_step(x, x_at, state, pool, at, token, weights, theta, rebase, sizes, scratch, macs, logits, logits_at):
    """Pool the last `span` tokens of x (C) and judge: logits (labels, padded)."""
    c, span = sizes.channels, sizes.span
    slot, filled = token % span, min(token + 1, span)
    normalise(x, x_at, c, weights.pool_norm, 0, scratch.x)
    count = linear(
        scratch.x, 0, c, state, at + pool.held_query, at + pool.sum_query, WIDTH,
        weights.pool_query, 0, scratch.zero, 0, theta[0], rebase, scratch,
    )
    macs[0] += count * sizes.heads
    for head in range(sizes.heads):
        state[at + pool.scores + head * span + slot] = state[at + pool.sum_query + head]
    attention_weights(state, at + pool.scores, weights.pool_age_bias, 0, filled, slot, sizes, scratch.weights)
    held, values, sums = at + pool.held_weights, at + pool.values, at + pool.sum_values
    if token >= span:
        forget(state, held, values, sums, slot, sizes)
        macs[1] += c
    copy(scratch.x, 0, state, values + slot * c, c)
    macs[1] += mix(state, held, values, sums, theta[1], rebase, sizes, scratch) * (c // sizes.heads)
    count = linear(
        state, sums, c, state, at + pool.held_head, at + pool.sum_head, sizes.labels,
        weights.head, 0, weights.head_bias, 0, theta[2], rebase, scratch,
    )
    macs[2] += count * sizes.labels
    copy(state, at + pool.sum_head, logits, logits_at, sizes.labels)


@compiled
def begin(state, layout, sizes):
    """A stream's first token: nothing is held, and the past is silent."""
    for i in range(layout.size):
        state[i] = np.float32(0.0)
    for i in range((sizes.kernel - sizes.stride) * sizes.bands):
        state[layout.frames + i] = np.float32(SILENT)


@compiled
def due(token, row):
    """Whether a stream rebuilds its sums at this token; the first token always does."""
    return token == 0 or (token + row * REBASE_STRIDE) % REBASE_TOKENS == 0


@compiled
def step(state, tokens, macs, thetas, rows, counts, frames, x, logits, layout, weights, sizes, scratch):
    """Advance a batch of streams by `counts` tokens each; `models.network.Network.step` is the public face.

    Args:
        state: (capacity, layout.size) arena. tokens: (capacity,). macs: (capacity, layers + 2, 6).
        thetas: (B, layers + 2, 6) thresholds: stem, blocks, read-out.
        rows, counts: (B,) streams, all different, and their tokens in this batch.
        frames: (sum of counts * stride * bands,) network input. x: (sum of counts * C,) working memory.
        logits: (sum of counts * labels,) the result.
    """
    c = sizes.channels
    new = sizes.stride * sizes.bands
    at = 0
    for b in range(len(rows)):
        row = rows[b]
        stream = state[row]
        if tokens[row] == 0:
            begin(stream, layout, sizes)
        for n in range(counts[b]):
            rebase = due(tokens[row] + n, row)
            stem_step(frames, at * new, x, at * c, stream, layout, weights, thetas[b, 0], rebase, sizes, scratch, macs[row, 0])
            at += 1
    for layer in range(sizes.layers):
        at = 0
        for b in range(len(rows)):
            row = rows[b]
            for n in range(counts[b]):
                token = tokens[row] + n
                block_step(
                    x, at * c, state[row], layout.block, layout.blocks + layer * layout.block.size, layer, token,
                    weights, thetas[b, layer + 1], due(token, row), sizes, scratch, macs[row, layer + 1],
                )
                at += 1
    at = 0
    for b in range(len(rows)):
        row = rows[b]
        for n in range(counts[b]):
            token = tokens[row] + n
            readout_step(
                x, at * c, state[row], layout.pool, layout.readout, token, weights, thetas[b, sizes.layers + 1],
                due(token, row), sizes, scratch, macs[row, sizes.layers + 1], logits, at * sizes.labels,
            )
            at += 1
        tokens[row] += counts[b]
