"""Stock Keyword Transformer (Berg et al. 2021): its shape, its weights, and the file they live in.

A checkpoint is one safetensors file whose header says `format = deltaspot-kwt` and carries the shape as JSON;
the front end's constants are weights like any other, so nothing about the network is written down twice.
Knows nothing of torch, of tflite or of audio files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from models.aside import aside
from models.config import LABELS, ConfigError
from models.features import Array
from models.headers import format_of

FORMAT = "deltaspot-kwt"
FULL_SCALE = 32_768.0
"""int16 values per unit of the network's own input."""

PRODUCTS = ("qkv", "scores", "values")
"""Groups of multiply-accumulates that are the three attention products."""

Weights = Mapping[str, Array]
"""Tensors by name; matrices are (out, in)."""


class KWTFileError(ValueError):
    """A file that holds no stock Keyword Transformer; the message says what was found instead."""


@dataclass(frozen=True, slots=True)
class KWTConfig:
    """Shape of a stock Keyword Transformer; the defaults are KWT-1.

    KWT-2 has 128 channels and 2 heads, KWT-3 has 192 channels and 3 heads; `hidden` is 4 * channels.
    """

    labels: tuple[str, ...] = LABELS
    clip_samples: int = 16_000
    window: int = 480
    hop: int = 160
    bins: int = 244
    bands: int = 80
    coefficients: int = 40
    channels: int = 64
    layers: int = 12
    heads: int = 1
    hidden: int = 256
    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built.

        Raises:
            ConfigError: naming the field.
        """
        if self.channels % self.heads:
            raise ConfigError(f"channels ({self.channels}) must be a multiple of heads ({self.heads})")

    @property
    def frames(self) -> int:
        """MFCC frames of a clip."""
        return 1 + (self.clip_samples - self.window) // self.hop

    @property
    def tokens(self) -> int:
        """Tokens that attention sees: the class token, then a token per frame."""
        return 1 + self.frames

    def macs(self) -> dict[str, int]:
        """Dense multiply-accumulates of one clip by group, front end left out."""
        n, c, layers = self.tokens, self.channels, self.layers
        return {
            "stem": self.frames * self.coefficients * c,
            "qkv": layers * n * 3 * c * c,
            "scores": layers * n * n * c,
            "values": layers * n * n * c,
            "out": layers * n * c * c,
            "up": layers * n * c * self.hidden,
            "down": layers * n * c * self.hidden,
            "readout": c * len(self.labels),
        }

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of a checkpoint and its shape."""
        c = self.channels
        shapes: dict[str, tuple[int, ...]] = {
            "frontend.window": (self.window,),
            "frontend.cosine": (self.bins, self.window),
            "frontend.sine": (self.bins, self.window),
            "frontend.mel": (self.bands, self.bins),
            "frontend.dct": (self.coefficients, self.bands),
            "frontend.offset": (),
            "frontend.scale": (self.coefficients,),
            "stem.weight": (c, self.coefficients),
            "stem.bias": (c,),
            "class_token": (c,),
            "positions": (self.tokens, c),
            "head.weight": (len(self.labels), c),
            "head.bias": (len(self.labels),),
        }
        for i in range(self.layers):
            shapes |= {
                f"blocks.{i}.qkv.weight": (3 * c, c),
                f"blocks.{i}.out.weight": (c, c),
                f"blocks.{i}.out.bias": (c,),
                f"blocks.{i}.up.weight": (self.hidden, c),
                f"blocks.{i}.up.bias": (self.hidden,),
                f"blocks.{i}.down.weight": (c, self.hidden),
                f"blocks.{i}.down.bias": (c,),
            }
            shapes |= {f"blocks.{i}.{norm}.{part}": (c,) for norm in ("norm1", "norm2") for part in ("weight", "bias")}
        return shapes


def parameters(weights: Weights) -> int:
    """Number of trained weights; the front end's constants are not."""
    return sum(value.size for name, value in weights.items() if not name.startswith("frontend."))


def fingerprint(config: KWTConfig, weights: Weights) -> str:
    """Twelve hex digits of SHA-256 over everything that changes what the network says."""
    digest = hashlib.sha256(json.dumps(asdict(config), sort_keys=True).encode())
    for name in sorted(weights):
        digest.update(name.encode() + np.ascontiguousarray(weights[name]).tobytes())
    return digest.hexdigest()[:12]


def is_stock(path: Path) -> bool:
    """Whether a file is such a checkpoint, going by its header alone."""
    return format_of(path) == FORMAT


def check(config: KWTConfig, weights: Weights) -> None:
    """Compare tensors with the shape they should have.

    Raises:
        KWTFileError: naming the first tensor that is missing, unknown, of another shape, or not finite.
    """
    shapes = config.shapes()
    if odd := sorted(set(shapes) ^ set(weights)):
        raise KWTFileError(f"tensor {odd[0]} is {'missing' if odd[0] in shapes else 'unknown'}")
    for name, shape in shapes.items():
        if weights[name].shape != shape:
            raise KWTFileError(f"tensor {name} must be {shape}, got {weights[name].shape}")
        if not np.isfinite(weights[name]).all():
            raise KWTFileError(f"tensor {name} holds NaN or infinite numbers")


def save(path: Path, config: KWTConfig, weights: Weights) -> None:
    """Write a checkpoint.

    Raises:
        KWTFileError: for tensors that do not fit the shape.
    """
    check(config, weights)
    tensors: dict[str, NDArray[np.float32]] = {name: np.array(value, order="C") for name, value in weights.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    with aside(path) as partial:
        save_file(tensors, partial, metadata={"format": FORMAT, "config": json.dumps(asdict(config))})


def load(path: Path) -> tuple[KWTConfig, dict[str, Array]]:
    """Read a checkpoint.

    Raises:
        KWTFileError: for a file that is none.
    """
    try:
        with safe_open(path, "numpy") as file:
            header = file.metadata() or {}
            weights = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
    except (OSError, SafetensorError, TypeError) as error:  # the last: number formats numpy lacks
        raise KWTFileError(f"cannot read {path}: {error}") from error
    if header.get("format") != FORMAT:
        raise KWTFileError(f"{path} holds no stock Keyword Transformer (format {header.get('format')!r})")
    try:
        fields = json.loads(header["config"])
        config = KWTConfig(**fields | {"labels": tuple(fields["labels"])})
        check(config, weights)
    except KWTFileError as error:
        raise KWTFileError(f"{path}: {error}") from None
    except (ArithmeticError, LookupError, TypeError, ValueError) as error:
        raise KWTFileError(f"{path} has a broken shape: {error!r}") from error
    return config, weights
