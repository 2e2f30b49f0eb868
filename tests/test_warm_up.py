"""A server that says it is ready compiles nothing more: the first stream's first second would have to wait for it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

FIRST_STREAM = """
import sys
import numpy as np
from numba.core.dispatcher import Dispatcher
from models.checkpoint import load_checkpoint, shipped_path
from models.engines import make_network
from models.offline import judge

def compiled():
    ours = [module for name, module in sys.modules.items() if name.startswith("models.")]
    found = {id(thing): thing for module in ours for thing in vars(module).values() if isinstance(thing, Dispatcher)}
    return sorted((d.__name__, str(signature)) for d in found.values() for signature in d.signatures)

network = make_network(load_checkpoint(shipped_path()), sys.argv[1])
cold = compiled()
network.warm_up()
warm = compiled()
judge(network, [np.ones(16_000, np.float32), np.ones(8_000, np.float32)])
assert len(warm) > len(cold)
assert compiled() == warm, set(compiled()) - set(warm)
"""


@pytest.mark.parametrize("engine", ["kernels", "torch"])
def test_after_warm_up_a_stream_compiles_nothing(engine):
    if engine == "torch":
        pytest.importorskip("torch")
    done = subprocess.run(
        [sys.executable, "-c", FIRST_STREAM, engine], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
