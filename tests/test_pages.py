"""Arrays side by side in large pages."""

from __future__ import annotations

import numpy as np
import pytest

from models.pages import LARGE, LINE, large_pages, together


@pytest.mark.parametrize("floats", [3, LARGE // 4])
def test_arrays_are_copied_one_after_another_each_on_a_cache_line(floats: int) -> None:
    arrays = [
        np.arange(5, dtype=np.int64),
        np.zeros(0, np.float32),
        np.arange(floats, dtype=np.float32),
        np.arange(6, dtype=np.uint16).reshape(2, 3),
    ]
    copies = together(arrays)
    for array, copy in zip(arrays, copies, strict=True):
        np.testing.assert_array_equal(copy, array)
        assert (copy.dtype, copy.shape) == (array.dtype, array.shape)
        assert copy.ctypes.data % LINE == 0 or not copy.size
        assert not np.shares_memory(copy, array)
    begins = [copy.ctypes.data for copy in copies if copy.size]
    assert begins == sorted(begins)


def test_what_fills_a_large_page_begins_on_one() -> None:
    assert together([np.zeros(LARGE, np.uint8)])[0].ctypes.data % LARGE == 0


def test_large_pages_hold_zeros() -> None:
    memory = large_pages(3 * LARGE)
    assert len(memory) == 3 * LARGE
    assert not np.frombuffer(memory, np.uint8).any()
