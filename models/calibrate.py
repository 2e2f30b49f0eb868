"""Thresholds for a target of false alarms per hour, from labelled streams.

What is held to the target are unprovoked false alarms, which happen while no keyword is being said, per hour of such
time: how often one keyword is taken for another depends on how much people speak to the machine, not on the hours. A
substitution costs as much as a miss.

On a stream silence is the rule, while in training it is one label of many. So it may gain in log-odds before anything
is decided: noises that sound like a keyword mostly sound a little like silence as well, and keywords do not.

For one choice of these odds, smoothing window and patience every utterance has a score, the highest threshold at
which it would still be detected, and so has everything that could become a false alarm. Misses and false alarms are
then sums of steps over a keyword's threshold. The steps are softened (a few recordings stand for many like them), and
a share of all keywords' sums is lent to each, so that a keyword without errors in an hour of audio is not trusted for
ever.

The thresholds minimise misses + substitutions + price * false alarms, each keyword for itself; the price is raised
until the target holds. At last the detector itself runs over the streams, and all thresholds move together until what
it does meets the target. Knows no detector: it is handed in, as in `models.evaluate_streams`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.config import SILENCE, ModelConfig
from models.data import DataError
from models.evaluate_streams import (
    PATIENCE_SAMPLES,
    Detect,
    Heard,
    Tally,
    covered,
    decided_at,
    expit,
    logit,
    shifted,
    total,
)
from models.features import Array
from models.streams import SAMPLE_RATE, Stream

GRID = np.arange(-1.4, 6.0, 0.05)
"""Candidate thresholds, on the logit scale."""
SOFTNESS = 0.1
"""Width of a softened step, on the logit scale."""
FLOOR = 0.1
"""Smoothed posteriors below this are no candidates for anything."""
LAXEST, STRICTEST = -0.6, 5.0
"""Least and largest shift of all thresholds that are tried, on the logit scale."""
STEPS = (0.4, 0.1)
CHOOSING = 4.0
"""Multiple of the target at which smoothing and silence's odds are chosen as well, by the errors at both: at the target
itself a handful of false alarms decides."""
LENIENT = (1.0, 2.0, 4.0, 8.0)
"""Multiples of the target, see `events`, for which thresholds are balanced before all of them move together to meet it:
a handful of false alarms says little about which keyword owes them, more of them say more."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What to calibrate for, and which smoothing and log-odds for silence to try. Lengths in tokens.

    false_alarms_per_hour: unprovoked ones, per hour in which no keyword is being said.
    """

    false_alarms_per_hour: float = 0.5
    latency_ms: float = 230.0
    windows: tuple[int, ...] = (11, 14, 17, 20, 24)
    silences: tuple[float, ...] = (0.0, 1.5, 3.0)
    patiences: tuple[int, ...] = (1,)
    margin: float = 0.1
    refractory_ms: int = 600
    lent: float = 0.1
    """Share of all keywords' sums that is lent to each; 0 for what suits these recordings and perhaps no others."""


@dataclass(frozen=True, slots=True)
class Scores:
    """One keyword's scores, on the logit scale: of its utterances, of what it could replace, of its false alarms."""

    spoken: NDArray[np.float64]
    swaps: NDArray[np.float64]
    alarms: NDArray[np.float64]


def calibrate(
    heard: Sequence[Heard], detect: Detect, config: ModelConfig, goal: Goal, before: Mapping[str, Any] | None = None
) -> tuple[dict[str, Any], Tally]:
    """Choose window, patience and every keyword's threshold.

    Args:
        heard: labelled streams and their posteriors; streams without labels hold no keyword.
        detect: calibration and posteriors -> detections.
        config: of the network that made the posteriors.
        goal: what to aim at.
        before: an earlier calibration: keywords that are never said keep its rules. Those that it does not know get
            a threshold as strict as the strictest of those that are said.

    Returns:
        The calibration, as a checkpoint keeps it, and what the detector does with it on these streams.

    Raises:
        DataError: where no keyword is said.
    """
    said = words_said((h.stream for h in heard), config)
    known = (before or {}).get("keywords", {})
    kept = {word: known[word] for word in config.keywords if word in known and word not in said}
    exposed = sum(h.stream.hours - covered(h.stream, config.keywords) for h in heard)
    lax = replace(goal, false_alarms_per_hour=events(CHOOSING, goal, exposed) / exposed) if exposed else goal
    shapes = {
        shape: gather(heard, *shape, config, goal) for shape in product(goal.windows, goal.patiences, goal.silences)
    }
    for scores in shapes.values():
        for word in kept:
            del scores[word]  # it has no part in what is allowed

    @cache
    def settled(shape: tuple[int, int, float], factor: float, aim: Goal) -> tuple[dict[str, Any], Tally]:
        thresholds = wary_of_unsaid(optimise(shapes[shape], events(factor, goal, exposed), goal.lent), said)
        calibration = compose(thresholds, *shape, goal)
        return settle(heard, calibration, kept, detect, config, aim)

    def losses(shape: tuple[int, int, float]) -> tuple[float, ...]:
        aims = {1.0: goal, CHOOSING: lax}
        each = [_loss(settled(shape, factor, aim)[1], aim, kept) for factor, aim in aims.items()]
        return tuple(map(sum, zip(*each, strict=True)))

    chosen = min(shapes, key=losses)
    return min((settled(chosen, factor, goal) for factor in LENIENT), key=lambda found: _loss(found[1], goal, kept))


def words_said(streams: Iterable[Stream], config: ModelConfig) -> set[str]:
    """Words that are said in streams.

    Raises:
        DataError: where no keyword is.
    """
    said = {utterance.word for stream in streams for utterance in stream.utterances}
    if said.isdisjoint(config.keywords):
        raise DataError("no keyword is said in these recordings: thresholds can be chosen only where some are")
    return said


def events(factor: float, goal: Goal, exposed: float) -> float:
    """False alarms in a multiple of the target in `exposed` hours; as many as the factor itself where that is more.

    In minutes of recordings the target allows less than one, and by that no keyword can be told from another.
    """
    return max(factor * goal.false_alarms_per_hour * exposed, factor)


def wary_of_unsaid(thresholds: Mapping[str, float], said: Collection[str]) -> dict[str, float]:
    """Thresholds, those of keywords that nobody said at least as strict as all others: nothing speaks for lax ones."""
    strictest = max(threshold for word, threshold in thresholds.items() if word in said)
    return {word: value if word in said else max(value, strictest) for word, value in thresholds.items()}


def _loss(outcome: Tally, goal: Goal, kept: Collection[str]) -> tuple[float, float, float]:
    """Misses among what meets the target and is early enough; what is late comes after that, the earliest first."""
    late = float(np.median(outcome.latencies)) if outcome.latencies else 0.0
    errors = outcome.missed.total() + outcome.substitutions
    return not met(outcome, goal, kept), max(0.0, late - goal.latency_ms), errors


def compose(thresholds: Mapping[str, float], window: int, patience: int, silence: float, goal: Goal) -> dict[str, Any]:
    """A calibration in the form that a checkpoint keeps."""
    return {
        "window_tokens": window,
        "silence": silence,
        "margin": goal.margin,
        "refractory_ms": goal.refractory_ms,
        "keywords": {word: {"threshold": threshold, "patience": patience} for word, threshold in thresholds.items()},
    }


def settle(
    heard: Sequence[Heard],
    calibration: dict[str, Any],
    kept: Mapping[str, Any],
    detect: Detect,
    config: ModelConfig,
    goal: Goal,
) -> tuple[dict[str, Any], Tally]:
    """The laxest common shift of all thresholds but the `kept` rules' at which the detector itself meets the target.

    What the kept rules fire at is left out: no shift of the others would change it. Stricter thresholds do not always
    mean fewer false alarms (a word may be heard twice when it flickers around a higher one), so shifts are tried one
    after the other, first by large steps and then by small ones.
    """
    offset, moved, outcome = LAXEST, calibration, Tally()
    for step in STEPS:
        while True:
            moved = shifted(calibration, offset)
            rules = moved["keywords"] | kept
            moved["keywords"] = {word: rules[word] for word in config.keywords}
            outcome, _ = total(heard, moved, detect, config)
            if met(outcome, goal, kept) or offset > STRICTEST:
                break
            offset += step
        offset = max(LAXEST, offset - STEPS[0] + STEPS[1])
    return moved, outcome


def met(outcome: Tally, goal: Goal, kept: Collection[str] = ()) -> bool:
    """Whether there are no more false alarms than the target allows, those of `kept` keywords left out."""
    return outcome.unprovoked_but(kept) <= goal.false_alarms_per_hour * outcome.exposed_hours


def wary(posteriors: Array, silence: float, config: ModelConfig) -> Array:
    """Posteriors (N, K), were silence exp(`silence`) times as likely as in training; silence's own are of no use."""
    return posteriors / (1 + np.expm1(silence) * posteriors[:, [config.labels.index(SILENCE)]])


def smooth(posteriors: Array, window: int, patience: int) -> NDArray[np.float64]:
    """The highest threshold at which each token would fire: (N, K) keyword posteriors -> (N, K).

    The least, over the last `patience` tokens, of the moving average, where no other keyword has a larger one.
    """
    sums = np.cumsum(np.pad(posteriors, ((window, 0), (0, 0))), axis=0, dtype=np.float64)
    average = (sums[window:] - sums[:-window]) / window
    average[average < average.max(axis=1, keepdims=True)] = 0.0
    runs = np.lib.stride_tricks.sliding_window_view(np.pad(average, ((patience - 1, 0), (0, 0))), patience, axis=0)
    return runs.min(axis=-1)


def gather(
    heard: Sequence[Heard], window: int, patience: int, silence: float, config: ModelConfig, goal: Goal
) -> dict[str, Scores]:
    """Scores of every keyword over all streams."""
    columns = [config.labels.index(word) for word in config.keywords]
    refractory = max(1, goal.refractory_ms * SAMPLE_RATE // 1000 // config.token_samples)
    found: dict[str, tuple[list[float], list[float], list[float]]] = {word: ([], [], []) for word in config.keywords}
    for one in heard:
        levels = smooth(wary(one.posteriors, silence, config)[:, columns], window, patience)
        places = decided_at(0, config) + np.arange(len(levels)) * config.token_samples
        spans = {
            u: slice(*np.searchsorted(places, (u.start, u.end + PATIENCE_SAMPLES)))
            for u in one.stream.utterances
            if u.word in found
        }
        stops = np.array([span.stop for span in spans.values()], np.int64)
        for (word, (spoken, swaps, alarms)), level in zip(found.items(), levels.T, strict=True):
            said = np.zeros(len(level), bool)
            for (utterance, span), end in zip(spans.items(), fall(level, stops), strict=True):
                over = slice(span.start, end)  # what was heard in a word's place may last longer
                said[over] = True
                if utterance.word == word:
                    spoken.append(level[span].max(initial=0.0))
                    level[over] = 0.0
            swaps.extend(peaks(np.where(said, level, 0.0), refractory))
            alarms.extend(peaks(np.where(said, 0.0, level), refractory))
    return {word: Scores(*(logit(np.array(scores)) for scores in lists)) for word, lists in found.items()}


def fall(level: NDArray[np.float64], places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The first place, from each of `places` on, at which the level is low: until then a detection is not over."""
    low = np.append(np.flatnonzero(level <= FLOOR), len(level))
    return low[np.searchsorted(low, places)]


def peaks(level: NDArray[np.float64], distance: int) -> list[float]:
    """Heights of the peaks above `FLOOR`, highest first, no two within `distance` tokens."""
    places = np.flatnonzero(level > FLOOR)
    free = np.ones(len(level), bool)
    heights = []
    for place in places[np.argsort(-level[places], kind="stable")]:
        if free[place]:
            heights.append(float(level[place]))
            free[max(0, place - distance) : place + distance + 1] = False
    return heights


def optimise(scores: Mapping[str, Scores], allowed: float, lent: float) -> dict[str, float]:
    """Each keyword's threshold for at most `allowed` expected false alarms in all; see `Goal.lent`."""
    errors = [_steps(GRID[:, None] - s.spoken) + _steps(s.swaps - GRID[:, None]) for s in scores.values()]
    misses = _lend(np.stack(errors), lent)
    alarms = _lend(np.stack([_steps(s.alarms - GRID[:, None]) for s in scores.values()]), lent)
    rows = np.arange(len(scores))
    low, high = -6.0, 6.0
    for _ in range(40):
        price = (low + high) / 2
        chosen = (misses + 10.0**price * alarms).argmin(axis=1)
        low, high = (low, price) if alarms[rows, chosen].sum() <= allowed else (price, high)
    chosen = (misses + 10.0**high * alarms).argmin(axis=1)
    return dict(zip(scores, expit(GRID[chosen]).tolist(), strict=True))


def _steps(distance: NDArray[np.float64]) -> NDArray[np.float64]:
    """How many of each row's distances are positive, softened: (G, n) -> (G,)."""
    return expit(distance / SOFTNESS).sum(axis=1)


def _lend(sums: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """Lend a share of all rows to each, and keep the total: (K, G)."""
    return (1 - share) * sums + share * sums.mean(axis=0)
