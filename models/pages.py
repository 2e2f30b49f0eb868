"""Memory in large pages, so that what kernels read here and there is found with fewer looks into the page table."""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

GIVES_BACK = hasattr(mmap, "MADV_HUGEPAGE")
"""Whether this system has large pages, and takes pages back (Linux)."""
LARGE = 2 << 20
LINE = 64
"""Bytes of a large page, and of a cache line."""


def large_pages(size: int) -> mmap.mmap:
    """Zeros that begin on a page; those that nobody touched cost nothing."""
    if not GIVES_BACK:
        return mmap.mmap(-1, size)
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def together(arrays: Sequence[NDArray[Any]]) -> list[NDArray[Any]]:
    """Copies of some arrays, one after another, each from the beginning of a cache line on.

    They lie in large pages, unless they are far smaller than one.
    """
    sizes = [-(-array.nbytes // LINE) * LINE for array in arrays]
    size = sum(sizes)
    large = size > LARGE // 8
    memory = np.frombuffer(
        large_pages(size // LARGE * LARGE + 2 * LARGE) if large else bytearray(size + LINE), np.uint8
    )
    at, copies = -memory.ctypes.data % (LARGE if large else LINE), []
    for array, size in zip(arrays, sizes, strict=True):
        copies.append(memory[at : at + array.nbytes].view(array.dtype).reshape(array.shape))
        copies[-1][...] = array
        at += size
    return copies
