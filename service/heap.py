"""The process's heap: what streams leave there goes back to the system. Knows no streams."""

from __future__ import annotations

import ctypes


def trim() -> None:
    """Give back every free page that glibc keeps, in case; takes some milliseconds. Elsewhere, do nothing."""
    if (malloc_trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        malloc_trim(0)
