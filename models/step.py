"""The compiled step: the network of `models.transformer` without torch, doing only what changed.

Layer-major over a batch of streams: a block's weights are fetched once and serve every stream and token of
the batch. A stream's state is a row of the cache's arena (`models.cache`); the products that follow only what
moved are in `models.kernels`.

Sums of millions of small additions drift, so each stream rebuilds its sums from its held values every
`REBASE_TOKENS` tokens, rows taking turns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from models.features import SILENT
from models.kernels import F32, accumulate, add, compiled, copy, dot, normalise, product, rectify, softmax
from models.lanes import FAST, WIDTH

REBASE_TOKENS = 256
"""Tokens between two rebuilds of a stream's sums: 7.7 s at 30 ms; 0.4 % of the dense work."""
REBASE_STRIDE = 37
"""Offset of neighbouring rows' rebuilds, so that a batch never rebuilds together."""

QKV, SCORES, VALUES, OUT, UP, DOWN = range(6)
"""Columns of a block's thresholds and of its counts."""


class Sizes(NamedTuple):
    """Integers of the model's shape; `labels` is `label_count` padded to whole vectors."""

    bands: int
    stride: int
    kernel: int
    channels: int
    layers: int
    heads: int
    hidden: int
    span: int
    labels: int
    label_count: int


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


@compiled
def score(state, block, at, slot, theta, rebase, sizes, scratch):
    """Gated scores of the query against the ring of keys; the number of query channels that moved.

    Old keys meet the change of the query only; the new key meets the whole held query.
    """
    span, width = sizes.span, sizes.channels // sizes.heads
    query, key = at + block.sum_qkv, at + block.sum_qkv + sizes.channels
    for channel in range(sizes.channels):
        state[at + block.keys + channel * span + slot] = state[key + channel]
    count = 0
    for head in range(sizes.heads):
        first = head * width
        held, row = at + block.held_query + first, at + block.scores + head * span
        count += product(
            state, query + first, width, state, held, row, span,
            state, at + block.keys + first * span, span, scratch.zero, 0, theta, rebase, scratch,
        )
        state[row + slot] = dot(state, held, state, key + first, width)
    return count


@compiled
def mix(state, scores_at, bias, bias_at, held_at, values_at, sum_at, token, theta, rebase, sizes, scratch):
    """Softmax of the scores, and the gated sum of the ring's values; the number of value rows read.

    The new token's value must lie in `scratch.wide`: the slot's old one is taken out of the sum first.
    """
    span, channels = sizes.span, sizes.channels
    width = channels // sizes.heads
    slot, filled = token % span, min(token + 1, span)
    row = values_at + slot * channels
    count = 0
    for head in range(sizes.heads):
        place, held = head * width, held_at + head * span
        if token >= span:
            scratch.index[0], scratch.change[0] = 0, -state[held + slot]
            accumulate(state, sum_at + place, width, state, row + place, 0, scratch.index, scratch.change, 1)
            state[held + slot] = np.float32(0.0)
            count += 1
        copy(scratch.wide, place, state, row + place, width)
        softmax(
            state, scores_at + head * span, bias, bias_at + head * 2 * span + span - slot, filled, span,
            scratch.weights, 0,
        )
        count += product(
            scratch.weights, 0, span, state, held, sum_at + place, width,
            state, values_at + place, channels, scratch.zero, 0, theta, rebase, scratch,
        )
    return count


@compiled
def attend(state, block, at, layer, token, weights, theta, rebase, sizes, scratch, macs):
    """Attention of one token from its sums of query, key and value, into `sum_values`."""
    channels, span = sizes.channels, sizes.span
    slot, filled = token % span, min(token + 1, span)
    count = score(state, block, at, slot, theta[SCORES], rebase, sizes, scratch)
    macs[SCORES] += count * (filled - 1) + channels
    copy(state, at + block.sum_qkv + 2 * channels, scratch.wide, 0, channels)
    count = mix(
        state, at + block.scores, weights.age_bias, layer * sizes.heads * 2 * span, at + block.held_weights,
        at + block.values, at + block.sum_values, token, theta[VALUES], rebase, sizes, scratch,
    )
    macs[VALUES] += count * (channels // sizes.heads)


@compiled
def block_step(x, x_at, state, block, at, layer, token, weights, theta, rebase, sizes, scratch, macs):
    """One token through one block; x (C) is changed in place. `theta` holds the block's six thresholds."""
    c, hidden = sizes.channels, sizes.hidden
    normalise(x, x_at, c, weights.norm1, layer * 2 * c, scratch.x)
    count = product(
        scratch.x, 0, c, state, at + block.held_in, at + block.sum_qkv, 3 * c,
        weights.qkv, layer * c * 3 * c, 3 * c, weights.qkv_bias, layer * 3 * c, theta[QKV], rebase, scratch,
    )
    macs[QKV] += count * 3 * c
    attend(state, block, at, layer, token, weights, theta, rebase, sizes, scratch, macs)
    count = product(
        state, at + block.sum_values, c, state, at + block.held_mixed, at + block.sum_out, c,
        weights.out, layer * c * c, c, weights.out_bias, layer * c, theta[OUT], rebase, scratch,
    )
    macs[OUT] += count * c
    add(x, x_at, state, at + block.sum_out, c)
    normalise(x, x_at, c, weights.norm2, layer * 2 * c, scratch.x)
    count = product(
        scratch.x, 0, c, state, at + block.held_up, at + block.sum_up, hidden,
        weights.up, layer * c * hidden, hidden, weights.up_bias, layer * hidden, theta[UP], rebase, scratch,
    )
    macs[UP] += count * hidden
    rectify(state, at + block.sum_up, scratch.wide, hidden)
    count = product(
        scratch.wide, 0, hidden, state, at + block.held_down, at + block.sum_down, c,
        weights.down, layer * hidden * c, c, weights.down_bias, layer * c, theta[DOWN], rebase, scratch,
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
    size = (old + new + WIDTH - 1) // WIDTH * WIDTH
    for i in range(old + new, size):
        wide[i] = np.float32(0.0)
    count = product(
        wide, 0, size, state, layout.held_stem, layout.sum_stem, sizes.channels,
        weights.stem, 0, sizes.channels, weights.stem_bias, 0, theta[0], rebase, scratch,
    )
    macs[0] += count * sizes.channels
    copy(state, layout.sum_stem, x, x_at, sizes.channels)


@compiled
def readout_step(x, x_at, state, pool, at, token, weights, theta, rebase, sizes, scratch, macs, logits, logits_at):
    """Pool the last `span` tokens of x (C) and judge: logits (labels, padded)."""
    c, span = sizes.channels, sizes.span
    normalise(x, x_at, c, weights.pool_norm, 0, scratch.x)
    count = product(
        scratch.x, 0, c, state, at + pool.held_query, at + pool.sum_query, WIDTH,
        weights.pool_query, 0, WIDTH, scratch.zero, 0, theta[0], rebase, scratch,
    )
    macs[0] += count * sizes.heads
    for head in range(sizes.heads):
        state[at + pool.scores + head * span + token % span] = state[at + pool.sum_query + head]
    copy(scratch.x, 0, scratch.wide, 0, c)
    count = mix(
        state, at + pool.scores, weights.pool_age_bias, 0, at + pool.held_weights, at + pool.values,
        at + pool.sum_values, token, theta[1], rebase, sizes, scratch,
    )
    macs[1] += count * (c // sizes.heads)
    count = product(
        state, at + pool.sum_values, c, state, at + pool.held_head, at + pool.sum_head, sizes.labels,
        weights.head, 0, sizes.labels, weights.head_bias, 0, theta[2], rebase, scratch,
    )
    macs[2] += count * sizes.label_count
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


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True, _nrt=False)
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
