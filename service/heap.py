"""The process's heap: what streams leave there goes back to the system. Knows no streams.

glibc keeps what it once was given, in case. Large blocks get mappings of their own, which vanish when they are freed,
only up to the size that is freed most: after a burst of audio they come from the heap too, among small blocks that
stay. Elsewhere than on glibc, both functions do nothing.
"""

from __future__ import annotations

import ctypes
from typing import Final

LARGE: Final = 1 << 16
"""Bytes from which a block is mapped by itself, always."""
_M_MMAP_THRESHOLD: Final = -3  # malloc.h


def keep_large_blocks_out() -> None:
    """Fix the size from which blocks are mapped; to be called before there is much."""
    if (mallopt := getattr(ctypes.CDLL(None), "mallopt", None)) is not None:
        mallopt(_M_MMAP_THRESHOLD, LARGE)


def trim() -> None:
    """Give back every free page; takes some milliseconds, in which no other thread may allocate."""
    if (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        malloc_trim(0)
