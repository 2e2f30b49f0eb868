"""Fixtures that several test modules share: the data beside the repository, the shipped model, the sample."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import soundfile
from hypothesis import settings
from numpy.typing import NDArray

from models.checkpoint import load_checkpoint, shipped_path
from models.network import Network

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"

settings.register_profile("house", deadline=None)  # a busy machine is no failure
settings.load_profile("house")


def _beside(name: str) -> Path:
    """`../shared/<name>`; where it is absent the test is skipped, or fails if `DELTASPOT_REQUIRE_SHARED=1`."""
    folder = SHARED / name
    if not folder.is_dir():
        reason = f"needs recordings in {folder}, which are not part of the repository"
        if os.environ.get("DELTASPOT_REQUIRE_SHARED") == "1":
            pytest.fail(reason)
        pytest.skip(reason)
    return folder


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Directory of the public recordings (tar archives of clips, noise, sentences)."""
    return _beside("data")


@pytest.fixture(scope="session")
def shared_models() -> Path:
    """Directory of the published KWT-1."""
    return _beside("models")


@pytest.fixture(scope="session")
def network() -> Network:
    """The shipped model, compiled."""
    compiled = Network(load_checkpoint(shipped_path()))
    compiled.warm_up()
    return compiled


@pytest.fixture(scope="session")
def spoken() -> NDArray[np.int16]:
    """The sample recording: ten keywords and three other words, 16 kHz."""
    samples, _ = soundfile.read(ROOT / "client" / "samples" / "commands.flac", dtype="int16")
    return samples
