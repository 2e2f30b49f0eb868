"""The compiled stem: the newest frames of a stream into one token, by one matrix and by convolutions beside it."""

from __future__ import annotations

import numpy as np

from models import filters
from models.filters import filters_step
from models.kernels import compiled, copy, matrix, product
from models.lanes import transpose
from models.stale import forget_stale
from models.vectors import WIDTH


@compiled
def window(frames, first, state, layout, sizes, scratch):
    """The frames under a token into `scratch.wide`, band by band, oldest first; the size, in whole vectors."""
    bands, past, new = sizes.bands, (sizes.kernel - sizes.stride) * sizes.bands, sizes.stride * sizes.bands
    copy(state, layout.frames, scratch.frames, 0, past)
    whole = new // WIDTH * WIDTH
    copy(frames, first, scratch.frames, past, whole)
    for i in range(whole, new):
        scratch.frames[past + i] = frames[first + i]
    copy(scratch.frames, new, state, layout.frames, past)
    for band in range(0, bands, WIDTH):
        transpose(scratch.frames, scratch.lines, band, scratch.wide, band * sizes.kernel, sizes.kernel)
    size = (sizes.kernel * bands + WIDTH - 1) // WIDTH * WIDTH
    for i in range(sizes.kernel * bands, size):
        scratch.wide[i] = np.float32(0.0)
    return size


@compiled
def stem_step(frames, first, x, x_at, state, turn, theta, net, scratch, macs):
    """The newest `stride` frames of one stream, behind the ones it remembers, into one token x (C)."""
    layout, sizes, c = net.layout, net.sizes, net.sizes.channels
    size = window(frames, first, state, layout, sizes, scratch)
    stem = matrix(net.weights.stem, 0, size, c, net.weights.stem_bias)
    held, sums = layout.held_stem, layout.sum_stem
    count = product(scratch.wide, 0, size, state, held, sums, stem, theta[0], turn.rebase, scratch)
    macs[0] += c * count
    if len(net.filters.shapes) and (count or turn.rebase):
        filters_step(state, sums, turn, theta, net, scratch, macs, count)
    copy(state, sums, x, x_at, c)


forget_stale(stem_step, filters.__file__, __file__)
