"""A keyword of one's own, `seven`, made of the sample recording, and a background that does not know it. No test."""

from __future__ import annotations

import csv

import numpy as np

from models.background import Background, Embedded, fit
from models.network import Network
from models.offline import tokens_of
from models.recordings import embed_recording
from service.commands.demo import SAMPLE

SECOND = 16_000
SCATTER = 0.8
"""Of embeddings between one speaker and another, as it might be."""


def labels() -> list[tuple[float, float, str]]:
    """What is said in the sample recording, and when."""
    rows = csv.reader((SAMPLE / "commands.tsv").read_text().splitlines(), delimiter="\t")
    return [(float(start), float(end), word) for start, end, word in rows if start != "start_s"]


def variants(spoken: np.ndarray, word: str, count: int) -> list[np.ndarray]:
    """The sample's only recording of a word at several gains, in several hisses."""
    start, end = next((start, end) for start, end, said in labels() if said == word)
    cut = spoken[int((start - 0.2) * SECOND) : int((end + 0.2) * SECOND)].astype(np.float32)
    random = np.random.default_rng(len(word))
    return [cut * random.uniform(0.3, 1.0) + random.normal(0, 20, len(cut)).astype(np.float32) for _ in range(count)]


def embed_all(network: Network, samples: np.ndarray) -> np.ndarray:
    tokens = tokens_of(network.config, samples)
    return network.embed(network.new_cache(1), np.zeros(1, np.int64), tokens, np.array([len(tokens)]))[1]


def background_of_sample(network: Network, spoken: np.ndarray) -> Background:
    """One that knows the sample's words but `seven`, and the sample as running speech.

    Each word is one speaker's, so the scatter of other speakers is made up.
    """
    random = np.random.default_rng(0)
    vectors, words = [], []
    for word in sorted({said for *_, said in labels()} - {"seven"}):
        made = [embed_recording(network, one, "dense")[0] for one in variants(spoken, word, 8)]
        vectors += [one + random.normal(0, SCATTER, one.shape) for one in made]
        words += [word] * len(made)
    speech = np.concatenate([embed_all(network, spoken.astype(np.float32) * gain) for gain in (0.2, 0.5, 1.0)])
    speech += random.normal(0, SCATTER, speech.shape)
    return fit(Embedded(np.stack(vectors), np.array(words), np.concatenate(vectors)), speech, network.config)
