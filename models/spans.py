"""Where a word lies, told from where its keyword's posterior rises: learned from labelled streams.

A posterior rises once enough of a word was heard, which is after a third of one word and at the end of another. So
every keyword has its own two places, in ms from the end of the token of the rise: the medians of where its words began
and ended. Knows no detector: it is handed in, as in `models.evaluate_streams`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np

from models.config import ModelConfig
from models.evaluate_streams import Detect, Heard, total

USUAL_MS: Final = (-450.0, 0.0)
"""Of a keyword of which nothing is known."""
FEW = 10
"""Detections of a keyword below which others say more."""


def learn(
    heard: Sequence[Heard],
    calibration: Mapping[str, Any],
    detect: Detect,
    config: ModelConfig,
    before: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A calibration with `span_ms` of every keyword, as the right detections in labelled streams have it.

    A keyword that was hardly heard keeps what an earlier calibration, `before`, says of it; if that says nothing, all
    keywords' detections together stand for its own.
    """
    rules, known = calibration["keywords"], (before or {}).get("keywords", {})
    rises = {word: {**rule, "span_ms": (0.0, 0.0)} for word, rule in rules.items()}
    outcome, _ = total(heard, {**calibration, "keywords": rises}, detect, config)
    everyone = [places for found in outcome.off.values() for places in found]

    def span(word: str) -> tuple[float, ...]:
        own, earlier = outcome.off[word], known.get(word, {}).get("span_ms")
        found = own if len(own) >= FEW else [] if earlier else everyone
        return tuple((-np.median(found, axis=0)).round().tolist()) if found else tuple(earlier or USUAL_MS)

    return {**calibration, "keywords": {word: {**rule, "span_ms": span(word)} for word, rule in rules.items()}}
