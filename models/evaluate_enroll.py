"""Enrolled keywords on endless audio: how many are missed, at what rate of false alarms, by number of recordings.

Validation speakers are halved: one half says the recordings, the other the streams, so nobody hears himself. The words
that are enrolled are left out of the background, but the network itself has heard them, as unknown words: words that
it was never trained to tell from others, yet not ones that it never met.

    alone    one enrolled word after the other, in noise      speech   running speech without it
    mixed    all of `WORDS`, and as many others, the ten keywords among them: everything but one of them is wrong

The rate that a threshold is chosen by is counted over `alone` and `speech`, as for the network's own keywords. The
streams are the same in every trial, only the recordings are others: figures are means over trials of one pass.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from models.background import Background, embed_tokens
from models.bounds import binomial_bounds, poisson_bounds
from models.config import SILENCE, UNKNOWN, ModelConfig
from models.data import Corpus, DataError, Item
from models.enroll import EnrolledKeyword, Spotting, learn
from models.evaluate_sets import KEYWORDS_ALONE, MIXED, Material, build_many
from models.evaluate_streams import Detect, Heard, Tally, shifted, total
from models.features import Array
from models.network import Network
from models.offline import tokens_of
from models.recordings import embed_recording
from models.streams import Clip, Stream

WORDS = ("bed", "cat", "happy", "one", "zero", "eight", "five")
"""Unknown words of which there is enough validation audio."""
COUNTS = (3, 5, 10)
OFFSETS = tuple(np.arange(-8, 9) * 0.1)
"""Shifts of the threshold, on the logit scale."""
ALLOWED_PER_HOUR = 1.0


Detector = Callable[[ModelConfig], Detect]
"""Labels, within a configuration -> what detects them."""


@dataclass(frozen=True, slots=True)
class Followed:
    """A stream and the embedding of each of its tokens (N, C)."""

    stream: Stream
    embeddings: Array


def forgetful(corpus: Corpus) -> Corpus:
    """A corpus in which nobody ever said `WORDS`."""
    kept = ~np.isin(corpus.words, WORDS)
    return replace(corpus, pixels=corpus.pixels[kept], words=corpus.words[kept], raw=corpus.raw[kept], beliefs=None)


def halves(items: Iterable[Item]) -> tuple[list[Item], list[Item]]:
    """Recordings by speaker: those to enrol, and those to judge; noise and running speech are among the latter."""
    first: list[Item] = []
    second: list[Item] = []
    for item in items:
        odd = hashlib.sha256(item.speaker.encode()).digest()[0] % 2
        (first if odd and item.is_clip else second).append(item)
    return first, second


def check_recordings(recorded: Material, said: Material) -> None:
    """Refuse recordings that are too few to draw from, or to judge by.

    Raises:
        DataError: naming the words.
    """
    drawn, judged = (Counter(clip.word for clip in half.clips) for half in (recorded, said))
    if few := [word for word in WORDS if drawn[word] < max(COUNTS) or not judged[word]]:
        wanted = f"{max(COUNTS)} by one half of the validation speakers, and some by the other half"
        raise DataError(f"too few recordings of {', '.join(few)}: {wanted} are needed")


def streams_of(material: Material, minutes: float, snr_db: tuple[float, float], seed: int) -> dict[str, list[Stream]]:
    """Streams by name: one for each of `WORDS`, `mixed`, and `speech`."""
    alone = replace(KEYWORDS_ALONE, minutes=minutes, snr_db=snr_db)
    sets = {}
    for place, word in enumerate(WORDS):
        only = replace(material, clips=[clip for clip in material.clips if clip.word == word])
        sets[word] = build_many(only, alone, 1, seed + place, (word,))
    sets["mixed"] = build_many(material, replace(MIXED, snr_db=snr_db), 6, seed + 1_000, WORDS)
    return {**sets, "speech": material.speech}


def follow(network: Network, streams: Sequence[Stream], point: str) -> list[Followed]:
    """Run the network over streams, as `hear` does."""
    return [
        Followed(stream, embed_tokens(network, point, tokens_of(network.config, stream.samples, ended=True)[None])[0])
        for stream in streams
    ]


class Enrolment:
    """The network, the background, and the recordings of each word, embedded."""

    def __init__(self, network: Network, background: Background, clips: Iterable[Clip], point: str) -> None:
        self.network, self.background = network, background
        self.recordings: dict[str, list[Array]] = {}
        for clip in clips:
            if clip.word in WORDS:
                self.recordings.setdefault(clip.word, []).append(embed_recording(network, clip.samples, point))

    def keyword(self, word: str, count: int, seed: int) -> EnrolledKeyword:
        """A keyword of `count` recordings, drawn by seed."""
        drawn = np.random.default_rng(seed).permutation(len(self.recordings[word]))[:count]
        embedded = np.stack([self.recordings[word][i] for i in drawn])
        return learn(word, self.network.checkpoint.fingerprint, embedded, self.background)

    def trade_off(
        self, keyword: EnrolledKeyword, followed: Sequence[Followed], detector: Detector, offsets: Sequence[float]
    ) -> list[Tally]:
        """What comes of one keyword on a set of streams, for each shift of its threshold."""
        spotting = Spotting(self.background, [keyword])
        config = replace(self.network.config, labels=(SILENCE, UNKNOWN, keyword.name))
        heard = [Heard(one.stream, np.pad(spotting.scores(one.embeddings), ((0, 0), (2, 0)))) for one in followed]
        calibration = {**self.network.checkpoint.calibration, "keywords": {keyword.name: keyword.rule}}
        return [total(heard, shifted(calibration, offset), detector(config), config)[0] for offset in offsets]


def best(tallies: Sequence[Tally], allowed: float = ALLOWED_PER_HOUR) -> int | None:
    """The laxest threshold from which on, stricter ones included, the rate of false alarms is allowed, if any."""
    rates = [tally.false_alarms.total() / tally.hours for tally in tallies]
    over = [i for i, rate in enumerate(rates) if rate > allowed]
    laxest = over[-1] + 1 if over else 0
    return laxest if laxest < len(tallies) else None


def point_report(trials: Sequence[Tally], offset: float) -> dict[str, Any]:
    """One threshold's outcome: means over trials, without what is always the same.

    Every trial hears the same streams, so hours and keywords are one trial's. Bounds of misses are over speakers drawn
    anew where these are known, else those of a trial with the mean counts, rounded, as are those of false alarms: other
    speakers and streams are within them, other recordings are not.
    """
    whole = Tally()
    for tally in trials:
        whole.add(tally)
    hours, keywords = trials[0].hours, trials[0].keywords.total()
    missed, alarms = whole.missed.total() / len(trials), whole.false_alarms.total() / len(trials)
    exact = binomial_bounds(round(missed), keywords) if keywords else None
    return {
        "offset": round(float(offset), 2),
        "hours": round(hours, 5),
        "keywords": keywords,
        "missed": round(missed, 2),
        "miss_rate": missed / keywords if keywords else None,
        "miss_rate_bounds": whole.miss_bounds if len(whole.said) > 1 else exact,
        "false_alarms": round(alarms, 2),
        "false_alarms_per_hour": alarms / hours if hours else None,
        "false_alarms_per_hour_bounds": [b / hours for b in poisson_bounds(round(alarms))] if hours else None,
        "latency_ms_p50": float(np.median(whole.latencies).round(1)) if whole.latencies else None,
    }


def judge_word(
    enrolment: Enrolment,
    word: str,
    count: int,
    followed: Mapping[str, Sequence[Followed]],
    detector: Detector,
    trials: int,
) -> dict[str, Any]:
    """One word from `count` recordings, `trials` times with others: means at the usual threshold, and at the best.

    No best one where a trial has none: the others' mean would flatter.
    """
    outcomes: dict[str, list[Tally]] = {"usual": [], "best": [], "mixed": []}
    offsets = []
    for trial in range(trials):
        keyword = enrolment.keyword(word, count, trial)
        tallies = enrolment.trade_off(keyword, [*followed[word], *followed["speech"]], detector, OFFSETS)
        outcomes["usual"].append(tallies[OFFSETS.index(0.0)])
        if (at := best(tallies)) is not None:
            offsets.append(OFFSETS[at])
            outcomes["best"].append(tallies[at])
        outcomes["mixed"] += enrolment.trade_off(keyword, followed["mixed"], detector, [0.0])
    return {
        "usual": point_report(outcomes["usual"], 0.0),
        "best": point_report(outcomes["best"], float(np.mean(offsets))) if len(offsets) == trials else None,
        "mixed": point_report(outcomes["mixed"], 0.0),
    }
