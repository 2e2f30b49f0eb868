"""Shedding of precision: a queue that stays sheds it, a hiccup does not, and it comes back."""

from __future__ import annotations

import pytest

from service.shedding import COARSEST, EVERY_S, Shedding

LAG_S = 0.5
LONG, SHORT = LAG_S / 10, LAG_S / 20


def after(waits: list[list[float]], shedding: Shedding | None = None) -> Shedding:
    """What becomes of the factor when turns wait like this between one look and the next."""
    shedding = shedding or Shedding(LAG_S, 0.0)
    began = shedding._looked_at
    for look, between in enumerate(waits, start=1):
        for wait in between:
            shedding.waited(wait)
        assert shedding.look(began + look * EVERY_S * 1.001) == max(between, default=0.0)
    return shedding


def test_a_queue_that_stays_sheds_all_within_a_third_of_a_second() -> None:
    assert after([[LONG, 2 * LONG]]).scale > 1.0
    assert after([[LONG, 2 * LONG]] * int(1 / 3 / EVERY_S)).scale == COARSEST


def test_a_hiccup_sheds_nothing() -> None:
    assert after([[SHORT, 10 * LONG, SHORT]] * 20).scale == 1.0


def test_what_waits_between_the_two_limits_changes_nothing() -> None:
    shed = after([[LONG]])
    before = shed.scale
    assert after([[SHORT, LONG]], shed).scale == before


@pytest.mark.parametrize("waits", [[SHORT], []], ids=["short waits", "nobody"])
def test_precision_comes_back(waits: list[float]) -> None:
    shed = after([[LONG]] * 10)
    assert after([waits], shed).scale < COARSEST
    assert after([waits] * 30, shed).scale == 1.0


def test_looks_have_time_between_them() -> None:
    shedding = Shedding(LAG_S, 0.0)
    shedding.waited(LONG)
    assert shedding.look(EVERY_S / 2) is None
    assert shedding.scale == 1.0
