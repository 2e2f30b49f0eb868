"""The stock Keyword Transformer over a stream: a window of one clip that slides, with what can be kept from hop to hop.

Attention is bidirectional and positions belong to the window, so a hop changes every token of every layer. Kept
*exactly* are the MFCC frames, their stem projections, and in the first layer W (stem + position) = W stem + W position,
whose first term belongs to the frame and whose second is constant; and the last layer computes the class token's query,
and nothing behind it for the others.

*Approximate* is the delta gate from hop to hop (ours; the published gate runs along the tokens of one clip). Tokens
live in a ring of slots, one for each audio frame, so that a frame meets its own values of the hop before; a new frame
takes the slot, and the references, of the one that leaves. Before every matrix product, x_h a slot's value at hop h::

    m = |x_h - r_{h-1}| > theta;   r_h = x_h where m else r_{h-1};   y_h = W r_h

Attention sums over slots, so their order in the ring does not matter. A move costs what follows from
y_h = y_{h-1} + W (m d): for scores, of Q against all keys and of K against all queries; for values, of A against one
row of V and of V against all queries; never more than the dense product. The arithmetic here multiplies the held
values and counts; it saves no time.

Knows nothing of files, sockets or torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from models.kwt_clip import ClipNetwork, gelu
from models.offline import softmax

if TYPE_CHECKING:
    from models.features import Array
    from models.kwt_weights import KWTConfig, Weights

GATES: Final = ("x", "q", "k", "v", "a", "mixed", "up", "down")
"""What is gated in each layer: input of the projections, queries, keys, values, attention weights, input of the output
projection, and of both feed-forward products."""

Thresholds = Mapping[str, float]
"""Threshold of each of `GATES`, at least 0; one that is missing is not gated."""


def thresholds(theta: float) -> Thresholds:
    """One threshold for everything, but a fiftieth of it for attention weights, which sum to 1."""
    return {gate: theta / 50 if gate == "a" else theta for gate in GATES}


@dataclass
class State:
    """One stream: T slots for audio frames, the class token before them.

    Attributes:
        samples: (S,) those that no whole hop of frames has used up.
        frames: heard so far; frame f lives in slot f mod T.
        stem: (T, C) projected frames.
        first: (T, 3 C) their share of the first layer's queries, keys and values.
        held: last propagated values by layer and gate.
        done: multiply-accumulates by group.
    """

    samples: Array
    frames: int
    stem: Array
    first: Array
    held: dict[tuple[int, str], Array] = field(default_factory=dict)
    done: dict[str, int] = field(default_factory=dict)


class SlidingKWT(ClipNetwork):
    """Judges a stream every `hop_frames` frames, once it holds a whole clip. Const; a stream is a `State`.

    Args:
        config: shape.
        weights: tensors.
        hop_frames: frames between two verdicts.
        gates: thresholds of the gate from hop to hop; none keeps only what is exact.
    """

    def __init__(self, config: KWTConfig, weights: Weights, hop_frames: int, gates: Thresholds | None = None) -> None:
        super().__init__(config, weights)
        self.hop_frames, self.gates = hop_frames, gates or {}
        self._placed = self.weights["positions"] @ self.weights["blocks.0.qkv.weight"].T
        self._class = self.weights["class_token"] @ self.weights["blocks.0.qkv.weight"].T

    def new_state(self) -> State:
        """An empty past."""
        slots, c = self.config.frames, self.config.channels
        return State(np.zeros(0, np.float32), 0, np.zeros((slots, c), np.float32), np.zeros((slots, 3 * c), np.float32))

    def feed(self, samples: Array, state: State) -> Array:
        """Samples (S,) of int16 values -> posteriors (N, K), one for each hop that ends in them."""
        config, rows = self.config, []
        state.samples = np.concatenate((state.samples, samples))
        while True:
            fresh = self.hop_frames if state.frames >= config.frames else config.frames
            needed = config.window + (fresh - 1) * config.hop
            if len(state.samples) < needed:
                return np.array(rows, np.float32).reshape(-1, len(config.labels))
            self._take(self._mfcc(state.samples[:needed]), state)
            state.samples = state.samples[fresh * config.hop :]
            rows.append(softmax(self._window(state)))

    def bytes_per_session(self) -> int:
        """Memory of one stream: two hops of samples, the rings, and what a gate would have to keep at the least."""
        config, n = self.config, self.config.tokens
        c, hidden = config.channels, config.hidden
        held = {"x": c, "q": c, "k": c, "v": c, "a": config.heads * n, "mixed": c, "up": c, "down": hidden}
        sums = {"x": 3 * c, "q": config.heads * n, "a": c, "mixed": c, "up": hidden, "down": c}
        gated = sum(held[gate] + sums.get(gate, 0) for gate in self.gates)
        kept = config.frames * 4 * c + config.window + 2 * self.hop_frames * config.hop
        return 4 * (kept + config.layers * n * gated)

    def _take(self, frames: Array, state: State) -> None:
        """Put MFCC frames (k, coefficients) into the slots of those that leave."""
        slots = (state.frames + np.arange(len(frames))) % self.config.frames
        state.stem[slots] = self._linear("stem", frames)
        state.first[slots] = state.stem[slots] @ self.weights["blocks.0.qkv.weight"].T
        state.frames += len(frames)
        self._count(state, "stem", frames.size * self.config.channels)
        self._count(state, "qkv", len(frames) * 3 * self.config.channels**2)

    def _window(self, state: State) -> Array:
        """The whole window, in the order of slots -> logits (K,)."""
        config, w = self.config, self.weights
        age = 1 + (np.arange(config.frames) - state.frames) % config.frames
        order = np.concatenate((np.zeros(1, np.intp), age))
        x = np.concatenate((w["class_token"][None], state.stem)) + w["positions"][order]
        qkv = np.concatenate((self._class[None], state.first)) + self._placed[order]
        for i in range(config.layers):
            last = i == config.layers - 1
            if i:
                qkv = self._project(i, x, state, last=last)
            x = self._layer(i, x[:1] if last else x, qkv, state)
        self._count(state, "readout", config.channels * len(config.labels))
        return self._linear("head", x[0])

    def _project(self, i: int, x: Array, state: State, *, last: bool) -> Array:
        """Queries, keys and values (N, 3 C) of a layer; in the last one only the class token's query counts."""
        c = self.config.channels
        held, moved = self._gate(i, "x", x, state)
        self._count(state, "qkv", (2 * int(moved.sum()) + int(moved[0].sum()) if last else 3 * int(moved.sum())) * c)
        return held @ self.weights[f"blocks.{i}.qkv.weight"].T

    def _layer(self, i: int, x: Array, qkv: Array, state: State) -> Array:
        """What follows the projections, for the first len(x) tokens: (M, C), (N, 3 C) -> (M, C)."""
        name, m = f"blocks.{i}", len(x)
        x = self._norm(f"{name}.norm1", x + self._gated(i, "mixed", "out", self._attend(i, qkv, m, state), state))
        hidden = gelu(self._gated(i, "up", "up", x, state))
        return self._norm(f"{name}.norm2", x + self._gated(i, "down", "down", hidden, state))

    def _attend(self, i: int, qkv: Array, m: int, state: State) -> Array:
        """(N, 3 C) -> weighted values (M, C) of the first M queries."""
        n, heads = len(qkv), self.config.heads
        q, k, v = qkv.reshape(n, 3, heads, -1).transpose(1, 2, 0, 3)
        (q, q_moved), (k, k_moved) = self._gate(i, "q", q[:, :m], state), self._gate(i, "k", k, state)
        d = q.shape[-1]
        self._count(state, "scores", min(n * int(q_moved.sum()) + m * int(k_moved.sum()), heads * m * n * d))
        a, a_moved = self._gate(i, "a", softmax(q @ k.swapaxes(-1, -2) * np.float32(d**-0.5)), state)
        v, v_moved = self._gate(i, "v", v, state)
        self._count(state, "values", min(d * int(a_moved.sum()) + m * int(v_moved.sum()), heads * m * n * d))
        return (a @ v).swapaxes(0, 1).reshape(m, -1)

    def _gated(self, i: int, gate: str, product: str, x: Array, state: State) -> Array:
        """A gated linear part: (M, C) -> (M, C')."""
        held, moved = self._gate(i, gate, x, state)
        y = self._linear(f"blocks.{i}.{product}", held)
        self._count(state, product, int(moved.sum()) * y.shape[-1])
        return y

    def _gate(self, i: int, gate: str, x: Array, state: State) -> tuple[Array, NDArray[np.bool_]]:
        """Held values, and which of them moved; everything, where there is no such gate."""
        before = state.held.get((i, gate))
        if gate not in self.gates or before is None:
            moved, held = np.ones(x.shape, np.bool_), x
        else:
            moved = np.abs(x - before) > self.gates[gate]
            held = np.where(moved, x, before)
        if gate in self.gates:
            state.held[i, gate] = held
        return held, moved

    def _count(self, state: State, group: str, macs: int) -> None:
        state.done[group] = state.done.get(group, 0) + macs
