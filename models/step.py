"""The compiled step: the network of `models.transformer` without torch, doing only what changed.

Layer-major over a batch of streams: a block's weights are fetched once and serve every stream and token of
the batch. A stream's state is a row of the cache's arena (`models.cache`); the products that follow only what
moved are in `models.kernels`. Networks with folded layers have a step of their own, `models.folded_step`.

Sums of millions of small additions drift, so each stream rebuilds its sums from its held values every
`REBASE_TOKENS` tokens, rows taking turns.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from models.features import SILENT
from models.filters import filters_step
from models.kernels import (
    Matrix,
    accumulate,
    add,
    compiled,
    copy,
    dot,
    mean_size,
    normalise,
    product,
    rectify,
    softmax,
    spared,
)
from models.lanes import FAST
from models.operating import HEAD, OFF, SCORE
from models.vectors import WIDTH

REBASE_TOKENS = 256
"""Tokens between two rebuilds of a stream's sums: 7.7 s at 30 ms; 0.4 % of the dense work."""
REBASE_STRIDE = 37
"""Offset of neighbouring rows' rebuilds, so that a batch never rebuilds together."""

NEVER = np.float32(OFF[SCORE])
ALWAYS = np.float32(np.inf)
"""A score that is never pruned is below no other; a gate at this threshold lets nothing through."""

QKV, SCORES, VALUES, OUT, UP, DOWN = range(6)
"""Columns of a block's thresholds and of its counts."""


class Turn(NamedTuple):
    """One stream's turn: its token's number, its slot in a ring of `span`, slots filled, whether to rebuild sums."""

    token: int
    slot: int
    filled: int
    span: int
    rebase: bool


@compiled
def turn_of(token, row, span):
    """The turn of a stream's token; rows rebuild at different times, and the first token always does."""
    rebase = token == 0 or (token + row * REBASE_STRIDE) % REBASE_TOKENS == 0
    return Turn(token, token % span, min(token + 1, span), span, rebase)


@compiled
def score(state, at, turn, theta, net, scratch):
    """Gated scores, not yet scaled, of the query against the ring of keys; the number of query channels that moved.

    Old keys meet the change of the query only; the new key meets the whole held query.
    """
    block, sizes, zero = net.layout.block, net.sizes, scratch.zero
    span, width = turn.span, sizes.channels // sizes.heads
    query, key, keys = at + block.sum_qkv, at + block.sum_qkv + sizes.channels, at + block.keys
    for channel in range(sizes.channels):
        state[keys + channel * span + turn.slot] = state[key + channel]
    count = 0
    for head in range(sizes.heads):
        first = head * width
        held, row = at + block.held_query + first, at + block.scores + head * span
        ring = Matrix(state, keys + first * span, span, span, zero, 0)
        count += product(state, query + first, width, state, held, row, ring, theta, turn.rebase, scratch)
        state[row + turn.slot] = dot(state, held, state, key + first, width)
    return count


@compiled
def mix(state, scores_at, scale, bias, bias_at, held_at, values_at, sum_at, turn, theta, prune, net, scratch, pruned):
    """Softmax of the scores, and the gated sum of the ring's values, into `scratch.mixed`; the value rows read.

    The new token's value must lie in `scratch.wide`: the slot's old one is taken out of the sum first. `prune`
    (heads, 2) holds what `models.operating` says of scores and heads, `pruned` (2,) gets the MACs they leave out.
    """
    span, channels = turn.span, net.sizes.channels
    width = channels // net.sizes.heads
    row = values_at + turn.slot * channels
    rows = 0
    for head in range(net.sizes.heads):
        place, held, weights = head * width, held_at + head * span, scratch.weights
        if turn.token >= span:
            scratch.index[0], scratch.change[0] = 0, -state[held + turn.slot]
            oldest = Matrix(state, row + place, width, 0, scratch.zero, 0)
            accumulate(state, sum_at + place, oldest, scratch.index, scratch.change, 1)
            state[held + turn.slot] = np.float32(0.0)
            rows += 1
        copy(scratch.wide, place, state, row + place, width)
        ages, lowest, tau = bias_at + head * 2 * span + span - turn.slot, prune[head, SCORE], prune[head, HEAD]
        at = scores_at + head * span
        silent = tau > np.float32(0.0) and mean_size(state, at, scale, turn.filled, span) < tau
        gate = ALWAYS
        if not silent:
            gate = theta
            softmax(state, at, scale, bias, ages, turn.filled, span, lowest, weights, 0)
        ring = Matrix(state, values_at + place, width, channels, scratch.zero, 0)
        count = product(weights, 0, span, state, held, sum_at + place, ring, gate, turn.rebase, scratch)
        if silent:
            pruned[HEAD] += max(0, turn.filled - count) * width
        elif lowest > NEVER:
            pruned[SCORE] += max(0, spared(weights, turn.filled, span, scratch.index, count)) * width
        copy(scratch.zero if silent else state, 0 if silent else sum_at + place, scratch.mixed, place, width)
        rows += count
    return rows


@compiled
def attend(state, at, layer, turn, theta, prune, net, scratch, macs, pruned):
    """Attention of one token from its sums of query, key and value, into `scratch.mixed`."""
    block, sizes, bias = net.layout.block, net.sizes, net.weights.age_bias
    channels = sizes.channels
    count = score(state, at, turn, theta[SCORES], net, scratch)
    macs[SCORES] += count * (turn.filled - 1) + channels
    copy(state, at + block.sum_qkv + 2 * channels, scratch.wide, 0, channels)
    bias_at = layer * sizes.heads * 2 * sizes.span
    scores, held, values = at + block.scores, at + block.held_weights, at + block.values
    sums = at + block.sum_values
    count = mix(
        *(state, scores, sizes.scale, bias, bias_at, held, values, sums, turn),
        *(theta[VALUES], prune, net, scratch, pruned),
    )
    macs[VALUES] += count * (channels // sizes.heads)


@compiled
def block_step(x, x_at, state, at, layer, turn, theta, prune, net, scratch, macs, pruned):
    """One token through one block; x (C) is changed in place. `theta` holds the block's six thresholds."""
    block, weights, c, hidden = net.layout.block, net.weights, net.sizes.channels, net.sizes.hidden
    qkv = Matrix(weights.qkv, layer * c * 3 * c, 3 * c, 3 * c, weights.qkv_bias, layer * 3 * c)
    out = Matrix(weights.out, layer * c * c, c, c, weights.out_bias, layer * c)
    up = Matrix(weights.up, layer * c * hidden, hidden, hidden, weights.up_bias, layer * hidden)
    down = Matrix(weights.down, layer * hidden * c, c, c, weights.down_bias, layer * c)

    normalise(x, x_at, c, weights.norm1, layer * 2 * c, scratch.x)
    held, sums = at + block.held_in, at + block.sum_qkv
    macs[QKV] += 3 * c * product(scratch.x, 0, c, state, held, sums, qkv, theta[QKV], turn.rebase, scratch)
    attend(state, at, layer, turn, theta, prune, net, scratch, macs, pruned)
    held, sums = at + block.held_mixed, at + block.sum_out
    macs[OUT] += c * product(scratch.mixed, 0, c, state, held, sums, out, theta[OUT], turn.rebase, scratch)
    add(x, x_at, state, sums, c)

    normalise(x, x_at, c, weights.norm2, layer * 2 * c, scratch.x)
    held, sums = at + block.held_up, at + block.sum_up
    moved = product(scratch.x, 0, c, state, held, sums, up, theta[UP], turn.rebase, scratch)
    macs[UP] += hidden * moved
    if moved or turn.rebase:  # else the hidden units are what they were
        rectify(state, sums, scratch.wide, hidden)
        held, sums = at + block.held_down, at + block.sum_down
        macs[DOWN] += c * product(scratch.wide, 0, hidden, state, held, sums, down, theta[DOWN], turn.rebase, scratch)
    add(x, x_at, state, at + block.sum_down, c)


@compiled
def window(frames, first, state, layout, sizes, wide):
    """The frames under a token into `wide`, band by band, oldest first; the size, in whole vectors."""
    kernel, stride, bands = sizes.kernel, sizes.stride, sizes.bands
    old = kernel - stride
    for band in range(bands):
        at, past = band * kernel, layout.frames + band * old
        for i in range(old):
            wide[at + i] = state[past + i]
        for i in range(stride):
            wide[at + old + i] = frames[first + i * bands + band]
        for i in range(old):
            state[past + i] = wide[at + stride + i]
    size = (kernel * bands + WIDTH - 1) // WIDTH * WIDTH
    for i in range(kernel * bands, size):
        wide[i] = np.float32(0.0)
    return size


@compiled
def stem_step(frames, first, x, x_at, state, turn, theta, net, scratch, macs):
    """The newest `stride` frames of one stream, behind the ones it remembers, into one token x (C)."""
    layout, sizes, c = net.layout, net.sizes, net.sizes.channels
    size = window(frames, first, state, layout, sizes, scratch.wide)
    stem = Matrix(net.weights.stem, 0, c, c, net.weights.stem_bias, 0)
    held, sums = layout.held_stem, layout.sum_stem
    count = product(scratch.wide, 0, size, state, held, sums, stem, theta[0], turn.rebase, scratch)
    macs[0] += c * count
    if len(net.filters.shapes) and (count or turn.rebase):
        filters_step(state, sums, turn, theta, net, scratch, macs, count)
    copy(state, sums, x, x_at, c)


@compiled
def readout_step(x, x_at, state, turn, theta, prune, net, scratch, macs, pruned, logits, logits_at):
    """Pool the last `pool_span` tokens of x (C) and judge: logits (labels, padded); x becomes what was pooled."""
    pool, sizes, weights, at = net.layout.pool, net.sizes, net.weights, net.layout.readout
    c = sizes.channels
    query = Matrix(weights.pool_query, 0, WIDTH, WIDTH, scratch.zero, 0)
    head = Matrix(weights.head, 0, sizes.labels, sizes.labels, weights.head_bias, 0)

    normalise(x, x_at, c, weights.pool_norm, 0, scratch.x)
    held, sums, scores = at + pool.held_query, at + pool.sum_query, at + pool.scores
    macs[0] += sizes.heads * product(scratch.x, 0, c, state, held, sums, query, theta[0], turn.rebase, scratch)
    for i in range(sizes.heads):
        state[scores + i * turn.span + turn.slot] = state[sums + i]
    copy(scratch.x, 0, scratch.wide, 0, c)
    held, values, sums = at + pool.held_weights, at + pool.values, at + pool.sum_values
    count = mix(
        *(state, scores, np.float32(1.0), weights.pool_age_bias, 0, held, values, sums, turn),
        *(theta[1], prune, net, scratch, pruned),
    )
    macs[1] += count * (c // sizes.heads)
    held, sums = at + pool.held_head, at + pool.sum_head
    count = product(scratch.mixed, 0, c, state, held, sums, head, theta[2], turn.rebase, scratch)
    macs[2] += count * sizes.label_count
    copy(scratch.mixed, 0, x, x_at, c)
    copy(state, sums, logits, logits_at, sizes.labels)


@compiled
def begin(state, net):
    """A stream's first token: nothing is held, and the past is silent."""
    for i in range(net.layout.size):
        state[i] = np.float32(0.0)
    for i in range((net.sizes.kernel - net.sizes.stride) * net.sizes.bands):
        state[net.layout.frames + i] = np.float32(SILENT)


@compiled
def stems(state, tokens, macs, thetas, rows, counts, frames, x, net, scratch):
    """Every stream's new frames into tokens x; arguments as those of `step`."""
    sizes = net.sizes
    c, new, at = sizes.channels, sizes.stride * sizes.bands, 0
    for b in range(len(rows)):
        row = rows[b]
        if tokens[row] == 0:
            begin(state[row], net)
        for n in range(counts[b]):
            turn = turn_of(tokens[row] + n, row, sizes.span)
            stem_step(frames, at * new, x, at * c, state[row], turn, thetas[b, 0], net, scratch, macs[row, 0])
            at += 1


@compiled
def readouts(state, tokens, macs, pruned, thetas, prunes, rows, counts, x, logits, net, scratch):
    """Every stream's tokens x into logits, and on with the streams; arguments as those of `step`."""
    sizes = net.sizes
    c, last, at = sizes.channels, sizes.layers + 1, 0
    for b in range(len(rows)):
        row = rows[b]
        theta, prune, done, left = thetas[b, last], prunes[b, sizes.layers], macs[row, last], pruned[row]
        for n in range(counts[b]):
            turn = turn_of(tokens[row] + n, row, sizes.pool_span)
            place = at * sizes.labels
            readout_step(x, at * c, state[row], turn, theta, prune, net, scratch, done, left, logits, place)
            at += 1
        tokens[row] += counts[b]


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True, _nrt=False)
def step(state, tokens, macs, pruned, thetas, prunes, rows, counts, frames, x, logits, net, scratch):
    """Advance a batch of streams by `counts` tokens each; `models.network.Network.step` is the public face.

    All arrays are the caller's: state (capacity, layout.size or more), tokens (capacity,), macs (capacity, layers +
    2, 6) and pruned (capacity, 2) are the cache; thetas (B, layers + 2, 6) are the streams' thresholds for stem,
    blocks and read-out, prunes (B, layers + 1, heads, 2) what they prune in blocks and read-out; rows and counts
    (B,) name the streams, all different, and their tokens in this batch; frames hold (sum of counts) * stride *
    bands of network input; x (sum of counts) * C and logits (sum of counts) * labels are the result: what the read-
    out pooled at each token, and what the head says of it.
    """
    sizes, layout, c = net.sizes, net.layout, net.sizes.channels
    stems(state, tokens, macs, thetas, rows, counts, frames, x, net, scratch)
    for layer in range(sizes.layers):
        place, at = layout.blocks + layer * layout.block.size, 0
        for b in range(len(rows)):
            row = rows[b]
            theta, prune, done, left = thetas[b, layer + 1], prunes[b, layer], macs[row, layer + 1], pruned[row]
            for n in range(counts[b]):
                turn = turn_of(tokens[row] + n, row, sizes.span)
                block_step(x, at * c, state[row], place, layer, turn, theta, prune, net, scratch, done, left)
                at += 1
    readouts(state, tokens, macs, pruned, thetas, prunes, rows, counts, x, logits, net, scratch)
