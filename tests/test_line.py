"""The line in front of the engine: who keeps the pace waits for no flood, and nobody waits for ever."""

from __future__ import annotations

from unittest.mock import sentinel

import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.features import Tokens
from service.line import AHEAD_S, BATCH_STREAMS, BATCH_TOKENS, TURN_TOKENS, Line, Pace
from service.slots import Slot, Turn

TOKEN_S = 0.03


def slot(row: int = 0) -> Slot:
    return Slot(sentinel.engine, sentinel.hosted, row, sentinel.listener)


def submit(line: Line, one: Slot, tokens: int, now: float = 0.0) -> None:
    """As the engine does."""
    one.pace.came(tokens * TOKEN_S, now)
    one.jobs.append((Tokens(bytes(4 * tokens), tokens, 1), now))
    line.join(one, now)


def tokens_of(turns: list[Turn]) -> dict[int, int]:
    """Row -> tokens in a batch."""
    assert len({turn.slot.row for turn in turns}) == len(turns), "a slot has one turn in a batch"
    return {turn.slot.row: turn.tokens for turn in turns}


def test_who_keeps_the_pace_waits_for_no_flood() -> None:
    line, crowd, honest = Line(), [slot(row) for row in range(100)], slot(100)
    for one in crowd:
        submit(line, one, 1_000)
    for turn in range(20):
        submit(line, honest, 3, 0.1 * turn)
        batch = tokens_of(line.take(0.1 * turn))
        assert batch[honest.row] == 3
        assert sum(batch.values()) <= BATCH_TOKENS


def test_flood_gets_a_fifth_however_many_keep_the_pace() -> None:
    line, greedy, crowd = Line(), slot(1_000), [slot(row) for row in range(BATCH_STREAMS)]
    submit(line, greedy, 10_000)
    for one in crowd:
        submit(line, one, 4)
    batch = tokens_of(line.take(0.0))
    assert len(batch) == BATCH_STREAMS + 1
    assert batch[greedy.row] == sum(batch.values()) // 5


def test_floods_take_turns() -> None:
    line, crowd = Line(), [slot(row) for row in range(5)]
    for one in crowd:
        submit(line, one, 1_000)
    assert [row for _ in range(10) for row in tokens_of(line.take(0.0))] == [0, 1, 2, 3, 4] * 2


def test_who_fell_behind_through_no_fault_of_theirs_stays_among_the_first() -> None:
    """An overload is the server's: streams of real time that find no room wait, and are seen to wait."""
    line, crowd = Line(), [slot(row) for row in range(100)]
    for now in range(20):
        for one in crowd:
            submit(line, one, 33, float(now))
        line.take(float(now))
    assert line.wait(20.0) > 0
    for one in crowd:
        assert one.pace.ahead(20.0) <= AHEAD_S
    assert set(tokens_of(line.take(20.0)).values()) == {TURN_TOKENS}


def test_waiting_is_counted_for_those_who_keep_the_pace() -> None:
    line, greedy, honest = Line(), slot(0), slot(1)
    submit(line, greedy, 1_000, now=0.0)
    assert line.wait(9.0) == 0.0, "whoever is ahead has only himself to blame"
    assert line.longest(9.0) == 9.0, "but is seen to wait"
    submit(line, honest, 3, now=9.0)
    assert line.wait(9.5) == 0.5


def test_batch_waits_for_others_only_where_that_makes_it_larger() -> None:
    line = Line()
    assert not line.hurried
    submit(line, slot(0), 3)
    assert not line.hurried
    submit(line, slot(1), 1_000)
    assert line.hurried
    crowd = Line()
    for row in range(BATCH_STREAMS):
        submit(crowd, slot(row), 3)
    assert crowd.hurried


def test_pace_is_what_came_less_the_time_it_took() -> None:
    pace = Pace()
    pace.came(2.0, now=100.0)
    assert pace.ahead(100.0) == 2.0
    assert pace.ahead(101.5) == pytest.approx(0.5)
    pace.came(1.0, now=101.5)
    assert pace.ahead(101.5) == pytest.approx(1.5)
    pace.came(1.0, now=200.0)
    assert pace.ahead(200.0) == 1.0, "silence saves nothing up"
    fast = Pace(speed=20.0)
    fast.came(2.0, now=100.0)
    assert fast.ahead(100.05) == pytest.approx(1.0)


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 300)), max_size=60), st.integers(1, 5))
def test_everything_is_taken_once_and_in_order(submitted: list[tuple[int, int]], every: int) -> None:
    line, slots = Line(), [slot(row) for row in range(10)]
    wanted, got = [0] * 10, [0] * 10
    for place, (row, tokens) in enumerate(submitted):
        submit(line, slots[row], tokens, float(place))
        wanted[row] += tokens
        for turn in line.take(float(place)) if place % every == 0 else ():
            got[turn.slot.row] += turn.tokens
    while line:
        for turn in line.take(100.0):
            got[turn.slot.row] += turn.tokens
    assert got == wanted
    assert all(one.queued_at is None for one in slots)
