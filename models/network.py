"""Weights made ready for serving: the compiled network. It is const; what a stream remembers is its cache row."""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray

from models.cache import Cache, layout, padded
from models.checkpoint import DENSE, Checkpoint, CheckpointError
from models.config import BLOCK_GATES, READOUT_GATES, ModelConfig, gate_names
from models.features import Array, log_mel
from models.kernels import Scratch
from models.lanes import WIDTH
from models.step import Sizes, Weights, step


class Network:
    """A checkpoint, compiled.

    Shared by every stream and thread; needs numba, not torch.
    """

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.config = checkpoint, checkpoint.config
        self.layout = layout(self.config)
        self.sizes = _sizes(self.config)
        self.weights = pack(checkpoint)
        dense = dict.fromkeys(gate_names(self.config), 0.0)
        self.thresholds = {DENSE: dense, **checkpoint.points}
        self.points = tuple(self.thresholds)
        self._table = np.stack([_threshold_table(self.config, point) for point in self.thresholds.values()])
        self._local = threading.local()

    def new_cache(self, capacity: int) -> Cache:
        """Room for `capacity` streams, each at its beginning."""
        return Cache(self.config, capacity)

    def step(
        self, cache: Cache, rows: NDArray[np.int64], frames: Array, counts: NDArray[np.int64] | None = None
    ) -> Array:
        """Advance a batch of streams; releases the interpreter lock.

        Args:
            cache: the arena the streams live in.
            rows: (B,) rows of the cache, all different.
            frames: (N, stride, bands) network input, the rows' tokens one after another.
            counts: (B,) tokens of each row, adding up to N; one each if None.

        Returns:
            Logits (N, K). Calls on the same rows must not overlap; calls on other rows may, in other threads.
        """
        rows = np.ascontiguousarray(rows, np.int64)
        counts = np.ones(len(rows), np.int64) if counts is None else np.ascontiguousarray(counts, np.int64)
        total, sizes = len(frames), self.sizes
        x = np.empty(total * sizes.channels, np.float32)
        logits = np.empty(total * sizes.labels, np.float32)
        thetas = self._table[cache.point[rows]] * cache.scale[rows, None, None]
        step(
            cache.state, cache.tokens, cache.macs, thetas, rows, counts, np.ascontiguousarray(frames).reshape(-1),
            x, logits, self.layout, self.weights, sizes, self._scratch(),
        )
        return logits.reshape(total, sizes.labels)[:, : len(self.config.labels)]

    def warm_up(self) -> None:
        """Compile, or load what an earlier start compiled, by judging one second of silence, front end included."""
        config, frontend = self.config, self.config.frontend
        cache = self.new_cache(1)
        tokens = frontend.sample_rate // config.token_samples
        silence = log_mel(np.zeros((tokens * config.stride, frontend.window), np.float32), frontend)
        frames = silence.reshape(tokens, config.stride, frontend.bands)
        self.step(cache, np.zeros(1, np.int64), frames, np.array([tokens]))

    def _scratch(self) -> Scratch:
        """This thread's working memory."""
        if not hasattr(self._local, "scratch"):
            config = self.config
            wide = max(config.hidden, padded(config.stem_inputs), config.heads * config.span) + WIDTH
            self._local.scratch = Scratch(
                x=np.zeros(config.channels, np.float32),
                wide=np.zeros(wide, np.float32),
                weights=np.zeros(config.span, np.float32),
                index=np.zeros(wide + WIDTH, np.int32),
                change=np.zeros(wide + WIDTH, np.float32),
                origin=np.zeros(WIDTH, np.float32),
                zero=np.zeros(max(config.span, config.head_channels), np.float32),
            )
        return self._local.scratch


def _sizes(config: ModelConfig) -> Sizes:
    return Sizes(
        config.frontend.bands, config.stride, config.kernel, config.channels, config.layers, config.heads,
        config.hidden, config.span, padded(len(config.labels)), len(config.labels),
    )


def _threshold_table(config: ModelConfig, point: dict[str, float]) -> Array:
    """Thresholds by name -> (layers + 2, 6), in the kernels' order: stem, blocks, read-out."""
    if missing := set(gate_names(config)) - set(point):
        raise CheckpointError(f"an operating point lacks thresholds for {sorted(missing)}")
    table = np.zeros((config.layers + 2, len(BLOCK_GATES)), np.float32)
    table[0, 0] = point["stem"]
    for layer in range(config.layers):
        table[layer + 1] = [point[f"block{layer}.{kind}"] for kind in BLOCK_GATES]
    table[-1, : len(READOUT_GATES)] = [point[f"readout.{kind}"] for kind in READOUT_GATES]
    return table


def pack(checkpoint: Checkpoint) -> Weights:
    """Rearrange a checkpoint's weights for the kernels.

    Raises:
        CheckpointError: where a weight is missing or has another shape than the configuration says.
    """
    config = checkpoint.config
    c, hidden, labels = config.channels, config.hidden, len(config.labels)

    def get(name: str, *shape: int) -> Array:
        array = checkpoint.weights.get(name)
        if array is None or array.shape != shape:
            found = "missing" if array is None else f"of shape {array.shape}"
            raise CheckpointError(f"weight {name} is {found}; the configuration asks for {shape}")
        return array

    def each(name: str, *shape: int) -> list[Array]:
        return [get(f"blocks.{i}.{name}", *shape) for i in range(config.layers)]

    scale = np.ones((3 * c, 1), np.float32)
    scale[:c] = config.head_channels**-0.5
    return Weights(
        stem=_matrix([get("stem.weight", c, config.stem_inputs)], rows=padded(config.stem_inputs)),
        stem_bias=get("stem.bias", c),
        norm1=_flat(zip(each("norm1.weight", c), each("norm1.bias", c), strict=True)),
        qkv=_matrix([w * scale for w in each("attention.qkv.weight", 3 * c, c)]),
        qkv_bias=_flat(b * scale[:, 0] for b in each("attention.qkv.bias", 3 * c)),
        age_bias=_flat(_by_slot(b) for b in each("attention.attend.bias", config.heads, config.span)),
        out=_matrix(each("attention.out.weight", c, c)),
        out_bias=_flat(each("attention.out.bias", c)),
        norm2=_flat(zip(each("norm2.weight", c), each("norm2.bias", c), strict=True)),
        up=_matrix(each("up.weight", hidden, c)),
        up_bias=_flat(each("up.bias", hidden)),
        down=_matrix(each("down.weight", c, hidden)),
        down_bias=_flat(each("down.bias", c)),
        pool_norm=_flat([get("readout.norm.weight", c), get("readout.norm.bias", c)]),
        pool_query=_matrix([get("readout.query.weight", config.heads, c)], columns=WIDTH),
        pool_age_bias=_flat([_by_slot(get("readout.attend.bias", config.heads, config.span))]),
        head=_matrix([get("readout.head.weight", labels, c)], columns=padded(labels)),
        head_bias=np.pad(get("readout.head.bias", labels), (0, padded(labels) - labels)),
    )


def _matrix(matrices: list[Array], rows: int = 0, columns: int = 0) -> Array:
    """Matrices (out, in) -> one flat array, input-major, padded with zeros to `rows` inputs and `columns` outputs."""
    turned = [np.asarray(m, np.float32).T for m in matrices]
    padding = [((0, max(0, rows - m.shape[0])), (0, max(0, columns - m.shape[1]))) for m in turned]
    return np.concatenate([np.pad(m, p).ravel() for m, p in zip(turned, padding, strict=True)])


def _flat(arrays) -> Array:
    return np.concatenate([np.asarray(a, np.float32).ravel() for a in arrays])


def _by_slot(bias: Array) -> Array:
    """Bias by age (H, W) -> (H, 2 W): from place W - p on, the biases of slots 0..W - 1 when slot p is newest."""
    span = bias.shape[1]
    return bias[:, -np.arange(2 * span) % span]
