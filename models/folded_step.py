"""The compiled step of networks with folded layers (`models.folding`), plain ones among them.

A token of C channels is F sub-tokens of C / F, side by side. Each passes the layer's small matrices with gates and
sums of its own, so a gate compares it with the same sub-token of the token before; attention is the plain block's over
a ring of F W sub-tokens (`models.cache`), into which a token puts F neighbours at once and F queries read. What a
query may see is whole tokens, its own to the end included.

Folded layers are not pruned.
"""

from __future__ import annotations

import numpy as np
from numba import njit

from models import step as plain
from models.kernels import Matrix, accumulate, add, compiled, copy, dot, matrix, normalise, product, rectify, softmax
from models.lanes import FAST
from models.stale import forget_stale
from models.step import DOWN, NEVER, OUT, QKV, SCORES, UP, VALUES, block_step, readouts, stems, turn_of


@compiled
def score(state, at, turn, theta, factor, net, scratch):
    """Gated scores, not yet scaled, of each sub-token's query against the ring; the query channels that moved.

    Old keys meet the change of a query only; the new ones meet the whole held query.
    """
    block, sizes = net.layout.block, net.sizes
    c, span, slot = sizes.channels, factor * turn.span, factor * turn.slot
    width = c // sizes.heads
    for part in range(factor):
        key = at + block.sum_qkv + (3 * part + 1) * c
        for channel in range(c):
            state[at + block.keys + channel * span + slot + part] = state[key + channel]
    count = 0
    for part in range(factor):
        query = at + block.sum_qkv + 3 * part * c
        for head in range(sizes.heads):
            first = head * width
            held = at + block.held_query + part * c + first
            row = at + block.scores + (part * sizes.heads + head) * span
            ring = Matrix(state, at + block.keys + first * span, span, span, scratch.zero, 0)
            count += product(state, query + first, width, state, held, row, ring, theta, turn.rebase, scratch)
            for other in range(factor):
                key = at + block.sum_qkv + (3 * other + 1) * c + first
                state[row + slot + other] = dot(state, held, state, key, width)
    return count


@compiled
def renew(state, at, turn, factor, net, scratch):
    """Put the token's values into the ring, the old token's taken out of every sum first; the value rows read."""
    block, sizes = net.layout.block, net.sizes
    c, span, slot = sizes.channels, factor * turn.span, factor * turn.slot
    width, values, rows = c // sizes.heads, at + block.values + slot * c, 0
    if turn.token >= turn.span:
        for head in range(sizes.heads):
            oldest = Matrix(state, values + head * width, width, c, scratch.zero, 0)
            for part in range(factor):
                held = at + block.held_weights + (part * sizes.heads + head) * span + slot
                for other in range(factor):
                    scratch.index[other], scratch.change[other] = other, -state[held + other]
                    state[held + other] = np.float32(0.0)
                sums = at + block.sum_values + part * c + head * width
                accumulate(state, sums, oldest, scratch.index, scratch.change, factor)
                rows += factor
    for part in range(factor):
        copy(state, at + block.sum_qkv + (3 * part + 2) * c, state, values + part * c, c)
    return rows


@compiled
def attend(state, at, layer, turn, theta, factor, net, scratch, macs):
    """Attention of one token's sub-tokens from their sums of query, key and value, into `scratch.mixed`."""
    block, sizes = net.layout.block, net.sizes
    c, span, filled = sizes.channels, factor * turn.span, factor * turn.filled
    width, newest = c // sizes.heads, factor * turn.slot + factor - 1
    count = score(state, at, turn, theta[SCORES], factor, net, scratch)
    macs[SCORES] += factor * (count * (turn.filled - 1) + factor * c)
    rows = renew(state, at, turn, factor, net, scratch)
    bias_at = layer * factor * sizes.heads * 2 * span
    for head in range(sizes.heads):
        ring = Matrix(state, at + block.values + head * width, width, c, scratch.zero, 0)
        for part in range(factor):
            row, place = (part * sizes.heads + head) * span, part * c + head * width
            scores, ages = at + block.scores + row, bias_at + 2 * row + span - newest
            held, sums = at + block.held_weights + row, at + block.sum_values + place
            bias, weights = net.weights.age_bias, scratch.weights
            softmax(state, scores, sizes.scale, bias, ages, filled, span, NEVER, weights, 0)
            rows += product(weights, 0, span, state, held, sums, ring, theta[VALUES], turn.rebase, scratch)
    copy(state, at + block.sum_values, scratch.mixed, 0, factor * c)
    macs[VALUES] += rows * width


@compiled
def feed_forward(x, x_at, state, at, layer, part, turn, theta, net, scratch, macs):
    """One sub-token x (C / F) through the feed-forward network, in place."""
    block, weights, c, hidden = net.layout.block, net.weights, net.sizes.channels, net.sizes.hidden
    up = matrix(weights.up, layer, c, hidden, weights.up_bias)
    down = matrix(weights.down, layer, hidden, c, weights.down_bias)
    normalise(x, x_at, c, weights.norm2, layer * 2 * c, scratch.x)
    held, sums = at + block.held_up + part * c, at + block.sum_up + part * hidden
    moved = product(scratch.x, 0, c, state, held, sums, up, theta[UP], turn.rebase, scratch)
    macs[UP] += hidden * moved
    hidden_at, down_at = at + block.held_down + part * hidden, at + block.sum_down + part * c
    if moved or turn.rebase:  # else the hidden units are what they were
        rectify(state, sums, scratch.wide, hidden)
        macs[DOWN] += c * product(
            scratch.wide, 0, hidden, state, hidden_at, down_at, down, theta[DOWN], turn.rebase, scratch
        )
    add(x, x_at, state, down_at, c)


@compiled
def folded_block(x, x_at, state, at, layer, turn, theta, factor, net, scratch, macs):
    """One token through one folded block; x (C) is changed in place. `theta` holds the block's six thresholds."""
    block, weights, c = net.layout.block, net.weights, net.sizes.channels
    qkv = matrix(weights.qkv, layer, c, 3 * c, weights.qkv_bias)
    out = matrix(weights.out, layer, c, c, weights.out_bias)
    for part in range(factor):
        normalise(x, x_at + part * c, c, weights.norm1, layer * 2 * c, scratch.x)
        held, sums = at + block.held_in + part * c, at + block.sum_qkv + 3 * part * c
        macs[QKV] += 3 * c * product(scratch.x, 0, c, state, held, sums, qkv, theta[QKV], turn.rebase, scratch)
    attend(state, at, layer, turn, theta, factor, net, scratch, macs)
    for part in range(factor):
        place = part * c
        held, sums = at + block.held_mixed + place, at + block.sum_out + place
        macs[OUT] += c * product(scratch.mixed, place, c, state, held, sums, out, theta[OUT], turn.rebase, scratch)
        add(x, x_at + place, state, sums, c)
        feed_forward(x, x_at + place, state, at, layer, part, turn, theta, net, scratch, macs)


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True, _nrt=False)
def folded_step(state, tokens, macs, pruned, thetas, prunes, rows, counts, frames, x, logits, net, scratch):
    """As `models.step.step`, of a `models.packed.FoldedNet`."""
    sizes = net.sizes
    stems(state, tokens, macs, thetas, rows, counts, frames, x, net, scratch)
    for layer in range(sizes.layers):
        factor, number, place, at = net.layers[layer, 0], net.layers[layer, 1], net.layers[layer, 2], 0
        for b in range(len(rows)):
            row = rows[b]
            theta, prune, done, left = thetas[b, layer + 1], prunes[b, layer], macs[row, layer + 1], pruned[row]
            for n in range(counts[b]):
                turn = turn_of(tokens[row] + n, sizes.span)
                if factor == 1:
                    block_step(x, at, state[row], place, number, turn, theta, prune, net, scratch, done, left)
                else:
                    folded_block(x, at, state[row], place, number, turn, theta, factor, net.folded, scratch, done)
                at += sizes.channels
    readouts(state, tokens, macs, pruned, thetas, prunes, rows, counts, x, logits, net, scratch)


forget_stale(folded_step, plain.__file__)
