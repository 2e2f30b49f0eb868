"""Tables on standard output, whole where there is no terminal, and the console beside it. Knows no table's contents."""

from __future__ import annotations

from typing import Final

from rich.console import Console, RenderableType

console: Final = Console(stderr=True, markup=False)
"""Where it is told how far a command is, and what it left out; names may have brackets, which are no markup."""
WIDE: Final = 160
"""Columns in a pipe or a file, where nobody's window cuts a table."""


def show(*what: RenderableType) -> None:
    """Print tables and lines, one below the other."""
    console = Console(markup=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDE)
    console.print(*what, sep="\n")
