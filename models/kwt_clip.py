"""The stock Keyword Transformer without torch: one clip in, posteriors out, for serving.

The arithmetic of `models.kwt` in plain numpy; a test holds the two together. Const after construction, so one
object serves every thread.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np

from models.kwt_weights import FULL_SCALE
from models.offline import softmax

if TYPE_CHECKING:
    from models.features import Array
    from models.kwt_weights import KWTConfig, Weights


class ClipNetwork:
    """A stock Keyword Transformer that judges clips of exactly `config.clip_samples` samples."""

    def __init__(self, config: KWTConfig, weights: Weights) -> None:
        self.config = config
        self.weights = {name: np.array(value, order="C") for name, value in weights.items()}

    def judge(self, samples: Array) -> Array:
        """Clip (S,) of int16 values -> posteriors (K,)."""
        return softmax(self.logits(samples))

    def logits(self, samples: Array) -> Array:
        """Clip (S,) of int16 values -> logits (K,)."""
        w = self.weights
        x = np.concatenate((w["class_token"][None], self._linear("stem", self._mfcc(samples)))) + w["positions"]
        for i in range(self.config.layers):
            x = self._block(f"blocks.{i}", x)
        return self._linear("head", x[0])

    def _linear(self, name: str, x: Array) -> Array:
        return x @ self.weights[f"{name}.weight"].T + self.weights[f"{name}.bias"]

    def _norm(self, name: str, x: Array) -> Array:
        centred = x - x.mean(axis=-1, keepdims=True)
        deviation = np.sqrt(np.square(centred).mean(axis=-1, keepdims=True) + self.config.epsilon)
        return centred / deviation * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def _mfcc(self, samples: Array) -> Array:
        """(S,) -> (N - 1, coefficients)."""
        w = {name.removeprefix("frontend."): value for name, value in self.weights.items()}
        view = np.lib.stride_tricks.sliding_window_view(samples / np.float32(FULL_SCALE), self.config.window)
        windows = view[:: self.config.hop].astype(np.float32) * w["window"]
        magnitude = np.sqrt((windows @ w["cosine"].T) ** 2 + (windows @ w["sine"].T) ** 2)
        mel = np.maximum(magnitude @ w["mel"].T, np.float32(1e-12))
        return (np.log(mel) @ w["dct"].T - w["offset"]) * w["scale"]

    def _block(self, name: str, x: Array) -> Array:
        """(N, C) -> (N, C)."""
        qkv = (x @ self.weights[f"{name}.qkv.weight"].T).reshape(len(x), 3, self.config.heads, -1)
        q, k, v = qkv.transpose(1, 2, 0, 3)
        weights = softmax(q @ k.swapaxes(-1, -2) * np.float32(q.shape[-1] ** -0.5))
        mixed = (weights @ v).swapaxes(0, 1).reshape(x.shape)
        x = self._norm(f"{name}.norm1", x + self._linear(f"{name}.out", mixed))
        hidden = gelu(self._linear(f"{name}.up", x))
        return self._norm(f"{name}.norm2", x + self._linear(f"{name}.down", hidden))


def gelu(x: Array) -> Array:
    """In its tanh form."""
    cubic = x + np.float32(0.044715) * x * x * x
    return np.float32(0.5) * x * (1 + np.tanh(np.float32(math.sqrt(2 / math.pi)) * cubic))
