"""What every engine offers that runs a checkpoint, and the choice of one: the compiled kernels, or torch.

Knows neither engine until it is asked for; see `models.network` and `models.torch_network`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from models.checkpoint import Checkpoint
from models.config import ModelConfig
from models.features import Array, FrameStream, log_mel

if TYPE_CHECKING:
    from collections.abc import Sequence

Engine = Literal["kernels", "torch"]


class EngineError(ValueError):
    """No such engine or device here."""


class AnyCache(Protocol):
    """What the streams of one network remember; see `models.cache.Cache`."""

    config: ModelConfig
    tokens: NDArray[np.int64]
    macs: NDArray[np.int64]
    pruned: NDArray[np.int64]
    point: NDArray[np.int64]
    scale: Array

    @property
    def bytes_per_row(self) -> int:
        """Memory of one stream."""

    def reset(self, row: int) -> None:
        """Back to the start of a stream; its operating point stays."""

    def forget(self, row: int) -> None:
        """Give a row's memory back to the system, if that is possible; to be `reset` before it is used again."""

    def configure(self, row: int, point: int, scale: float = 1.0) -> None:
        """Choose a stream's operating point and a factor on its thresholds."""


class AnyNetwork(Protocol):
    """A checkpoint that an engine runs; see `models.network.Network`."""

    checkpoint: Checkpoint
    config: ModelConfig
    points: tuple[str, ...]

    def new_cache(self, capacity: int) -> Any:  # noqa: ANN401 (each engine takes its own kind of cache)
        """Room for `capacity` streams: an `AnyCache` that this engine knows."""

    def step(
        self,
        cache: Any,  # noqa: ANN401
        rows: NDArray[np.int64],
        frames: Array,
        counts: NDArray[np.int64] | None = None,
    ) -> Array:
        """Advance a batch of streams; the logits (N, K)."""

    def embed(
        self,
        cache: Any,  # noqa: ANN401
        rows: NDArray[np.int64],
        frames: Array,
        counts: NDArray[np.int64] | None = None,
    ) -> tuple[Array, Array]:
        """Advance a batch of streams; the logits (N, K), and what the read-out pooled (N, C)."""

    def warm_up(self) -> None:
        """Compile, or whatever else would make the first stream wait."""


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
