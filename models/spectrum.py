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

    window: samples of one. taper: (fft,) window function, then zeros. places: (fft / 2,) bit-reversed order. cosine,
    sine: (fft / 2,) of 2 pi k / fft. first, last: (bands,) bins under each filter. weights: the filters' at these, one
    filter after another.
    """

    window: int
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
    if points != 1 << bits or bits % 2 or points < 2 * WIDTH or len(taper) % WIDTH:
        raise ValueError(f"fft must be twice a power of 4 from 64 on, and window a multiple of {WIDTH}")
    places = np.array([int(f"{n:0{bits}b}"[::-1], 2) for n in range(points)])
    angle = np.pi * np.arange(points) / points
    used = weights > 0
    first = used.argmax(axis=0)
    last = np.where(used.any(axis=0), len(weights) - used[::-1].argmax(axis=0), first)  # a narrow filter may have none
    cosine, sine = np.float32(np.cos(angle)), np.float32(np.sin(angle))
    padded = np.pad(taper, (0, 2 * points - len(taper)))
    parts = [weights[begin:end, band] for band, (begin, end) in enumerate(zip(first, last, strict=True))]
    return Plan(len(taper), padded, places, cosine, sine, first, last, np.concatenate(parts))


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
    rows, points = len(starts), len(plan.places)
    real, imag = np.zeros(points * WIDTH, np.float32), np.zeros(points * WIDTH, np.float32)
    power, windows = np.empty((points + 1) * WIDTH, np.float32), np.zeros(4 * WIDTH * WIDTH, np.float32)
    bands = -(-energies.shape[1] // WIDTH) * WIDTH
    by_band, by_window = np.zeros(bands * WIDTH, np.float32), np.empty(bands * WIDTH, np.float32)
    places, lines = np.empty(WIDTH, np.int64), np.arange(WIDTH) * WIDTH
    for group in range(0, rows, WIDTH):
        # the last group may overlap the one before: rows done twice come out the same
        first = max(0, min(group, rows - WIDTH))
        for lane in range(WIDTH):
            places[lane] = starts[min(first + lane, rows - 1)]
        _begin(samples, places, plan, windows, real, imag)
        _transform(real, imag, plan)
        _unfold(real, imag, plan, power)
        _filter(power, plan, scale, by_band)
        for band in range(0, bands, WIDTH):
            transpose(by_band, lines, band * WIDTH, by_window, band, bands)
        for lane in range(min(WIDTH, rows)):
            for band in range(energies.shape[1]):
                energies[first + lane, band] = by_window[lane * bands + band]


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _begin(samples, places, plan, windows, real, imag):
    """Windows of samples that begin at `places`, tapered, through the first two stages of the transform.

    Even samples are real parts, odd ones imaginary; they land in bit-reversed order. A butterfly takes one number out
    of each quarter of the window, and only adds. What it needs is turned into lanes right before, a vector's width of
    samples from every quarter, so that it is still at hand.
    """
    quarter = len(plan.places) // 2  # samples: two in each number
    for n in range(0, quarter, WIDTH):
        for part in range(4):
            at = part * quarter + n
            if at < plan.window:
                transpose(samples, places, at, windows, part * WIDTH * WIDTH, WIDTH)
        for k in range(0, WIDTH, 2):
            ar, ai = _tapered(windows, plan, quarter, 0, n, k)
            br, bi = _tapered(windows, plan, quarter, 2, n, k)
            cr, ci = _tapered(windows, plan, quarter, 1, n, k)
            dr, di = _tapered(windows, plan, quarter, 3, n, k)
            p = plan.places[(n + k) // 2] * WIDTH
            _cross(real, imag, p, WIDTH, ar + br, ai + bi, ar - br, ai - bi, cr + dr, ci + di, cr - dr, ci - di)


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _tapered(windows, plan, quarter, part, n, k):
    """Two neighbouring samples of a quarter, as `_begin` has them at hand; behind the window the taper is zero."""
    at, place = part * quarter + n + k, (part * WIDTH + k) * WIDTH
    even, odd = plan.taper[at], plan.taper[at + 1]
    return load(windows, place) * splat(even), load(windows, place + WIDTH) * splat(odd)


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _transform(real, imag, plan):
    """The rest of a complex FFT in place, decimation in time, two stages of radix 2 at once."""
    points = len(plan.places)
    half = 4
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
                _cross(real, imag, p, step, ar + br, ai + bi, ar - br, ai - bi, er, ei, fr, fi)
        half *= 4


@njit(nogil=True, fastmath=FAST, error_model="numpy", cache=True)
def _cross(real, imag, p, step, ar, ai, br, bi, er, ei, fr, fi):
    """The second half of a butterfly: a + e, b - i f, a - e, b + i f to four places, `step` apart."""
    q, r, t = p + step, p + 2 * step, p + 3 * step
    store(real, p, ar + er)
    store(imag, p, ai + ei)
    store(real, q, br + fi)
    store(imag, q, bi - fr)
    store(real, r, ar - er)
    store(imag, r, ai - ei)
    store(real, t, br - fi)
    store(imag, t, bi + fr)


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
def _filter(power, plan, scale, energies):
    """Power spectra of the lanes -> their energies, band by band."""
    share, top, unit, zero = splat(_ONE / scale.floor), splat(scale.top), splat(scale.unit), splat(scale.zero)
    at = 0
    for band in range(len(plan.first)):
        energy = splat(np.float32(0.0))
        for k in range(plan.first[band], plan.last[band]):
            energy = fma(splat(plan.weights[at]), load(power, k * WIDTH), energy)
            at += 1
        pixel = minimum(splat(_TEN) * log1p(energy * share), top)
        store(energies, band * WIDTH, fma(pixel, unit, zero))


forget_stale(log_mel, vectors.__file__, lanes.__file__)
