"""What all engines that run a checkpoint share, and the choice of one: the compiled kernels, or torch.

Knows neither engine until it is asked for; see `models.network` and `models.torch_network`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import DENSE, Checkpoint
from models.config import BLOCK_GATES, ModelConfig, gate_names
from models.features import Array, FrameStream, log_mel

if TYPE_CHECKING:
    from collections.abc import Sequence

Engine = Literal["kernels", "torch"]


class EngineError(ValueError):
    """No such engine or device here."""


class AnyCache:
    """What `capacity` streams of one network remember, a row each; every engine adds the state itself.

    tokens: (capacity,) int64, tokens judged since the last reset.
    macs: (capacity, layers + 2, 6) int64, multiply-accumulates done; see `models.counting`.
    pruned: (capacity, 2) int64, multiply-accumulates that pruned scores and silent heads left out.
    point, scale: per stream, which thresholds gate it, and a factor on them.
    """

    def __init__(self, config: ModelConfig, capacity: int) -> None:
        self.config = config
        self.tokens = np.zeros(capacity, np.int64)
        self.macs = np.zeros((capacity, config.layers + 2, len(BLOCK_GATES)), np.int64)
        self.pruned = np.zeros((capacity, 2), np.int64)
        self.point = np.zeros(capacity, np.int64)
        self.scale = np.ones(capacity, np.float32)

    @property
    def bytes_per_row(self) -> int:
        """Memory of one stream, counters included."""
        return sum(array[:1].nbytes for array in (self.tokens, self.macs, self.pruned, self.point, self.scale))

    def reset(self, row: int) -> None:
        """Back to the start of a stream; its operating point stays.

        The state itself is left to the step that finds `tokens == 0`, so rows nobody used cost no memory.
        """
        self.tokens[row] = 0
        self.macs[row] = 0
        self.pruned[row] = 0

    def forget(self, row: int) -> None:
        """Give a row's memory back to the system, if that is possible; to be `reset` before it is used again."""

    def configure(self, row: int, point: int, scale: float = 1.0) -> None:
        """Choose a stream's operating point (index into the network's points) and a factor on its thresholds."""
        self.point[row], self.scale[row] = point, scale


class AnyNetwork(ABC):
    """A checkpoint that an engine runs: const, shared by every stream and thread; see `models.network.Network`."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self.checkpoint, self.config = checkpoint, checkpoint.config
        self.thresholds = {DENSE: dict.fromkeys(gate_names(self.config), 0.0), **checkpoint.points}
        self.points = tuple(self.thresholds)

    def new_cache(self, capacity: int, point: str = DENSE, scale: float = 1.0) -> Any:  # noqa: ANN401 (the engine's own)
        """Room for `capacity` streams, each at its beginning, at an operating point: an `AnyCache`."""
        cache = self.empty_cache(capacity)
        cache.point[:], cache.scale[:] = self.points.index(point), scale
        return cache

    @abstractmethod
    def empty_cache(self, capacity: int) -> AnyCache:
        """The kind of cache that this engine takes."""

    @abstractmethod
    def embed(
        self,
        cache: Any,  # noqa: ANN401
        rows: NDArray[np.int64],
        frames: Array,
        counts: NDArray[np.int64] | None = None,
    ) -> tuple[Array, Array]:
        """Advance a batch of streams; the logits (N, K), and what the read-out pooled (N, C)."""

    def step(
        self,
        cache: Any,  # noqa: ANN401
        rows: NDArray[np.int64],
        frames: Array,
        counts: NDArray[np.int64] | None = None,
    ) -> Array:
        """Advance a batch of streams as `embed` does; return the logits (N, K) alone."""
        return self.embed(cache, rows, frames, counts)[0]

    def warm_up(self) -> None:
        """Compile, or load what an earlier start compiled, by judging one second of silence, front end included."""
        frames = second_of_silence(self.config)
        self.step(self.new_cache(1), np.zeros(1, np.int64), frames, np.array([len(frames)]))


def devices() -> Sequence[str]:
    """Where torch can run here.

    Raises:
        ModuleNotFoundError: torch is not installed.
    """
    import torch

    return ["cpu", *(f"cuda:{number}" for number in range(torch.cuda.device_count()))]


def check_engine(engine: Engine, device: str) -> None:
    """Refuse what cannot run here.

    Raises:
        EngineError: for a device that is not there.
        ModuleNotFoundError: torch is wanted and not installed.
    """
    if engine == "kernels":
        if device != "cpu":
            raise EngineError(f"kernels run on cpu only, not on {device!r}; the torch engine may")
    elif device not in (here := devices()) and f"{device}:0" not in here:
        raise EngineError(f"no device {device!r}: torch finds {', '.join(here)} here")


def make_network(checkpoint: Checkpoint, engine: Engine = "kernels", device: str = "cpu") -> AnyNetwork:
    """A checkpoint, made ready for one of the engines; see `check_engine` for errors."""
    check_engine(engine, device)
    if engine == "torch":
        from models.torch_network import TorchNetwork

        return TorchNetwork(checkpoint, device)
    from models.network import Network

    return Network(checkpoint)


def check_batch(
    network: AnyNetwork, cache: AnyCache, rows: NDArray[np.int64], counts: NDArray[np.int64], frames: Array
) -> None:
    """Refuse what is no batch of streams; arguments as in `models.network.Network.embed`.

    Raises:
        ValueError: says which argument does not fit.
    """
    token = (network.config.stride, network.config.frontend.bands)
    if frames.shape[1:] != token:
        raise ValueError(f"frames must be (N, {token[0]}, {token[1]}), got {frames.shape}")
    if counts.shape != rows.shape or counts.min(initial=0) < 0 or counts.sum() != len(frames):
        raise ValueError(f"counts must say for each of {len(rows)} rows how many of {len(frames)} tokens are its own")
    taken, capacity = rows.tolist(), len(cache.tokens)  # plain lists: nearly always there are few
    if not _within(taken, capacity) or len(set(taken)) < len(taken):
        raise ValueError(f"rows must be different ones of the cache's {capacity}, from 0, got {taken}")
    if not _within(points := cache.point[rows].tolist(), len(network.points)):
        raise ValueError(f"points must be among the network's {len(network.points)}, from 0, got {points}")


def _within(indices: list[int], size: int) -> bool:
    """Whether all of them count from 0 to less than `size`: compiled code would read whatever lies there."""
    return not indices or 0 <= min(indices) <= max(indices) < size


def second_of_silence(config: ModelConfig) -> Array:
    """Network input (N, stride, bands) of one second of digital silence, from the front end."""
    silence = np.zeros(config.frontend.sample_rate, np.float32)
    return log_mel([FrameStream(config).feed(silence)], config)
