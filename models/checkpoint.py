"""One safetensors file: weights, configuration, labels, thresholds and calibration, with a fingerprint.

Nothing in it is code. Everything but the weights is JSON in the file's metadata. Knows neither torch nor
kernels: weights are numpy arrays by the reference network's parameter names.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load, save_file

from models.aside import aside
from models.config import SILENCE, ModelConfig

FORMAT = "deltaspot-skwt-1"
DENSE = "dense"
LEARNED = "learned"
SHIPPED = "shipped"
"""Operating points that every checkpoint has, that the gated stage of training leaves, and that streams get."""
FLOATS = (np.dtype(np.float16), np.dtype(np.float32))
MOST = float(np.finfo(np.float32).max)
BACKGROUND = "background."
"""Arrays of this prefix are no weights."""
OTHERS = BACKGROUND + "others"
"""The largest of them."""


class CheckpointError(ValueError):
    """A file that is no checkpoint of ours, or not a whole one."""


@dataclass(frozen=True)
class Checkpoint:
    """A trained model and how to run it.

    weights: parameter name -> float32 array, as in `models.transformer.StreamingKWT.state_dict`. Matrices are rounded
        to what both half-precision formats can hold, so that whoever computes with them computes with the same numbers.
    points: operating point -> gate name -> threshold; the engine adds `dense`, all zeros, where it is missing.
    calibration: how posteriors become detections: {"window_tokens", "silence", "margin",
        "refractory_ms", "keywords": {word: {"threshold", "patience", perhaps "window_tokens"}}}, and what they were
        chosen for, "made_for": {"point", "false_alarms_per_hour", "exposed_hours", "seed"}; older ones do not say.
    metadata: free text, such as the recipe and the data.
    background: what keywords are enrolled against, as in `models.background`; empty where none can be.
    """

    config: ModelConfig
    weights: Mapping[str, NDArray[np.float32]]
    points: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    calibration: Mapping[str, Any] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    background: Mapping[str, NDArray[np.float32]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Round the matrices."""
        object.__setattr__(self, "weights", {name: rounded(name, array) for name, array in self.weights.items()})

    @cached_property
    def fingerprint(self) -> str:
        """Twelve hex digits of SHA-256 over everything that changes what the model says."""
        digest = hashlib.sha256(json.dumps([self.config.to_dict(), _plain(self.points)], sort_keys=True).encode())
        for name in sorted(self.weights):
            digest.update(name.encode() + np.ascontiguousarray(self.weights[name]).tobytes())
        return digest.hexdigest()[:12]

    @property
    def parameters(self) -> int:
        """Number of weights."""
        return sum(array.size for array in self.weights.values())


def is_matrix(name: str, array: NDArray[Any]) -> bool:
    """Whether an array is kept in half precision."""
    return (name.endswith(".weight") or name == OTHERS) and array.ndim > 1


def rounded(name: str, array: NDArray[np.float32]) -> NDArray[np.float32]:
    """A weight as checkpoints hold it: a matrix with the eight significant bits of bfloat16, in float16's range."""
    if not is_matrix(name, array):
        return array
    significand, exponent = np.frexp(array)
    with np.errstate(over="ignore"):  # whoever reads a file looks for what became infinite
        return np.ldexp(np.rint(significand * 256) / 256, exponent).astype(np.float16).astype(np.float32)


def _plain(value: object) -> object:
    return {k: _plain(v) for k, v in value.items()} if isinstance(value, Mapping) else value


def shipped_path() -> Path:
    """The checkpoint that comes with the package."""
    return Path(__file__).parent / "weights" / "skwt.safetensors"


def save(checkpoint: Checkpoint, path: Path) -> None:
    """Write a checkpoint; a half-written file never takes the place of a whole one."""
    metadata = {
        "format": FORMAT,
        "config": json.dumps(checkpoint.config.to_dict()),
        "points": json.dumps(_plain(checkpoint.points)),
        "calibration": json.dumps(_plain(checkpoint.calibration)),
        "metadata": json.dumps(dict(checkpoint.metadata)),
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    arrays = {**checkpoint.weights, **{BACKGROUND + name: array for name, array in checkpoint.background.items()}}
    stored = {
        name: np.ascontiguousarray(array, np.float16 if is_matrix(name, array) else np.float32)
        for name, array in arrays.items()
    }
    with aside(path) as partial:
        save_file(stored, partial, metadata)


def load_checkpoint(path: Path | None = None) -> Checkpoint:
    """Read a checkpoint; the shipped one if no other is named.

    Raises:
        CheckpointError: for a missing, broken or foreign file; the message says which and what to do.
    """
    path = path or shipped_path()
    try:
        data = path.read_bytes()
        weights = load(data)
    except FileNotFoundError as error:
        raise CheckpointError(f"no checkpoint at {path}; `deltaspot model info` shows the shipped one") from error
    except (OSError, SafetensorError, TypeError, KeyError) as error:  # the last two: number formats numpy lacks
        raise CheckpointError(f"{path} is no whole safetensors file ({error}); download or train it again") from error
    metadata = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")]).get("__metadata__", {})
    if metadata.get("format") != FORMAT:
        raise CheckpointError(f"{path} is no {FORMAT} checkpoint but {metadata.get('format', 'without a format')!r}")
    if bad := [name for name, array in weights.items() if array.dtype not in FLOATS or not np.isfinite(array).all()]:
        raise CheckpointError(f"{path} holds weights that are not finite float32 or float16: {', '.join(bad)}")
    weights = {name: array.astype(np.float32) for name, array in weights.items()}
    try:
        config = ModelConfig.from_dict(json.loads(metadata["config"]))
        rest = {name: _object(metadata[name]) for name in ("points", "calibration", "metadata")}
        _check_points(rest["points"])
        if rest["calibration"].get("silence") and SILENCE not in config.labels:
            raise ValueError(f"the calibration lets {SILENCE} gain, which is no label")  # noqa: TRY301 (as its others)
    except (ArithmeticError, AttributeError, LookupError, TypeError, ValueError) as error:
        raise CheckpointError(f"{path} has broken metadata: {error}") from error
    background = {
        name.removeprefix(BACKGROUND): weights.pop(name) for name in [*weights] if name.startswith(BACKGROUND)
    }
    checkpoint = Checkpoint(config, weights, **rest, background=background)
    if bad := [name for name, array in checkpoint.weights.items() if not np.isfinite(array).all()]:
        raise CheckpointError(f"{path} holds weights that are not finite in half precision: {', '.join(bad)}")
    return checkpoint


def _object(text: str) -> dict[str, Any]:
    """What a JSON object holds.

    Raises:
        ValueError: for any other JSON, and for none.
    """
    if not isinstance(value := json.loads(text), dict):
        raise ValueError(f"names and values were expected, not {text:.40}")  # noqa: TRY004 (as of its other mistakes)
    return value


def _check_points(points: Mapping[str, Mapping[str, Any]]) -> None:
    """Refuse thresholds that gate nothing, or everything by accident; scores alone may be dropped below a negative one.

    Raises:
        ValueError: naming the operating point.
    """
    for point, thresholds in points.items():
        for gate, value in thresholds.items():
            least = -MOST if ".score." in gate else 0.0
            if type(value) not in (int, float) or not least <= value <= MOST:
                raise ValueError(f"threshold {value!r} of {gate} at operating point {point}")
