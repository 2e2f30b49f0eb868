"""The numbers that define a model; they travel inside its checkpoint.

Knows nothing of weights, files or arrays.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any, Self

KEYWORDS = ("yes", "no", "up", "down", "left", "right", "on", "off", "stop", "go")
SILENCE = "_silence_"
UNKNOWN = "_unknown_"
LABELS = (SILENCE, UNKNOWN, *KEYWORDS)
"""The twelve labels of Speech Commands V2-12, in the order of the network's outputs."""


SAMPLE_RATE = 16_000
"""Of all audio that is judged: samples in a second."""
FFT_SIZES = (128, 512, 2_048)
"""Twice a power of 4: lengths of the compiled transform (`models.spectrum`), which takes 16 samples at a time."""
FILTER_SHAPES = ((6, 2), (4, 2), (3, 1))
"""Bands that each convolution over frequency reaches over, and its stride."""


class ConfigError(ValueError):
    """A model configuration that cannot be built; the message names the field."""


def _check_sizes(config: object, *names: str) -> None:
    """Refuse fields that are no whole numbers above 0.

    Raises:
        ConfigError: naming the first.
    """
    for name in names:
        if type(size := getattr(config, name)) is not int or size < 1:
            raise ConfigError(f"{name} must be a whole number above 0, got {size!r}")


@dataclass(frozen=True, slots=True)
class FrontEndConfig:
    """Log-mel front end: 16 kHz samples in, one frame of `bands` values every `hop` samples out.

    The lowest bands are evenly spaced in mel from `low_hz` to `high_hz`; the last `treble` of them lie above, up to
    `top_hz`, where sibilants are.
    """

    sample_rate: int = SAMPLE_RATE
    window: int = 480
    hop: int = 160
    fft: int = 512
    bands: int = 48
    treble: int = 8
    low_hz: float = 0.0
    high_hz: float = 4_000.0
    top_hz: float = 7_600.0

    def __post_init__(self) -> None:
        """Refuse what nothing is heard through, or no compiled step takes.

        Raises:
            ConfigError: naming the numbers, and what they must be.
        """
        _check_sizes(self, "window", "hop", "bands")
        if self.sample_rate != SAMPLE_RATE:
            raise ConfigError(f"sample_rate must be {SAMPLE_RATE}, got {self.sample_rate}")
        if self.fft not in FFT_SIZES or self.window % 16 or self.window > self.fft:
            raise ConfigError(f"fft must be one of {FFT_SIZES}, window a multiple of 16 below, got {self}")
        if self.hop > self.window:
            raise ConfigError(f"hop ({self.hop}) must be at most window ({self.window}), or samples are lost")
        if not 0 <= self.low_hz < self.high_hz < self.top_hz <= SAMPLE_RATE / 2:
            raise ConfigError(f"low_hz, high_hz and top_hz must rise, from 0 on to {SAMPLE_RATE / 2:g} at most")
        if not 0 <= self.treble < self.bands:
            raise ConfigError(f"treble ({self.treble}) must be less than bands ({self.bands}), and not below 0")

    @property
    def base(self) -> int:
        """Bands up to `high_hz`."""
        return self.bands - self.treble


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """Shape of the streaming Keyword Transformer.

    One token is made of the newest `kernel` frames every `stride` frames, so a token lasts
    `stride * hop` samples. Attention sees the last `span` tokens, the read-out the last `pool_span`. `folds` has a
    factor for each layer, see `models.folding`; empty where none is folded. `filters` has the number of filters of each
    convolution over frequency beside the stem; empty where there is none.
    """

    frontend: FrontEndConfig = field(default_factory=FrontEndConfig)
    labels: tuple[str, ...] = LABELS
    stride: int = 3
    kernel: int = 7
    channels: int = 96
    layers: int = 6
    heads: int = 3
    hidden: int = 384
    span: int = 16
    pool_span: int = 32
    folds: tuple[int, ...] = ()
    filters: tuple[int, ...] = (32, 48, 48)

    def __post_init__(self) -> None:
        """Refuse shapes that cannot be built.

        Raises:
            ConfigError: naming the field and what it must be.
        """
        _check_sizes(self, "stride", "kernel", "channels", "layers", "heads", "hidden", "span", "pool_span")
        if self.channels % self.heads:
            raise ConfigError(f"channels ({self.channels}) must be a multiple of heads ({self.heads})")
        if self.kernel < self.stride:
            raise ConfigError(f"kernel ({self.kernel}) must be at least stride ({self.stride}), or frames are lost")
        if self.folds and (len(self.folds) != self.layers or min(self.folds) < 1):
            raise ConfigError(f"folds must have one factor for each of {self.layers} layers, got {self.folds}")
        if len(self.filters) > len(FILTER_SHAPES) or min(self.filters, default=1) < 1:
            raise ConfigError(f"filters must be up to {len(FILTER_SHAPES)} numbers above 0, got {self.filters}")
        if min(self.filter_places) < 1:
            raise ConfigError(f"filters {self.filters} need more than {self.frontend.bands} bands")
        if len(set(self.labels)) != len(self.labels):
            raise ConfigError(f"labels must be distinct, got {self.labels}")

    @property
    def factors(self) -> tuple[int, ...]:
        """Sub-tokens into which each layer folds a token (`models.folding`); 1 for a plain layer."""
        return self.folds or (1,) * self.layers

    def folded(self, factor: int) -> Self:
        """The shape of a layer folded by `factor`: channels, hidden units and heads divided by it.

        Raises:
            ConfigError: where a number does not divide.
        """
        if self.channels % factor or self.hidden % factor:
            raise ConfigError(f"channels ({self.channels}) and hidden ({self.hidden}) must be multiples of {factor}")
        heads = max(1, self.heads // factor)
        return replace(self, channels=self.channels // factor, hidden=self.hidden // factor, heads=heads)

    @property
    def head_channels(self) -> int:
        """Channels of one attention head."""
        return self.channels // self.heads

    @property
    def stem_inputs(self) -> int:
        """Values that one token is made of: `kernel * bands`."""
        return self.kernel * self.frontend.bands

    @property
    def filter_inputs(self) -> tuple[int, ...]:
        """Values at each place of every convolution's input, and of the last one's output: frames, then filters."""
        return (self.kernel, *self.filters)

    @property
    def filter_places(self) -> tuple[int, ...]:
        """Places along frequency at the input of each convolution, and at the output of the last one."""
        places = [self.frontend.bands]
        for reach, stride in FILTER_SHAPES[: len(self.filters)]:
            places.append((places[-1] - reach) // stride + 1)
        return tuple(places)

    @property
    def token_samples(self) -> int:
        """Samples between two tokens."""
        return self.stride * self.frontend.hop

    @property
    def longest_span(self) -> int:
        """Tokens that the longest memory holds, the newest included."""
        return max(self.span, self.pool_span)

    def indices(self, words: Iterable[str]) -> list[int]:
        """The label of each word, as its index; words that have none of their own are unknown."""
        index = {word: i for i, word in enumerate(self.labels)}
        return [index.get(word, index[UNKNOWN]) for word in words]

    def tokens_over(self, samples: int) -> int:
        """Tokens that it takes to hold so many samples, the last of them filled up."""
        return max(1, -(-(samples - self.frontend.window + self.frontend.hop) // self.token_samples))

    @property
    def receptive_tokens(self) -> int:
        """Tokens of the past that can reach one posterior: what every layer looks back, and the read-out."""
        return self.layers * (self.span - 1) + self.pool_span

    @property
    def receptive_samples(self) -> int:
        """Samples of the past that can reach one posterior of the dense network."""
        frames = (self.receptive_tokens - 1) * self.stride + self.kernel
        return (frames - 1) * self.frontend.hop + self.frontend.window

    @property
    def keywords(self) -> tuple[str, ...]:
        """Labels that may be detected: all but silence and unknown."""
        return tuple(label for label in self.labels if label not in (SILENCE, UNKNOWN))

    def to_dict(self) -> dict[str, Any]:
        """Plain types, ready for JSON; without folds or filters, nothing of them, so old fingerprints hold."""
        return {name: value for name, value in asdict(self).items() if name not in {"folds", "filters"} or value}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Self:
        """Inverse of `to_dict`.

        Raises:
            ConfigError: for a field this version does not know.
        """
        known = {f.name for f in fields(cls)}
        if unknown := set(data) - known:
            raise ConfigError(f"unknown model fields {sorted(unknown)}; this checkpoint needs a newer deltaspot")
        values = {"filters": (), **data}
        values["frontend"] = FrontEndConfig(**{"treble": 0, **values.get("frontend", {})})
        for name in {"labels", "folds", "filters"} & set(values):
            values[name] = tuple(values[name])
        return cls(**values)


BLOCK_GATES = ("qkv", "query", "weights", "out", "up", "down")
READOUT_GATES = ("query", "weights", "head")


def stem_gates(config: ModelConfig) -> tuple[str, ...]:
    """The gates of the stem: of the frames, and of each convolution's outputs."""
    return ("stem", *(f"filters{i + 1}" for i in range(len(config.filters))))


def gate_names(config: ModelConfig) -> tuple[str, ...]:
    """Every gate of a network, in the order in which a token meets them."""
    blocks = (f"block{i}.{kind}" for i in range(config.layers) for kind in BLOCK_GATES)
    return (*stem_gates(config), *blocks, *(f"readout.{kind}" for kind in READOUT_GATES))
