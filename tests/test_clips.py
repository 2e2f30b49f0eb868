"""Clips: what bounds the work that a stranger's upload may ask for."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from service import clips
from service.protocol import TooLong


def test_decoding_has_a_limit_that_only_decoding_uses_up(monkeypatch: pytest.MonkeyPatch) -> None:
    now = itertools.count()  # each look at the clock is a second later: a block takes one to decode
    monkeypatch.setattr(clips, "clock", lambda: next(now))
    blocks = [np.full(1, number, np.float32) for number in range(5)]
    patient = clips.within(5.0, iter(blocks))
    heard = [block for block in patient if next(now)]  # and using it takes another
    np.testing.assert_array_equal(heard, blocks)
    with pytest.raises(TooLong, match="more than 4 s"):
        list(clips.within(4.0, iter(blocks)))
