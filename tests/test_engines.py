"""Engines are chosen by name, refuse what they cannot do, and need no more than what is installed."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from models.checkpoint import load_checkpoint, shipped_path
from models.engines import AnyNetwork, EngineError, make_network, second_of_silence
from models.network import Network

ROOT = Path(__file__).resolve().parent.parent


def test_kernels_stay_on_the_processor() -> None:
    with pytest.raises(EngineError, match="kernels run on cpu only"):
        make_network(load_checkpoint(shipped_path()), "kernels", "cuda")


def test_device_that_is_not_there_is_refused_with_those_that_are() -> None:
    pytest.importorskip("torch")
    with pytest.raises(EngineError, match="no device 'cuda:99': torch finds cpu.* here"):
        make_network(load_checkpoint(shipped_path()), "torch", "cuda:99")


def test_without_torch_its_engine_says_how_to_get_it() -> None:
    code = "import sys; sys.modules['torch'] = None\n"
    code += "from service.cli import main; sys.argv = ['deltaspot', 'serve', '--engine', 'torch']; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert (
        done.stderr.splitlines()[-1]
        == 'deltaspot: torch is not installed; in the checkout, pip install -e ".[train]" brings it'
    )


def torch_engine() -> AnyNetwork:
    pytest.importorskip("torch")
    return make_network(load_checkpoint(shipped_path()), "torch")


@pytest.mark.parametrize("make", [lambda: Network(load_checkpoint(shipped_path())), torch_engine])
def test_batch_that_does_not_fit_is_refused(make: Callable[[], AnyNetwork]) -> None:
    network = make()
    cache, frames = network.new_cache(2), second_of_silence(network.config)
    n = len(frames)
    for rows, counts in [([0], [n + 1]), ([0], [n - 1]), ([0, 1], [n]), ([0, 1], [n + 1, -1]), ([0, 1], None)]:
        with pytest.raises(ValueError, match=f"how many of {n} tokens"):
            network.step(cache, np.array(rows), frames, None if counts is None else np.array(counts))
    with pytest.raises(ValueError, match="frames must be"):
        network.step(cache, np.array([0]), frames[..., 1:], np.array([n]))
    assert not cache.tokens.any()
    network.step(cache, np.arange(2), frames, np.array([n, 0]))
    assert cache.tokens.tolist() == [n, 0]


@pytest.mark.parametrize("make", [lambda: Network(load_checkpoint(shipped_path())), torch_engine])
def test_rows_and_points_that_are_not_there_are_refused(make: Callable[[], AnyNetwork]) -> None:
    network = make()
    cache, frames = network.new_cache(2), second_of_silence(network.config)[:2]
    for rows in ([0, 2], [-1, 0], [1, 1], [2**40, 0]):
        with pytest.raises(ValueError, match="rows must be different ones of the cache's 2"):
            network.step(cache, np.array(rows), frames)
    for point in (len(network.points), -1):
        cache.configure(1, point)
        with pytest.raises(ValueError, match=f"points must be among the network's {len(network.points)}"):
            network.step(cache, np.arange(2), frames)
    assert not cache.tokens.any()
    nobody = np.zeros(0, np.int64)
    assert network.step(cache, nobody, frames[:0], nobody).shape == (0, len(network.config.labels))
