"""Files that are whole or not there: written beside their place, then moved into it."""

from __future__ import annotations

import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def aside(file: Path) -> Iterator[Path]:
    """A path to write to in the stead of `file`, whose place it takes at the end; nothing stays of what failed.

    It is nobody else's: two processes may write the same file, and the last one's is there.
    """
    partial = file.with_name(f"{file.name}.{secrets.token_hex(4)}.part")
    try:
        yield partial
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)
