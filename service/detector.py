"""Posteriors -> detections: one event per utterance.

For each keyword, on the clock of tokens:

    p_t = its posterior, were silence exp(`silence`) times as likely as the network was trained to think
    s_t = mean of its last `window` p_t, or of fewer if its rule says so
    hit:      s_t >= threshold, and no keyword has a larger s_t
    fires:    `patience` consecutive hits, while armed and not within `refractory` tokens of the last time it fired
    disarmed: once it fired; armed again when s_t < threshold - margin, or half the threshold if that is more
    span:     the word itself, at places told by where s_t last rose above that level

Knows no model, no wall clock and no socket: the same posteriors give the same detections however fast they come.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

Array = NDArray[np.float32]
Averages = NDArray[np.float64]
Places = NDArray[np.int64]

NEVER: Final = -(10**9)
SILENCE: Final = "_silence_"


@dataclass(frozen=True, slots=True)
class Rule:
    """How one keyword is detected.

    Attributes:
        threshold: smoothed posterior that counts as a hit, 0..1.
        patience: consecutive hits that fire, in tokens.
        refractory: tokens after firing in which it does not fire again.
        window: tokens in its moving average, if fewer than the detector's.
        span: where such words begin and end, in tokens from where the smoothed posterior begins to rise.
        alone: its posterior is of its own, not one of several that add up to 1 with silence's.
    """

    threshold: float
    patience: int = 1
    refractory: int = 0
    window: int | None = None
    span: tuple[float, float] = (0.0, 0.0)
    alone: bool = False


@dataclass(frozen=True, slots=True)
class Hit:
    """A keyword fired.

    Attributes:
        keyword: the label.
        token: the token that decided, counted from the start of the detector's life.
        start: where the word seems to begin, on the clock of tokens.
        end: where it seems to end, which is not after `token`.
        score: highest smoothed posterior from its rise until now, 0..1.
    """

    keyword: str
    token: int
    start: float
    end: float
    score: float


class Detector:
    """One stream's decisions.

    Attributes:
        token: tokens judged so far.
        near_misses: keyword -> times that it rose close to its threshold, to where it is armed again, and fell.
        suppressed: reason ("patience", "refractory") -> runs of hits that ended without a detection. Whoever tells of
            these clears them.
    """

    def __init__(
        self, labels: Sequence[str], rules: Mapping[str, Rule], window: int, margin: float, silence: float = 0.0
    ) -> None:
        """Detect `rules`' keywords.

        Args:
            labels: names of the posteriors' columns.
            rules: keyword -> rule; keywords that are not here are not detected.
            window: tokens in the moving average, at least 1.
            margin: how far below its threshold a keyword is armed again; where half of the threshold is nearer, there.
            silence: log-odds that silence gains: it is the rule on a stream, and one label of many in training.
        """
        self.labels, self.window, self.margin = tuple(labels), window, margin
        self._silence = self.labels.index(SILENCE) if silence else 0
        self._excess = math.expm1(silence)
        self.near_misses: Counter[str] = Counter()
        self.suppressed: Counter[str] = Counter()
        self.token = 0
        self._past = np.zeros((window - 1, len(self.labels)), np.float32)
        self.configure(rules)

    def configure(self, rules: Mapping[str, Rule]) -> None:
        """Change the rules; what was heard so far stays."""
        before = {word.name: word for word in getattr(self, "_words", [])}
        self.rules = dict(rules)
        self._words = [
            replace(
                before.get(name) or _Word(name, rule),
                rule=rule,
                low=max(rule.threshold - self.margin, rule.threshold / 2),
            )
            for name, rule in rules.items()
        ]
        self._columns = np.array([self.labels.index(name) for name in rules], np.int64)
        lengths = [min(rule.window or self.window, self.window) for rule in rules.values()]
        self._lengths = np.array(lengths, np.int64)
        self._excesses = np.array([0.0 if rule.alone else self._excess for rule in rules.values()])
        self._lowest = min((word.low for word in self._words), default=2.0)
        self._at_rest = False

    def reset(self) -> None:
        """Forget what was heard; tokens go on counting."""
        self._past[:] = 0
        self._words = []
        self.configure(self.rules)

    def hear(self, posteriors: Array) -> None:
        """Take posteriors (N, K) into the average and decide nothing."""
        self._average(posteriors)
        self.token += len(posteriors)

    def feed(self, posteriors: Array) -> Iterator[Hit]:
        """Judge the next tokens' posteriors (N, K); yield what fires, with `state()` as of that token."""
        averages, highest = self._average(posteriors)
        if highest < self._lowest and self._at_rest:
            self.token += len(posteriors)  # by far the most common case
            return
        for row in averages.tolist():
            yield from self._step(row)
        self._at_rest = all(word.still for word in self._words)

    def _average(self, posteriors: Array) -> tuple[Averages, float]:
        """Means of the next posteriors (N, K) and their past over the window, (N, keywords), and the highest one."""
        averages = np.empty((len(posteriors), len(self._columns)))
        highest = _moving_average(
            self._past, posteriors, self._columns, self._lengths, self._silence, self._excesses, averages
        )
        return averages, highest

    def _step(self, row: list[float]) -> list[Hit]:
        top = max(row, default=0.0)
        fired = []
        for word, score in zip(self._words, row, strict=True):
            if score < word.low:
                if word.rise is not None or not word.armed:
                    self._fall(word)
                continue
            rule = word.rule
            if word.rise is None:
                word.rise, word.peak = self.token, 0.0
            word.peak = max(word.peak, score)
            if score >= rule.threshold and score == top:
                word.hits += 1
                if word.hits >= rule.patience and self._may_fire(word, rule):
                    word.fired, word.armed = self.token, False
                    fired.append(word.hit(self.token, word.rise))
            elif word.armed:
                self._lapse(word)
        self.token += 1
        return fired

    def _may_fire(self, word: _Word, rule: Rule) -> bool:
        if word.armed and self.token - word.fired > rule.refractory:
            return True
        if word.armed:
            word.held = "refractory"
        return False

    def _lapse(self, word: _Word) -> None:
        """A run of hits ended before it fired."""
        if word.hits:
            self.suppressed[word.held] += 1
        word.hits, word.held = 0, "patience"

    def _fall(self, word: _Word) -> None:
        """The keyword is below its threshold by the margin: it is over, and armed again."""
        if word.armed:
            if not word.hits:
                self.near_misses[word.name] += 1
            self._lapse(word)
        word.rise, word.hits, word.armed, word.held = None, 0, True, "patience"

    def state(self) -> dict[str, Any]:
        """What a detector elsewhere needs to go on: only words that are not at rest, as plain types."""
        return {word.name: word.state(self.token) for word in self._words if word.matters(self.token)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take over `state()` of another detector, as of this one's present token."""
        for word in self._words:
            if word.name in state:
                word.restore(state[word.name], self.token)
        self._at_rest = False


REMEMBERED: Final = 4_000
"""Tokens after which a word's last detection is forgotten by `state`, if its refractory time is over, too."""


@dataclass(slots=True)
class _Word:
    """What one keyword remembers; tokens are the detector's, `low` is where it is armed again."""

    name: str
    rule: Rule
    low: float = 0.0
    rise: int | None = None
    peak: float = 0.0
    hits: int = 0
    armed: bool = True
    fired: int = NEVER
    held: str = "patience"

    @property
    def still(self) -> bool:
        return self.rise is None and self.armed

    def matters(self, now: int) -> bool:
        return not self.still or now - self.fired <= max(REMEMBERED, self.rule.refractory)

    def hit(self, now: int, rise: int) -> Hit:
        start, end = (min(rise + offset, float(now)) for offset in self.rule.span)
        return Hit(self.name, now, start, end, self.peak)

    def state(self, now: int) -> list[float | int | None]:
        risen = None if self.rise is None else now - self.rise
        since = None if self.fired == NEVER else now - self.fired
        return [risen, round(self.peak, 4), self.hits, int(self.armed), since]

    def restore(self, values: Sequence[Any], now: int) -> None:
        risen, self.peak, self.hits, armed, since = values
        self.rise = None if risen is None else now - risen
        self.armed = bool(armed)
        self.fired = NEVER if since is None else now - since


@njit(cache=True)  # type: ignore[untyped-decorator]
def _moving_average(
    past: Array,
    posteriors: Array,
    columns: Places,
    lengths: Places,
    silence: int,
    excesses: Averages,
    averages: Averages,
) -> float:
    """Means over `lengths` (C,) newest tokens, of some columns (C,), into `averages` (N, C); return the highest.

    `past` (window - 1, K) is what came before the new posteriors (N, K), and afterwards what comes before the next.
    A posterior p is one of p / (1 + excess * silence's), which is Bayes' rule for another prior of silence.
    """
    before, highest = len(past), 0.0
    for token in range(len(posteriors)):
        for place in range(len(columns)):
            column, total = columns[place], 0.0
            for at in range(token + before + 1 - lengths[place], token + before + 1):
                if at < before:
                    total += past[at, column] / (1.0 + excesses[place] * past[at, silence])
                else:
                    total += posteriors[at - before, column] / (
                        1.0 + excesses[place] * posteriors[at - before, silence]
                    )
            averages[token, place] = total / lengths[place]
            highest = max(highest, averages[token, place])
    for at in range(before):
        source = at + len(posteriors)
        past[at] = past[source] if source < before else posteriors[source - before]
    return highest
