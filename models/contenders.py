"""What the benchmark of the engine measures: each contender hears chunks of audio from some streams at once.

Ours are measured with everything between samples and posteriors, front end included. A stock Keyword Transformer
judges the last second of each stream anew at every chunk, as a service without a cache does. Knows no clock.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from numpy.typing import NDArray

from models.config import ModelConfig
from models.counting import Count, causal_macs, count, nothing, window_macs
from models.features import Array, FrameStream, log_mel
from models.network import Network
from models.offline import softmax

if TYPE_CHECKING:
    from models.torch_network import TorchNetwork

Judge = Callable[[Array], object]
"""Recordings of equal length (B, S), int16 values, judged from nothing."""


class Contender(Protocol):
    """Something that listens to `sessions` streams.

    bytes_per_session: what it remembers of one stream.
    """

    bytes_per_session: int

    def hear(self, chunks: Array) -> None:
        """Take the next samples of every stream, (sessions, S)."""

    def work(self) -> Count | None:
        """Multiply-accumulates so far, of all streams; None where they are not counted."""


class FrontEnd:
    """Samples to frames, for any number of streams."""

    def __init__(self, config: ModelConfig, sessions: int) -> None:
        self.config = config
        self.streams = [FrameStream(config) for _ in range(sessions)]
        self.bytes_per_session = 4 * (config.token_samples + config.frontend.window - config.frontend.hop)

    def hear(self, chunks: Array) -> None:
        """See `Contender`."""
        self.frames(chunks)

    def frames(self, chunks: Array) -> tuple[Array, NDArray[np.int64]]:
        """Samples (sessions, S) -> network input (N, stride, bands), and how many of these N tokens each stream has."""
        tokens = [stream.feed(samples) for stream, samples in zip(self.streams, chunks, strict=True)]
        return log_mel(tokens, self.config), np.array([len(each) for each in tokens], np.int64)

    def work(self) -> Count | None:
        """See `Contender`."""
        return None


class Streaming:
    """Our network with its cache: each token is computed once."""

    def __init__(self, network: Network | TorchNetwork, point: str, sessions: int) -> None:
        self.network: Any = network  # either engine: same interface, other tensors
        self.front_end = FrontEnd(network.config, sessions)
        self.cache = network.new_cache(sessions, point)
        self.rows = np.arange(sessions)
        self.bytes_per_session = self.front_end.bytes_per_session + self.cache.bytes_per_row

    def hear(self, chunks: Array) -> None:
        """See `Contender`."""
        frames, counts = self.front_end.frames(chunks)
        some = counts > 0
        softmax(self.network.step(self.cache, self.rows[some], frames, counts[some]))

    def work(self) -> Count | None:
        """See `Contender`; torch counts what a gate lets through, and multiplies by the rest as well."""
        if not isinstance(self.network, Network):
            return None
        return sum((count(self.cache, row) for row in range(len(self.rows))), nothing(self.network.config))


class Recomputed:
    """A network that judges the last `window` samples of each stream from nothing at every chunk."""

    def __init__(self, judge: Judge, sessions: int, window: int) -> None:
        self.judge = judge
        self.heard = np.zeros((sessions, window), np.float32)
        self.bytes_per_session = self.heard[0].nbytes

    def hear(self, chunks: Array) -> None:
        """See `Contender`; chunks are at most a window long."""
        self.heard = np.concatenate((self.heard[:, chunks.shape[1] :], chunks), axis=1)
        self.judge(self.heard)

    def work(self) -> Count | None:
        """See `Contender`."""
        return None


class OursRecomputed(Recomputed):
    """Our network, dense and compiled, without its cache: one second anew at every chunk, not at every token."""

    def __init__(self, network: Network, sessions: int) -> None:
        super().__init__(self._judge, sessions, network.config.frontend.sample_rate)
        self.network, self.cache = network, network.new_cache(sessions)
        self.rows = np.arange(sessions)
        self.samples = 0
        self.macs = nothing(network.config).layers

    def hear(self, chunks: Array) -> None:
        """See `Contender`."""
        super().hear(chunks)
        self.samples += chunks.size
        self.macs = self.macs + self.cache.macs.sum(axis=0)

    def work(self) -> Count:
        """See `Contender`; the baselines are those of the tokens heard, not of the tokens computed."""
        config, tokens = self.network.config, self.samples // self.network.config.token_samples
        return Count(tokens, self.macs, causal_macs(config, tokens), window_macs(config, tokens))

    def _judge(self, recordings: Array) -> object:
        for row in range(len(recordings)):
            self.cache.reset(row)
        frames, counts = FrontEnd(self.network.config, len(recordings)).frames(recordings)
        return softmax(self.network.step(self.cache, self.rows, frames, counts))


def stock_judges(path: Path) -> tuple[dict[str, Judge], list[str]]:
    """The stock Keyword Transformer of a tflite file in every runtime that is here.

    Returns:
        By name of the runtime how it judges, and a note on each runtime that is missing.
    """
    judges: dict[str, Judge] = {}
    notes = []
    for name, make in {"LiteRT": _litert, "ONNX Runtime": _onnx, "torch": _torch}.items():
        try:
            judges[name] = make(path)
        except ImportError as error:
            notes.append(f"stock KWT-1, {name}: left out, {error.name} is not installed")
    return judges, notes


def _litert(path: Path) -> Judge:
    import ai_edge_litert.interpreter  # noqa: F401 - says which library is missing

    from models.kwt_import import reference

    judge = reference(path)
    return lambda recordings: [judge(samples) for samples in recordings]


def _torch(path: Path) -> Judge:
    import torch

    from models.kwt import KWT
    from models.kwt_import import import_tflite

    model = KWT(*import_tflite(path)).eval()

    def judge(recordings: Array) -> object:
        with torch.inference_mode():
            return model(torch.from_numpy(recordings)).numpy()

    return judge


def _onnx(path: Path) -> Judge:
    """Our torch import of the file, exported: every stream judged in one run."""
    import onnx  # noqa: F401 - the exporter needs it
    import onnxruntime
    import torch

    from models.kwt import KWT
    from models.kwt_import import import_tflite

    file: Any = io.BytesIO()  # the exporter takes files too, and says otherwise
    config, weights = import_tflite(path)
    clip = torch.zeros(1, config.clip_samples)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # tracing fixes the shapes, which is meant
        torch.onnx.export(
            KWT(config, weights).eval(), (clip,), file, dynamo=False, opset_version=17, input_names=["samples"]
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
    return lambda recordings: [session.run(None, {"samples": samples[None]}) for samples in recordings]
