"""The line in front of the engine: who keeps the pace waits for nobody's backlog, and nobody waits for ever."""

from __future__ import annotations

from unittest.mock import sentinel

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.features import Tokens
from service.line import BATCH_STREAMS, BATCH_TOKENS, TURN_TOKENS, Line
from service.slots import Nobody, Slot, Turn


def slot(row: int = 0) -> Slot:
    return Slot(sentinel.engine, sentinel.hosted, row, Nobody())


def submit(line: Line, one: Slot, tokens: int, now: float = 0.0) -> None:
    one.jobs.append((Tokens(np.zeros(tokens, np.float32), tokens, 1), now))
    line.join(one, now)


def tokens_of(turns: list[Turn]) -> dict[int, int]:
    """Row -> tokens in a batch."""
    assert len({turn.slot.row for turn in turns}) == len(turns), "a slot has one turn in a batch"
    return {turn.slot.row: turn.tokens for turn in turns}


def test_who_keeps_the_pace_waits_for_nobodys_backlog() -> None:
    line, crowd, honest = Line(), [slot(row) for row in range(100)], slot(100)
    for one in crowd:
        submit(line, one, 1_000)
    line.take(0.0)
    for now in range(20):
        submit(line, honest, 3, now)
        batch = tokens_of(line.take(now))
        assert batch[honest.row] == 3
        assert sum(batch.values()) <= BATCH_TOKENS


def test_backlog_gets_a_fifth_however_many_keep_the_pace() -> None:
    line, greedy, crowd = Line(), slot(1_000), [slot(row) for row in range(BATCH_STREAMS)]
    submit(line, greedy, 10_000)
    line.take(0.0)
    before = greedy.backlog
    for one in crowd:
        submit(line, one, 4)
    batch = tokens_of(line.take(0.0))
    assert len(batch) == BATCH_STREAMS + 1
    assert batch[greedy.row] == before - greedy.backlog == sum(batch.values()) // 5


def test_backlogs_take_turns() -> None:
    line, crowd = Line(), [slot(row) for row in range(5)]
    for one in crowd:
        submit(line, one, 1_000)
    line.take(0.0)
    assert [row for _ in range(10) for row in tokens_of(line.take(0.0))] == [0, 1, 2, 3, 4] * 2


def test_few_tokens_too_many_are_no_backlog() -> None:
    line, late, greedy = Line(), slot(0), slot(1)
    crowd = [slot(row) for row in range(2, 2 + BATCH_TOKENS // TURN_TOKENS)]
    submit(line, greedy, 2 * TURN_TOKENS + 1)
    for one in (late, *crowd):
        submit(line, one, TURN_TOKENS + 2)
    line.take(0.0)
    batch = tokens_of(line.take(1.0))
    assert list(batch) == [late.row, *(one.row for one in crowd), greedy.row], "it came before them, and is after them"


def test_waiting_is_counted_for_those_who_keep_the_pace() -> None:
    line, greedy, honest = Line(), slot(0), slot(1)
    submit(line, greedy, 1_000, now=0.0)
    assert line.wait(5.0) == 5.0
    line.take(5.0)
    assert line.wait(9.0) == 0.0, "a backlog is its owner's own doing"
    submit(line, honest, 3, now=9.0)
    assert line.wait(9.5) == 0.5


def test_batch_waits_for_others_only_where_that_makes_it_larger() -> None:
    line, greedy = Line(), slot(0)
    assert not line.hurried
    submit(line, greedy, 3)
    assert not line.hurried
    submit(line, greedy, 1_000)
    line.take(0.0)
    assert line.hurried
    crowd = Line()
    for row in range(BATCH_STREAMS):
        submit(crowd, slot(row), 3)
    assert crowd.hurried


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(1, 300)), max_size=60), st.integers(1, 5))
def test_everything_is_taken_once_and_in_order(submitted: list[tuple[int, int]], every: int) -> None:
    line, slots = Line(), [slot(row) for row in range(10)]
    wanted, got = [0] * 10, [0] * 10
    for place, (row, tokens) in enumerate(submitted):
        submit(line, slots[row], tokens)
        wanted[row] += tokens
        for turn in line.take(0.0) if place % every == 0 else ():
            got[turn.slot.row] += turn.tokens
    while line:
        for turn in line.take(0.0):
            got[turn.slot.row] += turn.tokens
    assert got == wanted
    assert all(one.queued_at is None for one in slots)
