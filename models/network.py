"""Weights made ready for serving: the compiled network. It is const; what a stream remembers is its cache row."""

from __future__ import annotations

import threading

import numpy as np
from numba import njit
from numpy.typing import NDArray

from models.cache import Cache, filter_outputs, padded
from models.checkpoint import Checkpoint
from models.engines import AnyNetwork, check_batch
from models.features import Array
from models.folded_step import folded_step
from models.kernels import Scratch
from models.operating import gate_table, prune_table
from models.packed import FoldedNet, pack
from models.pages import together
from models.step import step
from models.vectors import WIDTH


class Network(AnyNetwork):
    """A checkpoint, compiled; needs numba, not torch."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        super().__init__(checkpoint)
        self.net = pack(checkpoint)
        self._step = folded_step if isinstance(self.net, FoldedNet) else step
        self._gates = np.stack([gate_table(self.config, point) for point in self.thresholds.values()])
        self._prunes = np.stack([prune_table(self.config, point) for point in self.thresholds.values()])
        self._local = threading.local()

    def empty_cache(self, capacity: int) -> Cache:
        """One arena."""
        return Cache(self.config, capacity)

    def embed(
        self, cache: Cache, rows: NDArray[np.int64], frames: Array, counts: NDArray[np.int64] | None = None
    ) -> tuple[Array, Array]:
        """Advance a batch of streams; releases the interpreter lock.

        Args:
            cache: the arena the streams live in.
            rows: (B,) rows of the cache, all different.
            frames: (N, stride, bands) network input, the rows' tokens one after another.
            counts: (B,) tokens of each row, adding up to N; one each if None.

        Returns:
            Logits (N, K), and what the read-out pooled at each token (N, C): the network's embedding of the last
            second, of which the logits are a linear function. Calls on the same rows must not overlap; calls on
            other rows may, in other threads.

        Raises:
            ValueError: for what is no batch of streams; nothing was heard then.
        """
        rows = np.ascontiguousarray(rows, np.int64)
        counts = np.ones(len(rows), np.int64) if counts is None else np.ascontiguousarray(counts, np.int64)
        check_batch(self, cache, rows, counts, frames)
        total, sizes = len(frames), self.net.sizes
        x = np.empty(total * sizes.channels, np.float32)
        logits = np.empty(total * sizes.labels, np.float32)
        thetas, prunes = _chosen(self._gates, self._prunes, cache.point, cache.scale, rows)
        self._step(
            *(cache.state, cache.tokens, cache.macs, cache.pruned, thetas, prunes, rows, counts),
            *(np.ascontiguousarray(frames).reshape(-1), x, logits, self.net, self._scratch()),
        )
        return logits.reshape(total, sizes.labels)[:, : len(self.config.labels)], x.reshape(total, sizes.channels)

    def _scratch(self) -> Scratch:
        """This thread's working memory."""
        if not hasattr(self._local, "scratch"):
            config = self.config
            ring = max(config.longest_span, max(config.factors) * config.span)
            bands = config.frontend.bands
            ends = (config.kernel * padded(bands), *filter_outputs(config))
            wide = max(config.hidden, config.channels, config.heads * ring, *ends) + WIDTH
            scratch = Scratch(
                x=np.zeros(config.channels, np.float32),
                wide=np.zeros(wide, np.float32),
                frames=np.zeros((WIDTH + 1) * bands + WIDTH, np.float32),
                lines=np.arange(WIDTH) * bands,
                weights=np.zeros(config.heads * ring, np.float32),
                gates=np.zeros(config.heads, np.float32),
                index=np.zeros(wide + WIDTH, np.uint16),
                change=np.zeros(wide + WIDTH, np.float32),
                origin=np.zeros(WIDTH, np.float32),
                zero=np.zeros(max(ring, config.channels), np.float32),
                mixed=np.zeros(config.channels, np.float32),
            )
            self._local.scratch = Scratch(*together(scratch))
        return self._local.scratch


@njit(error_model="numpy", cache=True)
def _chosen(
    gates: Array, prunes: Array, points: NDArray[np.int64], scales: Array, rows: NDArray[np.int64]
) -> tuple[Array, Array]:
    """Tables of gates and of pruning (points, ...) -> each row's own (B, ...), by its point and its scale.

    Compiled to keep the interpreter's lock, which a batch lets go of for the network itself and for nothing else.
    """
    thetas = np.empty((len(rows), *gates.shape[1:]), np.float32)
    chosen = np.empty((len(rows), *prunes.shape[1:]), np.float32)
    for place, row in enumerate(rows):
        thetas[place] = gates[points[row]] * scales[row]
        chosen[place] = prunes[points[row]]
    return thetas, chosen
