"""Compiled kernels on disk are renewed when what they inline changes.

Numba asks only whether a function's own file is the one that it compiled; a vector operation or a product that was
inlined from another module may have changed since.
"""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from numba.core.dispatcher import Dispatcher


def forget_stale(compiled: Dispatcher, *sources: str | None) -> None:
    """Drop from the folder of a function's cache what is older than one of these files of modules.

    To be called before anything of the folder is loaded: where a module is imported, that is.
    """
    newest = max(Path(str(source)).stat().st_mtime_ns for source in sources)
    for index in Path(str(compiled.stats.cache_path)).glob("*.nbi"):
        with suppress(FileNotFoundError):  # another process was faster
            if index.stat().st_mtime_ns < newest:
                index.unlink()
