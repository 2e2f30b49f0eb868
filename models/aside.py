"""Files that are whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def aside(file: Path) -> Iterator[Path]:
    """A path to write to in the stead of `file`, whose place it takes at the end; nothing stays of what failed."""
    partial = file.with_name(file.name + ".part")
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
