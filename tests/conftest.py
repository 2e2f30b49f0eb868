"""Fixtures that several test modules share: the data beside the repository."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
SHARED = ROOT.parent / "shared"


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
