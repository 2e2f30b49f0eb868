"""What a file of tensors is, told without reading its tensors."""

from __future__ import annotations

import hashlib
from pathlib import Path

from safetensors import SafetensorError, safe_open


def format_of(path: Path) -> str | None:
    """What a file says that it holds, going by its header alone; None where it says nothing, or is no such file."""
    try:
        with safe_open(path, "numpy") as file:
            return (file.metadata() or {}).get("format")
    except (OSError, SafetensorError):
        return None


def digest_of(path: Path) -> str:
    """Twelve hex digits of SHA-256 over a whole file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()[:12]
