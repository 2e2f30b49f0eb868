"""What the process's heap gives back. Each case has a process of its own: a heap remembers."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="reads /proc, which is Linux's")

LOOK = """
import resource
from pathlib import Path
from service import heap

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20

"""


def measured(code: str) -> list[float]:
    """Run a script after `LOOK`; return the numbers that it prints."""
    done = subprocess.run([sys.executable, "-c", LOOK + code], capture_output=True, text=True, check=True)
    return [float(word) for word in done.stdout.split()]


def test_trimming_gives_back_what_lies_between_blocks_that_stay() -> None:
    burst = """
before = resident()
kept = [(bytearray(32 * 1024), bytearray(600)) for _ in range(2000)]
kept = [small for _, small in kept]
full = resident()
heap.trim()
print(full - before, resident() - before)
"""
    kept, left = measured(burst)
    assert kept > 40, "glibc gave it back by itself: trimming is not needed any more"
    assert left < 20
