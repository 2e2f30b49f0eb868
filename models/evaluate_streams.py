"""Endless audio: keywords missed against false alarms per hour, and how late a detection comes.

The network runs once over a stream; detectors are then run over its posteriors as often as one likes. What turns
posteriors into detections is handed in (`Detect`), so this module does not know it.

A detection is right if it names a keyword that is being said, from its start until `PATIENCE_MS` after its end, and
is the first to do so. Everything else is a false alarm: another keyword's name in its place (a substitution), the
same one again (a repetition), or, unprovoked, a word that is no keyword, a noise, nothing at all. Where a keyword is
being said nothing can be unprovoked, so the rate of these is one per exposed hour: of all the other time. Latency is
counted from the word's end to the sample that decided; a word recognised before it ended has a negative one.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.bounds import binomial_bounds, clustered_bounds, poisson_bounds
from models.config import ModelConfig
from models.features import Array
from models.network import Network
from models.offline import judge
from models.streams import SAMPLE_RATE, Stream, Utterance

PATIENCE_MS = 750
PATIENCE_SAMPLES = PATIENCE_MS * SAMPLE_RATE // 1000
BATCH = 64


class Hit(Protocol):
    """A detection, as far as it matters here: which keyword, the token that decided, and where the word seems to be."""

    @property
    def keyword(self) -> str:
        """The label."""

    @property
    def token(self) -> int:
        """The token that decided, from 0."""

    @property
    def start(self) -> float:
        """Where the word begins, on the clock of tokens."""

    @property
    def end(self) -> float:
        """Where it ends."""


Calibration = Mapping[str, Any]
Detect = Callable[[Calibration, Array], Sequence[Hit]]
"""Calibration and one stream's posteriors (N, K) -> its detections, in order."""


@dataclass(frozen=True, slots=True)
class Heard:
    """A stream and what the network said to it: posteriors (N, K)."""

    stream: Stream
    posteriors: Array


@dataclass
class Tally:
    """What came of a set of streams, times in ms.

    Attributes:
        provoked: false alarms that were substitutions or repetitions, by the keyword that fired.
        said, unheard: keywords, and those of them that were missed, by who said them.
        covered: hours of them in which keywords were being said: a false alarm there is never unprovoked.
        off: keyword -> how far start and end of each right detection lie behind the word's own.
    """

    hours: float = 0.0
    keywords: Counter[str] = field(default_factory=Counter)
    missed: Counter[str] = field(default_factory=Counter)
    said: Counter[str] = field(default_factory=Counter)
    unheard: Counter[str] = field(default_factory=Counter)
    others: int = 0
    false_alarms: Counter[str] = field(default_factory=Counter)
    substitutions: int = 0
    others_fired: int = 0
    repeated: int = 0
    provoked: Counter[str] = field(default_factory=Counter)
    latencies: list[float] = field(default_factory=list)
    covered: float = 0.0
    off: defaultdict[str, list[tuple[float, float]]] = field(default_factory=lambda: defaultdict(list))

    @property
    def unprovoked(self) -> int:
        """False alarms while no keyword was being said: neither substitutions nor repetitions."""
        return self.unprovoked_but(())

    def unprovoked_but(self, words: Collection[str]) -> int:
        """The same without those of some keywords."""
        return sum(n for word, n in (self.false_alarms - self.provoked).items() if word not in words)

    @property
    def exposed_hours(self) -> float:
        """Hours in which a false alarm would be unprovoked."""
        return self.hours - self.covered

    def add(self, other: Tally) -> None:
        """Count another set's outcome in."""
        self.hours += other.hours
        self.keywords += other.keywords
        self.missed += other.missed
        self.said += other.said
        self.unheard += other.unheard
        self.others += other.others
        self.false_alarms += other.false_alarms
        self.substitutions += other.substitutions
        self.others_fired += other.others_fired
        self.repeated += other.repeated
        self.provoked += other.provoked
        self.latencies += other.latencies
        self.covered += other.covered
        for word, places in other.off.items():
            self.off[word] += places

    @property
    def miss_bounds(self) -> tuple[float, float] | None:
        """Of the share that is missed, 95 %: over speakers drawn anew where they are known, else exact ones."""
        keywords, missed = self.keywords.total(), self.missed.total()
        if not keywords:
            return None
        if "" in self.said or len(self.said) < 2:
            return binomial_bounds(missed, keywords)
        unheard = np.array([self.unheard[speaker] for speaker in self.said])
        return clustered_bounds(unheard, np.array(list(self.said.values())))

    def report(self) -> dict[str, Any]:
        """Plain figures with 95 % bounds; None where there was nothing to measure."""
        keywords, missed, alarms = (c.total() for c in (self.keywords, self.missed, self.false_alarms))
        exposed = self.exposed_hours
        p50, p90 = np.percentile(self.latencies, [50, 90]).round(1).tolist() if self.latencies else (None, None)
        off = np.abs([places for found in self.off.values() for places in found])
        start_p50, end_p50 = np.median(off, axis=0).round(1).tolist() if len(off) else (None, None)
        start_p90, end_p90 = np.quantile(off, 0.9, axis=0).round(1).tolist() if len(off) else (None, None)
        return {
            "hours": round(self.hours, 5),
            "exposed_hours": round(exposed, 5),
            "keywords": keywords,
            "missed": missed,
            "miss_rate": missed / keywords if keywords else None,
            "miss_rate_bounds": self.miss_bounds,
            "speakers": len(self.said.keys() - {""}),
            "other_words": self.others,
            "false_alarms": alarms,
            "unprovoked": self.unprovoked,
            "substitutions": self.substitutions,
            "other_words_fired": self.others_fired,
            "repeated": self.repeated,
            "false_alarms_per_hour": alarms / self.hours if self.hours else None,
            "false_alarms_per_hour_bounds": [b / self.hours for b in poisson_bounds(alarms)] if self.hours else None,
            "unprovoked_per_hour": self.unprovoked / exposed if exposed else None,
            "unprovoked_per_hour_bounds": [b / exposed for b in poisson_bounds(self.unprovoked)] if exposed else None,
            "latency_ms_p50": p50,
            "latency_ms_p90": p90,
            "start_off_ms_p50": start_p50,
            "start_off_ms_p90": start_p90,
            "end_off_ms_p50": end_p50,
            "end_off_ms_p90": end_p90,
            "by_keyword": {
                word: {
                    "keywords": self.keywords[word],
                    "missed": self.missed[word],
                    "false_alarms": self.false_alarms[word],
                }
                for word in sorted(self.keywords | self.false_alarms)
            },
        }


def hear(network: Network, streams: Sequence[Stream], point: str) -> list[Heard]:
    """Run the network over streams, each from an empty past, and over the silence that follows them at a server."""
    heard = []
    for start in range(0, len(streams), BATCH):
        batch = streams[start : start + BATCH]
        judged = judge(network, [stream.samples for stream in batch], point=point, ended=True)
        heard += [Heard(stream, posteriors) for stream, (posteriors, _count) in zip(batch, judged, strict=True)]
    return heard


def decided_at(token: float, config: ModelConfig) -> float:
    """Samples of a stream that must have arrived before a token's posterior is known."""
    return (token + 1) * config.token_samples + config.frontend.window - config.frontend.hop


def covered(stream: Stream, keywords: Collection[str]) -> float:
    """Hours of a stream in which a keyword is being said, until `PATIENCE_MS` after its end."""
    samples = done = 0
    for word in stream.utterances:
        if word.word in keywords:
            end = min(word.end + PATIENCE_SAMPLES, len(stream.samples))
            samples += max(0, end - max(word.start, done))
            done = max(done, end)
    return samples / SAMPLE_RATE / 3600


def tally(heard: Heard, hits: Sequence[Hit], config: ModelConfig) -> Tally:
    """Match one stream's detections with what was said in it."""
    stream, keywords = heard.stream, set(config.keywords)
    result = Tally(hours=stream.hours, others=sum(u.word not in keywords for u in stream.utterances))
    result.covered = covered(stream, keywords)
    spoken = [u for u in stream.utterances if u.word in keywords]
    result.keywords.update(u.word for u in spoken)
    result.said.update(u.speaker for u in spoken)
    open_words = list(stream.utterances)
    for hit in hits:
        at = decided_at(hit.token, config)
        near = [u for u in stream.utterances if u.start <= at <= u.end + PATIENCE_SAMPLES]
        named = [u for u in near if u.word == hit.keyword]
        if fresh := [u for u in named if u in open_words]:
            open_words.remove(fresh[0])
            result.latencies.append((at - fresh[0].end) * 1000 / SAMPLE_RATE)
            start, end = (decided_at(place, config) for place in (hit.start, hit.end))
            result.off[hit.keyword].append(
                ((start - fresh[0].start) * 1000 / SAMPLE_RATE, (end - fresh[0].end) * 1000 / SAMPLE_RATE)
            )
        else:
            result.false_alarms[hit.keyword] += 1
            _blame(result, hit.keyword, near, keywords)
    unheard = [u for u in open_words if u.word in keywords]
    result.missed.update(u.word for u in unheard)
    result.unheard.update(u.speaker for u in unheard)
    return result


def _blame(result: Tally, fired: str, near: Sequence[Utterance], keywords: set[str]) -> None:
    """Say what a false alarm was about."""
    if any(u.word == fired for u in near):
        result.repeated += 1
        result.provoked[fired] += 1
    elif any(u.word in keywords for u in near):
        result.substitutions += 1
        result.provoked[fired] += 1
    elif near:
        result.others_fired += 1


def total(
    heard: Sequence[Heard], calibration: Calibration, detect: Detect, config: ModelConfig
) -> tuple[Tally, list[Tally]]:
    """Detect and match over a set of streams: the sum, and each stream's own."""
    each = [tally(h, detect(calibration, h.posteriors), config) for h in heard]
    whole = Tally()
    for part in each:
        whole.add(part)
    return whole, each


def shifted(calibration: Calibration, offset: float) -> dict[str, Any]:
    """The same calibration, every threshold moved by `offset` on the logit scale: stricter where positive."""
    words = {
        word: {**rule, "threshold": round(float(expit(logit(rule["threshold"]) + offset)), 4)}
        for word, rule in calibration["keywords"].items()
    }
    return {**calibration, "keywords": words}


def logit(share: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Log-odds; shares of 0 and 1 stay finite."""
    clipped = np.clip(share, 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))


def expit(odds: float | NDArray[np.float64]) -> NDArray[np.float64]:
    """Inverse of `logit`."""
    return 1 / (1 + np.exp(-np.asarray(odds)))


def trade_off(
    heard: Sequence[Heard],
    calibration: Calibration,
    detect: Detect,
    config: ModelConfig,
    offsets: Sequence[float] = tuple(np.linspace(-4, 4, 33)),
) -> list[dict[str, Any]]:
    """The detection error trade-off: one report for every offset of all thresholds, from lax to strict."""
    reports = []
    for offset in offsets:
        whole, _ = total(heard, shifted(calibration, offset), detect, config)
        reports.append({"offset": float(offset), **whole.report()})
    return reports
