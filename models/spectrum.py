"""Log-mel energies of many windows of samples, compiled: sixteen windows at a time, one in each vector lane.

A window of 480 real samples is 240 complex ones (even samples real, odd ones imaginary), zero-padded to 256:
one FFT of 256 points and an unfolding give the 512-point real spectrum. Every lane does the same, so
nothing is shuffled and the code is the textbook's.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models import lanes, vectors
from models.lanes import FAST, fma, load, log1p, minimum, splat, store, transpose
from models.stale import forget_stale
from models.vectors import WIDTH

F32 = NDArray[np.float32]
_HALF, _ONE, _TEN = np.float32(0.5), np.float32(1.0), np.float32(10.0)


class Plan(NamedTuple):
    """Tables for one front end.

    taper: (window,) window function. places: (fft / 2,) bit-reversed order. cosine, sine: (fft / 2,) of
    2 pi k / fft. first, last: (bands,) bins under each filter. weights: (fft / 2 + 1, bands) filters.
    """

    taper: F32
    places: NDArray[np.int64]
    cosine: F32
    sine: F32
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    weights: F32


class Scale(NamedTuple):
    """How energies are written: min(10 ln(1 + E / floor), top) * unit + zero."""

    floor: np.float32
    top: np.float32
    unit: np.float32
    zero: np.float32


def plan(taper: F32, weights: F32) -> Plan:
    """Tables from the window function (window,) and the mel filters (fft / 2 + 1, bands).

    Raises:
        ValueError: for lengths that the compiled code does not step through.
    """
    points = len(weights) - 1
    bits = points.bit_length() - 1
    if points != 1 << bits or bits % 2 or len(taper) % WIDTH:
        raise ValueError(f"fft must be twice a power of 4, and window a multiple of {WIDTH}")
    places = np.array([int(f"{n:0{bits}b}"[::-1], 2) for n in range(points)])
    angle = np.pi * np.arange(points) / points
    used = weights > 0
    first, last = used.argmax(axis=0), len(weights) - used[::-1].argmax(axis=0)
    return Plan(taper, places, np.float32(np.cos(angle)), np.float32(np.sin(angle)), first, last, weights)


@njit(error_model="numpy", cache=True)
def place_windows(counts, lengths, step, hop, starts):
    """Where windows begin among the samples of streams laid end to end, into `starts` (tokens, stride).

    Stream s has counts[s] tokens, `step` samples apart, in lengths[s] samples; a token's windows are `hop` apart.
    Too short to let go of the interpreter's lock for it.
    """
    token, first = 0, 0
    for stream in range(len(counts)):
        for n in range(counts[stream]):
            for window in range(starts.shape[1]):
                starts[token, window] = first + n * step + window * hop
            token += 1
        first += lengths[stream]


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def log_mel(samples, starts, plan, scale, energies):
    """Windows of samples (S,) that begin at `starts` (R,) -> log-mel energies (R, bands), into `energies`."""
    rows, length, points = len(starts), len(plan.taper), len(plan.places)
    real, imag = np.zeros(points * WIDTH, np.float32), np.zeros(points * WIDTH, np.float32)
    power = np.empty((points + 1) * WIDTH, np.float32)
    windows, places = np.empty(length * WIDTH, np.float32), np.empty(WIDTH, np.int64)
    for group in range(0, rows, WIDTH):
        # the last group may overlap the one before: rows done twice come out the same
        first = max(0, min(group, rows - WIDTH))
        for lane in range(WIDTH):
            places[lane] = starts[min(first + lane, rows - 1)]
        for n in range(0, length, WIDTH):
            transpose(samples, places, n, windows, n * WIDTH, WIDTH)
        _fold(windows, length, plan, real, imag)
        _transform(real, imag, plan)
        _unfold(real, imag, plan, power)
        _filter(power, plan, scale, energies, first, min(WIDTH, rows))


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _fold(windows, length, plan, real, imag):
    """Taper; even samples become real parts, odd ones imaginary, in bit-reversed order."""
    zero = splat(np.float32(0.0))
    for n in range(len(plan.places)):
        place, even = plan.places[n] * WIDTH, 2 * n
        if even < length:
            store(real, place, load(windows, even * WIDTH) * splat(plan.taper[even]))
            store(imag, place, load(windows, (even + 1) * WIDTH) * splat(plan.taper[even + 1]))
        else:
            store(real, place, zero)
            store(imag, place, zero)


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _transform(real, imag, plan):
    """Complex FFT in place, decimation in time, two stages of radix 2 at once; the input is in bit-reversed order."""
    points = len(plan.places)
    half = 1
    while half < points:
        for j in range(half):
            inner, outer = j * (points // half), j * (points // (2 * half))
            c1, s1 = splat(plan.cosine[inner]), splat(plan.sine[inner])
            c2, s2 = splat(plan.cosine[outer]), splat(plan.sine[outer])
            for block in range(j, points, 4 * half):
                p, step = block * WIDTH, half * WIDTH
                q, r, t = p + step, p + 2 * step, p + 3 * step
                br, bi = _turned(load(real, q), load(imag, q), c1, s1)
                dr, di = _turned(load(real, t), load(imag, t), c1, s1)
                ar, ai, cr, ci = load(real, p), load(imag, p), load(real, r), load(imag, r)
                er, ei = _turned(cr + dr, ci + di, c2, s2)
                fr, fi = _turned(cr - dr, ci - di, c2, s2)
                store(real, p, ar + br + er)
                store(imag, p, ai + bi + ei)
                store(real, r, ar + br - er)
                store(imag, r, ai + bi - ei)
                # a quarter of a turn further: -i (x + iy) = y - ix
                store(real, q, ar - br + fi)
                store(imag, q, ai - bi - fr)
                store(real, t, ar - br - fi)
                store(imag, t, ai - bi + fr)
        half *= 4


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _turned(real, imag, cosine, sine):
    """(real + i imag) (cosine - i sine)."""
    return real * cosine + imag * sine, imag * cosine - real * sine


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _unfold(real, imag, plan, power):
    """Spectrum of the folded signal -> power of the real signal's bins that any filter uses."""
    points, half = len(plan.places), splat(_HALF)
    for k in range(max(1, plan.first.min()), min(points, plan.last.max())):
        a, b = k * WIDTH, (points - k) * WIDTH
        even_r, even_i = load(real, a) + load(real, b), load(imag, a) - load(imag, b)
        odd_r, odd_i = load(imag, a) + load(imag, b), load(real, b) - load(real, a)
        cosine, sine = splat(plan.cosine[k]), splat(plan.sine[k])
        re = (even_r + odd_r * cosine + odd_i * sine) * half
        im = (even_i + odd_i * cosine - odd_r * sine) * half
        store(power, a, fma(re, re, im * im))


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _filter(power, plan, scale, energies, row, rows):
    """Power spectra of the lanes -> energies[row : row + rows]."""
    lanes = np.empty(WIDTH, np.float32)
    share, top, unit, zero = splat(_ONE / scale.floor), splat(scale.top), splat(scale.unit), splat(scale.zero)
    for band in range(energies.shape[1]):
        energy = splat(np.float32(0.0))
        for k in range(plan.first[band], plan.last[band]):
            energy = fma(splat(plan.weights[k, band]), load(power, k * WIDTH), energy)
        pixel = minimum(splat(_TEN) * log1p(energy * share), top)
        store(lanes, 0, fma(pixel, unit, zero))
        for lane in range(rows):
            energies[row + lane, band] = lanes[lane]


forget_stale(log_mel, vectors.__file__, lanes.__file__)
