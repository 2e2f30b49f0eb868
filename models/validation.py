"""How good weights are while they are trained: the compiled step on clips and noise of the validation split.

A quick look, from pixels; `deltaspot evaluate` judges the audio itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import Checkpoint
from models.config import SILENCE, UNKNOWN, ModelConfig
from models.counting import causal_macs
from models.data import CLIP_FRAMES, CLIP_SAMPLES, Corpus
from models.engines import AnyNetwork, make_network
from models.features import Array, network_input
from models.offline import softmax

BATCH = 256


class Validation:
    """Clips (R, 98, M) with labels, and a second of noise at a time, ready to be judged.

    Real audio is preferred to pictures where the split has any.
    """

    def __init__(self, corpus: Corpus, config: ModelConfig) -> None:
        self.config = config
        chosen = corpus.raw if corpus.raw.any() else ~corpus.raw
        self.labels = np.array(config.indices(corpus.words[chosen].tolist()))
        self.clips = corpus.pixels[chosen]
        seconds = [noise[: len(noise) // CLIP_FRAMES * CLIP_FRAMES] for noise in corpus.noise]
        bands = config.frontend.bands
        self.noise = np.concatenate([np.zeros((0, bands), np.uint8), *seconds]).reshape(-1, CLIP_FRAMES, bands)

    def judge(self, checkpoint: Checkpoint) -> dict[str, dict[str, Any]]:
        """Figures of every operating point: accuracy, keywords, unknown, silence (None without noise), done.

        `done` is the share of the causal baseline's MACs.
        """
        network = make_network(checkpoint)
        figures = {}
        for point in network.points:
            verdicts, done = verdicts_on(network, point, self.clips)
            quiet, _ = verdicts_on(network, point, self.noise)
            figures[point] = self.figures(verdicts, quiet) | {"done": done}
        return figures

    def figures(self, verdicts: NDArray[np.int64], quiet: NDArray[np.int64]) -> dict[str, float | None]:
        """Shares that are right: of clips, of keywords and other words among them, and of seconds of noise."""
        unknown, silence = self.config.labels.index(UNKNOWN), self.config.labels.index(SILENCE)
        right, keyword = verdicts == self.labels, self.labels != unknown
        return {
            "accuracy": _share(right),
            "keywords": _share(right[keyword]),
            "unknown": _share(right[~keyword]),
            "silence": _share(quiet == silence),
        }


def verdicts_on(network: AnyNetwork, point: str, clips: NDArray[np.uint8]) -> tuple[NDArray[np.int64], float]:
    """Label of each clip (R, 98, M), and the MACs done as a share of the causal baseline's."""
    posteriors, done = posteriors_on(network, point, clips)
    return posteriors.argmax(axis=1), done


def posteriors_on(network: AnyNetwork, point: str, clips: NDArray[np.uint8]) -> tuple[Array, float]:
    """Last posteriors of each clip, (R, 98, M) -> (R, K), and the MACs done as a share of the causal baseline's."""
    posteriors, macs = [np.zeros((0, len(network.config.labels)), np.float32)], 0
    for start in range(0, len(clips), BATCH):
        tokens = clip_tokens(clips[start : start + BATCH], network.config)
        cache = network.new_cache(len(tokens), point)
        counts = np.full(len(tokens), tokens.shape[1])
        logits = network.step(cache, np.arange(len(tokens)), tokens.reshape(-1, *tokens.shape[2:]), counts)
        posteriors.append(softmax(logits.reshape(len(tokens), tokens.shape[1], -1)[:, -1]))
        macs += int(cache.macs.sum())
    baseline = len(clips) * sum(causal_macs(network.config, network.config.tokens_over(CLIP_SAMPLES)).values())
    return np.concatenate(posteriors), macs / max(1, baseline)


def clip_tokens(clips: NDArray[np.uint8], config: ModelConfig) -> Array:
    """Pixels (R, 98, M) -> network input (R, N, stride, M); the frames that a flush adds repeat the last one."""
    missing = config.tokens_over(CLIP_SAMPLES) * config.stride - CLIP_FRAMES
    padded = np.pad(clips, ((0, 0), (0, missing), (0, 0)), mode="edge").astype(np.float32)
    return network_input(padded).reshape(len(clips), -1, config.stride, clips.shape[2])


def _share(right: NDArray[np.bool_]) -> float | None:
    return float(right.mean()) if right.size else None
