"""The stock network on endless audio: the window of its clips slides over streams, to be judged as ours are.

It speaks at every token of ours, silence before the beginning, so whatever reads our posteriors reads these. Knows no
detector and no thresholds.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from models.config import ModelConfig
from models.data import LAST_SAMPLES
from models.evaluate_streams import Heard
from models.kwt_import import read_stock
from models.kwt_sliding import SlidingKWT
from models.streams import Stream


def hear_stock(path: Path, streams: Sequence[Stream]) -> tuple[ModelConfig, list[Heard]]:
    """Slide a stock network over streams, each between silences; its time is in the table of methods (`sliding`).

    Returns:
        Labels and clock of its posteriors, which are all that is true of it in this configuration; and these.

    Raises:
        KWTFileError: for a file that is none.
    """
    config, weights = read_stock(path)
    tokens = ModelConfig(labels=config.labels)
    network = SlidingKWT(config, weights, tokens.stride)
    silence = np.zeros((config.frames - tokens.stride) * config.hop, np.float32)
    last = np.zeros(LAST_SAMPLES, np.float32)
    posteriors = (network.feed(np.concatenate((silence, each.samples, last)), network.new_state()) for each in streams)
    return tokens, [Heard(each, said) for each, said in zip(streams, posteriors, strict=True)]
