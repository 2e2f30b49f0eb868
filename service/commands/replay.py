"""The server's detector, run over posteriors that are there already. Knows no network and no recordings."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING, Final

from models.checkpoint import CheckpointError
from service.detector import Detector, Hit
from service.spec import calibrated

if TYPE_CHECKING:
    from models.config import ModelConfig
    from models.evaluate_streams import Calibration, Detect
    from models.features import Array

PIECE: Final = 16
"""Tokens handed to the detector at once; it skips a piece in which nothing stirs."""


def check_calibrated(calibration: Calibration) -> None:
    """Refuse a checkpoint that has no thresholds for streams.

    Raises:
        CheckpointError: saying how to choose some.
    """
    if "keywords" not in calibration:
        raise CheckpointError("no thresholds for streams in this checkpoint: `deltaspot model calibrate` sets them")


def detector(config: ModelConfig) -> Detect:
    """What the server detects with, as the evaluation calls it; it refuses a checkpoint that is not calibrated."""

    def detect(calibration: Calibration, posteriors: Array) -> list[Hit]:
        check_calibrated(calibration)
        usual = {"refractory_ms": calibration["refractory_ms"]}
        rules = {word: calibrated(usual | rule, config) for word, rule in calibration["keywords"].items()}
        window, margin = calibration["window_tokens"], calibration["margin"]
        spotter = Detector(config.labels, rules, window, margin, calibration.get("silence", 0.0))
        pieces = (posteriors[start : start + PIECE] for start in range(0, len(posteriors), PIECE))
        return list(chain.from_iterable(map(spotter.feed, pieces)))

    return detect
