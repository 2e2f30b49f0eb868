"""The compiled step: the network of `models.transformer` without torch, doing only what changed.

Layer-major over a batch of streams: a block's weights are fetched once and serve every stream and token of
the batch. A stream's state is a row of the cache's arena (`models.cache`); the products that follow only what
moved are in `models.kernels`. Networks with folded layers have a step of their own, `models.folded_step`.

Sums of millions of small additions drift, so each stream rebuilds its sums from its held values every
`REBASE_TOKENS` tokens of its own: rounding, which decides a gate now and then, must not know a stream's neighbours.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit

from models.features import SILENT
from models.kernels import (
    Matrix,
    add,
    compiled,
    copy,
    dot,
    matrix,
    mean_size,
    normalise,
    product,
    rectify,
    softmax,
    spared,
)
from models.lanes import FAST, fma, load, prefetch, splat, store
from models.operating import HEAD, OFF, SCORE
from models.stem import stem_step
from models.vectors import WIDTH

REBASE_TOKENS = 256
"""Tokens between two rebuilds of a stream's sums: 7.7 s at 30 ms; 0.4 % of the dense work."""

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
def turn_of(token, span):
    """The turn of a stream's token."""
    return Turn(token, token % span, min(token + 1, span), span, token % REBASE_TOKENS == 0)


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
def forget_oldest(state, row, held_at, sum_at, turn, net):
    """Take the value that the ring is about to lose, at `row`, out of every head's sum; the value rows read."""
    if turn.token < turn.span:
        return 0
    width = net.sizes.channels // net.sizes.heads
    for head in range(net.sizes.heads):
        held = held_at + head * turn.span + turn.slot
        weight = splat(-state[held])
        state[held] = np.float32(0.0)
        for place in range(head * width, (head + 1) * width, WIDTH):
            store(state, sum_at + place, fma(weight, load(state, row + place), load(state, sum_at + place)))
    return net.sizes.heads


@compiled
def weigh(state, scores_at, scale, bias, bias_at, turn, theta, prune, net, scratch):
    """Softmax of every head's scores into `scratch.weights`, and what these must move by into `scratch.gates`.

    A silent head has no weights, and a gate that lets nothing through. `prune` (heads, 2) holds what `models.operating`
    says of scores and heads.
    """
    span = turn.span
    for head in range(net.sizes.heads):
        at, ages = scores_at + head * span, bias_at + head * 2 * span + span - turn.slot
        lowest, tau = prune[head, SCORE], prune[head, HEAD]
        silent = tau > np.float32(0.0) and mean_size(state, at, scale, turn.filled, span) < tau
        scratch.gates[head] = ALWAYS if silent else theta
        if not silent:
            softmax(state, at, scale, bias, ages, turn.filled, span, lowest, scratch.weights, head * span)


@compiled
def mix(state, held_at, values_at, sum_at, turn, prune, net, scratch, pruned):
    """The ring's values by `scratch.weights`, as far as these moved, into `scratch.mixed`; the value rows read.

    The new token's value must lie in `scratch.wide`: the slot's old one is taken out of the sum first. `pruned` (2,)
    gets the MACs that pruned scores and silent heads leave out.
    """
    span, channels = turn.span, net.sizes.channels
    width, row, weights = channels // net.sizes.heads, values_at + turn.slot * channels, scratch.weights
    rows = forget_oldest(state, row, held_at, sum_at, turn, net)
    copy(scratch.wide, 0, state, row, channels)
    for head in range(net.sizes.heads):
        place, at, gate = head * width, head * span, scratch.gates[head]
        ring = Matrix(state, values_at + place, width, channels, scratch.zero, 0)
        count = product(weights, at, span, state, held_at + at, sum_at + place, ring, gate, turn.rebase, scratch)
        silent = gate == ALWAYS
        if silent:
            pruned[HEAD] += max(0, turn.filled - count) * width
        elif prune[head, SCORE] > NEVER:
            pruned[SCORE] += max(0, spared(weights, at, turn.filled, span, scratch.index, count)) * width
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
    weigh(state, scores, sizes.scale, bias, bias_at, turn, theta[VALUES], prune, net, scratch)
    count = mix(state, held, values, sums, turn, prune, net, scratch, pruned)
    macs[VALUES] += count * (channels // sizes.heads)


@compiled
def block_step(x, x_at, state, at, layer, turn, theta, prune, net, scratch, macs, pruned):
    """One token through one block; x (C) is changed in place. `theta` holds the block's six thresholds."""
    block, weights, c, hidden = net.layout.block, net.weights, net.sizes.channels, net.sizes.hidden
    qkv = matrix(weights.qkv, layer, c, 3 * c, weights.qkv_bias)
    out = matrix(weights.out, layer, c, c, weights.out_bias)
    up = matrix(weights.up, layer, c, hidden, weights.up_bias)
    down = matrix(weights.down, layer, hidden, c, weights.down_bias)

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
def readout_step(x, x_at, state, turn, theta, prune, net, scratch, macs, pruned, logits, logits_at):
    """Pool the last `pool_span` tokens of x (C) and judge: logits (labels, padded); x becomes what was pooled."""
    pool, sizes, weights, at = net.layout.pool, net.sizes, net.weights, net.layout.readout
    c = sizes.channels
    query = matrix(weights.pool_query, 0, c, WIDTH, scratch.zero)
    head = matrix(weights.head, 0, c, sizes.labels, weights.head_bias)

    normalise(x, x_at, c, weights.pool_norm, 0, scratch.x)
    held, sums, scores = at + pool.held_query, at + pool.sum_query, at + pool.scores
    macs[0] += sizes.heads * product(scratch.x, 0, c, state, held, sums, query, theta[0], turn.rebase, scratch)
    for i in range(sizes.heads):
        state[scores + i * turn.span + turn.slot] = state[sums + i]
    copy(scratch.x, 0, scratch.wide, 0, c)
    held, values, sums = at + pool.held_weights, at + pool.values, at + pool.sum_values
    weigh(state, scores, np.float32(1.0), weights.pool_age_bias, 0, turn, theta[1], prune, net, scratch)
    count = mix(state, held, values, sums, turn, prune, net, scratch, pruned)
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
def approach(state, rows, b, at, size, part, parts):
    """Begin to fetch one of some parts of what stream `b` keeps at `at` (size), while the one before it has its turn.

    A stream's state is many times a first-level cache, and comes from memory: it would be waited for line by line.
    """
    if b < len(rows):
        ahead = state[rows[b]]
        for line in range(at + size * part // parts, at + size * (part + 1) // parts, WIDTH):
            prefetch(ahead, line)


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
            approach(state, rows, b + 1, 0, net.layout.blocks, n, counts[b])
            turn = turn_of(tokens[row] + n, sizes.span)
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
            approach(state, rows, b + 1, net.layout.readout, net.layout.pool.size, n, counts[b])
            turn = turn_of(tokens[row] + n, sizes.pool_span)
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
                approach(state, rows, b + 1, place, layout.block.size, n, counts[b])
                turn = turn_of(tokens[row] + n, sizes.span)
                block_step(x, at * c, state[row], place, layer, turn, theta, prune, net, scratch, done, left)
                at += 1
    readouts(state, tokens, macs, pruned, thetas, prunes, rows, counts, x, logits, net, scratch)
