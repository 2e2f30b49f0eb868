"""Nobody runs yesterday's kernels: what is compiled on disk goes when a file that it inlines changes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

INNER = """
from numba import njit

@njit(cache=True, forceinline=True)
def inner():
    return {}
"""
OUTER = """
from numba import njit
import inner
from models.stale import forget_stale

@njit(cache=True)
def outer():
    return inner.inner()

forget_stale(outer, inner.__file__)
print(outer(), sum(outer.stats.cache_hits.values()))
"""


def run(folder: Path, *command: str, **environment: str) -> str:
    """What Python prints, which shall read every source anew."""
    path = os.pathsep.join((str(ROOT), str(folder)))
    environment = {**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1", **environment}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout


def test_what_is_inlined_is_renewed_and_the_rest_is_kept(tmp_path: Path) -> None:
    (tmp_path / "outer.py").write_text(OUTER)
    (tmp_path / "inner.py").write_text(INNER.format(1))
    assert run(tmp_path, "outer.py").split() == ["1", "0"]
    assert run(tmp_path, "outer.py").split() == ["1", "1"]
    (tmp_path / "inner.py").write_text(INNER.format(2))
    assert run(tmp_path, "outer.py").split() == ["2", "0"]


@pytest.mark.parametrize(
    ("module", "kernel"),
    [("models.step", "step"), ("models.folded_step", "folded_step"), ("models.spectrum", "log_mel")],
)
def test_ours_are_watched(tmp_path: Path, module: str, kernel: str) -> None:
    ask = f"import {module}; print({module}.{kernel}.stats.cache_path)"
    kept, stale = (Path(run(tmp_path, "-c", ask, NUMBA_CACHE_DIR=str(tmp_path)).strip()) / f"{n}.nbi" for n in "ab")
    kept.parent.mkdir(exist_ok=True)
    kept.touch()
    stale.touch()
    changed = (ROOT / "models" / "lanes.py").stat().st_mtime
    os.utime(stale, (changed - 1, changed - 1))
    run(tmp_path, "-c", ask, NUMBA_CACHE_DIR=str(tmp_path))
    assert kept.exists()
    assert not stale.exists()
