"""Enrolment is judged on speakers and words that it did not see, and a word where it is said."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import PurePosixPath

import numpy as np
import pytest

from models.background import SETTLE, Embedded, fit
from models.bounds import binomial_bounds, poisson_bounds
from models.data import Item
from models.evaluate_enroll import OFFSETS, Enrolment, Followed, best, halves, judge_word, point_report
from models.evaluate_streams import Tally
from models.network import Network
from models.recordings import COPIES
from models.streams import Stream, Utterance
from service.commands.evaluate_enroll import table
from service.commands.replay import detector


def test_speakers_are_halved() -> None:
    items = [Item(PurePosixPath(f"bed/{i:08x}_nohash_{take}.wav"), b"") for i in range(50) for take in (0, 1)]
    items.append(Item(PurePosixPath("esc10/a.wav"), b""))
    first, second = halves(items)
    speakers = [{item.speaker for item in half if item.word == "bed"} for half in (first, second)]
    assert not speakers[0] & speakers[1]
    assert min(map(len, speakers)) > 10
    assert items[-1] in second


def test_best_is_the_laxest_threshold_that_stays_allowed() -> None:
    def alarms(*counts: int) -> list[Tally]:
        tallies = [Tally(hours=1.0) for _ in counts]
        for tally, count in zip(tallies, counts, strict=True):
            tally.false_alarms["x"] = count
        return tallies

    assert best(alarms(5, 1, 3, 1, 0)) == 3
    assert best(alarms(0, 0)) == 0
    assert best(alarms(5, 4)) is None
    assert best(alarms(0, 4)) is None
    assert 0.0 in OFFSETS


def test_a_word_is_judged_where_it_is_said(network: Network) -> None:
    """Of made-up embeddings: a word at its prototype is heard, running speech raises no alarm, unless it says it."""
    random = np.random.default_rng(0)
    c = network.config.channels
    centres = random.normal(0, 2, (40, c))
    vectors = centres[:, None, None] + random.normal(size=(40, 6, len(SETTLE), c))
    known = fit(
        Embedded(vectors.reshape(-1, len(SETTLE), c), np.repeat(np.arange(40).astype(str), 6), vectors.reshape(-1, c)),
        random.normal(0, 2, (4_000, c)),
        network.config,
    )
    token, word = network.config.token_samples, random.normal(0, 2, c)
    enrolment = Enrolment(network, known, [], "dense")
    enrolment.recordings = {"bed": list(word + random.normal(0, 0.3, (5, COPIES, len(SETTLE), c)))}

    def stream(name: str, places: Sequence[int], named: Sequence[str]) -> Followed:
        """A minute in which something close to the word is heard at some tokens, for as long as a window lasts."""
        tokens = random.normal(0, 2, (2_000, c))
        for place in places:
            tokens[place : place + 20] = word + random.normal(0, 0.5, (20, c))
        said = tuple(
            Utterance((place - 15) * token, place * token, name) for place, name in zip(places, named, strict=False)
        )
        return Followed(Stream(name, np.zeros(2_000 * token, np.float32), said), tokens.astype(np.float32))

    places = (100, 600, 1_100, 1_600)
    quiet = {
        "bed": [stream("bed", places, ["bed"] * 4)],
        "speech": [stream("speech", (), ())],
        "mixed": [stream("mixed", places, ["cat", "bed", "bed", "bed"])],
    }
    heard = judge_word(enrolment, "bed", 3, quiet, detector, 2)
    assert (heard["usual"]["keywords"], heard["usual"]["missed"], heard["usual"]["false_alarms"]) == (4, 0, 0)
    assert (heard["best"]["missed"], heard["mixed"]["keywords"], heard["mixed"]["false_alarms"]) == (0, 3, 1)
    loud = judge_word(enrolment, "bed", 3, {**quiet, "speech": [stream("speech", places, ())]}, detector, 1)
    assert loud["usual"]["false_alarms"] == 4
    assert loud["best"] is None, "no threshold tells the word from itself"


def test_the_same_streams_heard_again_are_no_more_evidence() -> None:
    """Means over trials, of the hours and words of one, within the bounds of one."""

    def trial(missed: int, alarms: int) -> Tally:
        return Tally(3.0, Counter(x=200), Counter(x=missed), false_alarms=Counter(x=alarms), latencies=[100.0])

    one, three = point_report([trial(20, 2)], 0.0), point_report([trial(20, 2), trial(21, 3), trial(19, 1)], 0.0)
    assert one == three
    assert (one["hours"], one["keywords"], one["missed"], one["miss_rate"], one["false_alarms"]) == (3, 200, 20, 0.1, 2)
    assert one["miss_rate_bounds"] == binomial_bounds(20, 200)
    assert one["false_alarms_per_hour_bounds"] == [bound / 3 for bound in poisson_bounds(2)]
    assert point_report([trial(1, 0), trial(2, 1)], 0.0)["missed"] == 1.5
    assert point_report([Tally()], 0.0)["miss_rate_bounds"] is None


def test_bounds_are_over_speakers_where_these_are_known() -> None:
    """One of ten speakers is never heard, in every trial: another ten may have none of the kind, or three."""
    said = Counter({f"speaker {n}": 20 for n in range(10)})
    deaf = Tally(3.0, Counter(x=200), Counter(x=20), said, Counter({"speaker 0": 20}))
    point = point_report([deaf] * 3, 0.0)
    assert (point["keywords"], point["missed"], point["miss_rate"]) == (200, 20, 0.1)
    assert point["miss_rate_bounds"] == pytest.approx((0.0, 0.3))
    heard = point_report([Tally(3.0, Counter(x=200), said=said)] * 3, 0.0)
    assert heard["miss_rate_bounds"] == binomial_bounds(0, 10), "no miss of ten speakers, however often tried"


def test_the_table_has_one_pass_of_each_word() -> None:
    tally = Tally(3.0, Counter(x=200), Counter(x=20), false_alarms=Counter(x=6))
    at = {name: point_report([tally] * 3, 0.0) for name in ("usual", "best", "mixed")}

    def cells(at: dict) -> list[list[str]]:
        return [list(column.cells) for column in table({5: {"bed": at}}).columns]

    assert cells({**at, "best": None})[6:] == [["-"], ["-"], ["-"], ["2.00"]]
    assert cells(at) == [
        ["5"], ["bed"], ["200"], ["10.0%"], ["6.2%..15.0%"], ["2.00"], ["10.0%"], ["6.2%..15.0%"], ["2.00"], ["2.00"],
    ]  # fmt: skip
