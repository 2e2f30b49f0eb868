"""How training streams are made: the numbers of `models.segments` and `models.compose`.

They travel in a run's state and into the model card. Knows neither data nor networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

NAMED = (
    "backward", "bird", "dog", "follow", "forward", "four", "house", "learn", "marvin", "nine", "seven", "sheila",
    "six", "three", "tree", "two", "visual", "wow",
)  # fmt: skip
"""Speech Commands' other words, but for those by which `models.evaluate_enroll` judges: they have no name."""


@dataclass(frozen=True, slots=True)
class Recipe:
    """How training streams are made. Levels in dB, lengths in frames of 10 ms, shares in 0..1."""

    segments: int = 5
    wide: float = 0.5
    """Share of streams that have treble, where every label has audio."""
    trust: float = 0.5
    """How much of a clip's target is what teachers believe, where there are any; the rest is its label."""
    named: tuple[str, ...] = NAMED
    """Words that are no keyword and yet told apart while training, see `models.naming`."""
    shares: tuple[float, float, float, float] = (0.54, 0.22, 0.14, 0.10)
    """Of the segments: a keyword, an unknown word, shreds of words, silence."""
    background: float = 0.18
    """Share of streams without any speech, in which noise keeps its own level."""
    running: float = 0.08
    """Share of streams that are sentences without a keyword, where the corpus has any."""
    stretch: float = 0.15
    warp: float = 0.08
    shift: int = 10
    jitter: int = 12
    gain_db: tuple[float, float] = (-18.0, 8.0)
    segment_gain_db: float = 4.0
    noisy: float = 0.8
    snr_db: tuple[float, float] = (-3.0, 30.0)
    colour_db: float = 8.0
    """How far a noise's bands are bent up or down, so that no noise is heard twice."""
    reversed: float = 0.3
    """Share of unknown words, and of noises, that are played backwards: sounds that nobody has heard."""
    shred: int = 20
    bursts: float = 0.3
    """Share of streams with knocks and clicks."""
    babble: float = 0.15
    babble_snr_db: tuple[float, float] = (6.0, 25.0)
    pixel_noise: float = 2.0
    band_masks: int = 1
    band_mask: int = 6
    time_mask: int = 8
    unknown_weight: float = 1.5
    """Weight of an unknown word's segment; a keyword's is 1."""
    notice: int = 15
    """Frames after its onset from which an unknown word is asked for, so that its beginning does not fire."""
    settle: int = 8
    """Frames after the end of a word before its label is asked for."""
    linger: int = 40
    """Frames after the end of a word until which its label is asked for at least."""

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Self:
        """A recipe as JSON gives it back, with lists for tuples."""
        values: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in data.items()}
        return cls(**values)
