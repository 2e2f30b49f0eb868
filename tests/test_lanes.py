"""Sixteen lanes at a time against numpy, one operation after the other."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from models import lanes, lists
from models.kernels import paired
from models.lanes import FAST
from models.packed import pack_matrix
from models.vectors import WIDTH

jit = njit(fastmath=FAST, error_model="numpy")


@jit
def exponentials(x, y):
    for lane in range(0, len(x), WIDTH):
        lanes.store(y, lane, lanes.exp(lanes.load(x, lane)))


@jit
def logarithms(x, y):
    for lane in range(0, len(x), WIDTH):
        lanes.store(y, lane, lanes.log1p(lanes.load(x, lane)))


@jit
def arithmetic(x, y, z, out):
    a, b, c = lanes.load(x, 0), lanes.load(y, 0), lanes.load(z, 0)
    lanes.store(out, 0, a + b)
    lanes.store(out, WIDTH, a - b)
    lanes.store(out, 2 * WIDTH, a * b)
    lanes.store(out, 3 * WIDTH, lanes.fma(a, b, c))
    lanes.store(out, 4 * WIDTH, lanes.maximum(a, b))
    lanes.store(out, 5 * WIDTH, lanes.splat(x[3]))
    lanes.store(out, 6 * WIDTH, lanes.minimum(a, b))


@jit
def reductions(x):
    return lanes.total(lanes.load(x, 0)), lanes.largest(lanes.load(x, 0))


@jit
def kept(x, first, limit, otherwise, out):
    lanes.store(out, 0, lanes.keep_below(lanes.load(x, 0), first, limit, otherwise))


@jit
def kept_from(x, scores, limit, out):
    lanes.store(out, 0, lanes.keep_from(lanes.load(x, 0), lanes.load(scores, 0), limit))
    return lanes.zeros(lanes.load(out, 0))


@jit
def transposed(x, places, offset, out, at, step):
    lanes.transpose(x, places, offset, out, at, step)


@jit
def gate(x, held, theta, index, change):
    count = 0
    for lane in range(0, len(x), WIDTH):
        count = lists.move(x, lane, held, lane, theta, index, change, count, lane)
    return count


@jit
def added_1(y, matrix, first, stride, index, change, count):
    lists.add_rows_1(y, 0, matrix, first, stride, index, change, count)


@jit
def added_12(y, matrix, first, stride, index, change, count):
    lists.add_rows_12(y, 0, matrix, first, stride, index, change, count)


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1, shape).astype(np.float32)


def test_exp_is_accurate_to_the_last_digits() -> None:
    x = np.concatenate((np.linspace(-86.9, 80, 160_000), [0.0, -0.0] * 8)).astype(np.float32)
    y = np.empty_like(x)
    exponentials(x, y)
    exact = np.exp(x.astype(np.float64))
    assert np.abs(y / exact - 1).max() < 3e-7
    assert (y[-16:] == 1.0).all()


def test_exp_of_what_is_far_below_is_nothing() -> None:
    x = np.array([-87.1, -88.0, -100.0, -1e4, -1e30, -np.inf, -87.5, -90.0] * 2, np.float32)
    y = np.empty_like(x)
    exponentials(x, y)
    assert (y == 0.0).all()


def test_log1p_is_accurate_to_the_last_digits_and_exact_at_nothing() -> None:
    x = np.concatenate((np.linspace(0, 4, 80_000), np.geomspace(1e-9, 1e15, 80_000), np.zeros(16))).astype(np.float32)
    y = np.empty_like(x)
    logarithms(x, y)
    exact = np.log1p(x.astype(np.float64))
    assert (np.abs(y - exact) / np.maximum(exact, 1.0)).max() < 2e-7
    assert (y[-16:] == 0.0).all()


def test_arithmetic() -> None:
    x, y, z = random(3, WIDTH)
    out = np.empty(7 * WIDTH, np.float32)
    arithmetic(x, y, z, out)
    wanted = np.concatenate((x + y, x - y, x * y, x * y + z, np.maximum(x, y), np.full(WIDTH, x[3]), np.minimum(x, y)))
    np.testing.assert_allclose(out, wanted, rtol=1e-6, atol=1e-7)


@given(st.integers(0, 1000))
def test_reductions(seed: int) -> None:
    x = random(WIDTH, seed=seed)
    total, largest = reductions(x)
    assert total == pytest.approx(x.sum(dtype=np.float64), abs=1e-5)
    assert largest == x.max()


@given(st.integers(0, 40), st.integers(0, 60))
def test_keep_below_the_limit(first: int, limit: int) -> None:
    x, out = random(WIDTH), np.empty(WIDTH, np.float32)
    kept(x, first, limit, np.float32(-9.0), out)
    np.testing.assert_array_equal(out, np.where(first + np.arange(WIDTH) < limit, x, -9.0))


@pytest.mark.parametrize("limit", [-np.inf, -0.5, 0.0, 0.7, np.inf])
def test_keep_from_a_limit_on_and_count_the_zeros(limit: float) -> None:
    x, scores = random(2, WIDTH)
    scores[5], out = np.float32(limit), np.empty(WIDTH, np.float32)
    zeros = kept_from(x, scores, np.float32(limit), out)
    np.testing.assert_array_equal(out, np.where(scores >= np.float32(limit), x, 0.0))
    assert out[5] == x[5]
    assert zeros == np.count_nonzero(out == 0)


@given(st.lists(st.integers(0, 900), min_size=WIDTH, max_size=WIDTH), st.integers(0, 80))
def test_transpose_turns_rows_into_lanes(places: list[int], offset: int) -> None:
    x, out = random(1_000), np.zeros(WIDTH * WIDTH + 3, np.float32)
    transposed(x, np.array(places), offset, out, 3, WIDTH)
    rows = np.stack([x[place + offset : place + offset + WIDTH] for place in places])
    np.testing.assert_array_equal(out[3:].reshape(WIDTH, WIDTH), rows.T)
    assert not out[:3].any()


@given(st.integers(0, 1000), st.floats(0, 2, width=32), st.integers(1, 4))
def test_move_is_the_delta_gate(seed: int, theta: float, vectors: int) -> None:
    size = vectors * WIDTH
    x, held = random(2, size, seed=seed)
    x[::5] = held[::5]  # some stand still
    before = held.copy()
    index, change = np.full(size + WIDTH, 999, np.uint16), np.zeros(size, np.float32)
    count = gate(x, held, np.float32(theta), index, change)
    moved = np.flatnonzero(np.abs(x - before) > np.float32(theta))
    np.testing.assert_array_equal(index[:count], moved)
    np.testing.assert_array_equal(change, x - before)
    np.testing.assert_array_equal(held, np.where(np.abs(x - before) > np.float32(theta), x, before))
    assert np.abs(x - held).max() <= theta


def test_move_appends_behind_what_is_there() -> None:
    x, held = np.ones(WIDTH, np.float32), np.zeros(WIDTH, np.float32)
    index, change = np.zeros(40, np.uint16), np.zeros(120, np.float32)

    @jit
    def append(x, held, index, change):
        return lists.move(x, 0, held, 0, np.float32(0.5), index, change, 3, 100)

    index[:3] = 7
    assert append(x, held, index, change) == 3 + WIDTH
    assert index[: 3 + WIDTH].tolist() == [7, 7, 7, *range(100, 100 + WIDTH)]


@pytest.mark.parametrize("step", [1, 7, 15])
def test_rows_turned_into_lanes_may_overlap_and_the_later_one_wins(step: int) -> None:
    x, out = random(WIDTH * WIDTH), np.zeros(step * (WIDTH - 1) + WIDTH, np.float32)
    transposed(x, np.arange(0, WIDTH * WIDTH, WIDTH), 0, out, 0, step)
    turned = x.reshape(WIDTH, WIDTH).T
    np.testing.assert_array_equal(out[: step * (WIDTH - 1)], turned[:-1, :step].ravel())
    np.testing.assert_array_equal(out[step * (WIDTH - 1) :], turned[-1])


@pytest.mark.parametrize("place", range(WIDTH))
def test_the_largest_may_be_in_any_lane(place: int) -> None:
    x = -1 - random(WIDTH) ** 2
    x[place] = -0.5
    assert reductions(x)[1] == -0.5


@pytest.mark.parametrize(("add", "vectors"), [(added_1, 1), (added_12, 12)])
def test_rows_of_bfloat16_are_pairs_of_vectors(add, vectors: int) -> None:
    """As `models.packed` writes them: exact, since a change of 1 multiplies what bfloat16 holds."""
    matrix = random(3 * vectors * WIDTH).reshape(vectors * WIDTH, 3)
    matrix = (matrix.view(np.uint32) & np.uint32(0xFFFF0000)).view(np.float32)
    packed, stride = pack_matrix([matrix]), paired(vectors * WIDTH)
    assert packed.size == 3 * stride
    y, index, change = np.zeros(vectors * WIDTH, np.float32), np.array([2], np.uint16), np.ones(3, np.float32)
    add(y, packed, 0, stride, index, change, 1)
    np.testing.assert_array_equal(y, matrix[:, 2])


@pytest.mark.parametrize(("add", "vectors"), [(added_1, 1), (added_12, 12)])
@pytest.mark.parametrize("count", [0, 1, 7])
def test_rows_are_added_as_listed(add, vectors: int, count: int) -> None:
    width, first, stride = vectors * WIDTH, 5, vectors * WIDTH + 3
    y, matrix = random(width), random(first + 20 * stride, seed=1)
    index = np.array([3, 0, 19, 3, 7, 1, 2], np.uint16)
    change = random(20, seed=2)
    wanted = y.astype(np.float64)
    for k in range(count):
        at = first + index[k] * stride
        wanted += np.float64(change[index[k]]) * matrix[at : at + width]
    add(y, matrix, first, stride, index, change, count)
    np.testing.assert_allclose(y, wanted, atol=1e-5)
