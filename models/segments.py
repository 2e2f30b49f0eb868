"""What is said in training streams: clips, shreds of clips and sentences, drawn and perturbed, as pixels.

Pictures end at 4 kHz. A stream is either wide, of audio alone, or narrow, of pictures and audio alike: so a network
learns from both, and knows what a telephone line leaves of a word. Knows nothing of levels and noise.

Letters: R segments, M bands.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from models.config import SILENCE, UNKNOWN, ModelConfig
from models.data import CLIP_FRAMES, Corpus
from models.recipe import Recipe

KEYWORD, OTHER, SHREDS = range(3)


class Chance:
    """Random tensors from one generator, which makes runs repeatable."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = generator

    def uniform(self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        """Real numbers from `low` to `high`."""
        return torch.rand(shape, generator=self.generator) * (high - low) + low

    def integers(self, low: int, high: int, shape: tuple[int, ...]) -> Tensor:
        """Whole numbers from `low` up to, not including, `high`."""
        return torch.randint(low, high, shape, generator=self.generator)


class Deck:
    """Clips to draw from: of each word, those that `usable` (n,) admits."""

    def __init__(self, corpus: Corpus, config: ModelConfig, usable: NDArray[np.bool_]) -> None:
        words = sorted(set(corpus.words[usable].tolist()))
        self.members = {w: np.flatnonzero(usable & (corpus.words == w)) for w in words}
        keywords = [w for w in words if w in config.keywords]
        others = [w for w in words if w not in config.labels]
        self.words = {KEYWORD: keywords, OTHER: others, SHREDS: others * 2 + keywords}
        self.complete = len(keywords) == len(config.keywords) and bool(others)
        self._cuts = {kind: self._shares(kind) for kind in self.words if self.words[kind]}

    def draw(self, kind: int, chances: tuple[float, float]) -> int:
        """A clip from two random numbers in 0..1: keywords equally likely, rare other words less than frequent ones."""
        word = self.words[kind][int(np.searchsorted(self._cuts[kind], chances[0], side="right"))]
        return int(self.members[word][int(chances[1] * len(self.members[word]))])

    def _shares(self, kind: int) -> NDArray[np.float64]:
        """Upper ends of the words' shares of 0..1."""
        counts = [len(self.members[word]) for word in self.words[kind]]
        weights = np.ones(len(counts)) if kind == KEYWORD else np.sqrt(counts)
        shares = weights.cumsum() / weights.sum()
        shares[-1] = np.inf  # rounding
        return shares


@dataclass(frozen=True, slots=True)
class Said:
    """Segments: pixels (R, 98, M) float; names (R,) among labels and `Recipe.named`; beliefs (R, K)."""

    pixels: Tensor
    names: Tensor
    beliefs: Tensor


class Speaker:
    """Draws segments from a corpus."""

    def __init__(self, corpus: Corpus, config: ModelConfig, recipe: Recipe, chance: Chance) -> None:
        self.recipe, self.chance = recipe, chance
        self.base, self.labels = config.frontend.base, len(config.labels)
        index = {word: i for i, word in enumerate((*config.labels, *recipe.named))}
        self.silence, self.unknown = index[SILENCE], index[UNKNOWN]
        self.decks = {False: Deck(corpus, config, np.ones_like(corpus.raw)), True: Deck(corpus, config, corpus.raw)}
        self.wide_share = recipe.wide if self.decks[True].complete else 0.0
        self.pixels, self.speech = torch.from_numpy(corpus.pixels), torch.from_numpy(corpus.speech)
        self.pictures = torch.from_numpy(~corpus.raw)
        self.names = torch.tensor([index.get(word, self.unknown) for word in corpus.words.tolist()])
        known = self.names.where(self.names < self.labels, self.unknown)
        self.certain = torch.eye(self.labels)
        self.beliefs = self.certain[known]
        if corpus.beliefs is not None:
            self.beliefs = self.beliefs.lerp(torch.from_numpy(corpus.beliefs), recipe.trust)

    def segments(self, wide: Tensor) -> Said:
        """One segment for each place in a wide or narrow stream (R,)."""
        count = len(wide)
        shares = torch.tensor(self.recipe.shares)
        kinds = torch.multinomial(shares, count, replacement=True, generator=self.chance.generator)
        pixels = torch.zeros(count, CLIP_FRAMES, self.pixels.shape[2])
        names = torch.full((count,), self.silence)
        beliefs = self.certain[names]
        for kind in (KEYWORD, OTHER):
            clips = self._draw(kind, wide[kinds == kind])
            pixels[kinds == kind], names[kinds == kind] = self._clips(clips), self.names[clips]
            beliefs[kinds == kind] = self.beliefs[clips]
        backwards = (kinds == OTHER) & (self.chance.uniform((count,)) < self.recipe.reversed)
        pixels[backwards] = pixels[backwards].flip(1)
        pixels[kinds == SHREDS] = self._shreds(wide[kinds == SHREDS])
        nameless = backwards | (kinds == SHREDS)
        names[nameless], beliefs[nameless] = self.unknown, self.certain[self.unknown]
        return Said(pixels, names, beliefs)

    def sentences(self, streams: int) -> Tensor:
        """Running speech, cut into the segments of each stream: (streams * segments, 98, M)."""
        length = self.recipe.segments * CLIP_FRAMES
        start = self.chance.integers(0, max(1, len(self.speech) - length), (streams, 1))
        rows = (start + torch.arange(length)).clamp(max=len(self.speech) - 1)
        return self.speech[rows].float().view(-1, CLIP_FRAMES, self.speech.shape[1])

    def perturb(self, pixels: Tensor) -> Tensor:
        """Stretch in time, warp in frequency and shift, in one bilinear resampling."""
        recipe, uniform, (count, length, bands) = self.recipe, self.chance.uniform, pixels.shape
        rate = 1.0 + uniform((count, 1), -recipe.stretch, recipe.stretch)
        shift = uniform((count, 1), -recipe.shift, recipe.shift) * 2 / length
        warp = 1.0 + uniform((count, 1), -recipe.warp, recipe.warp)
        time = torch.linspace(-1, 1, length)[None] * rate + shift
        band = (torch.linspace(-1, 1, bands)[None] + 1) * warp - 1
        grid = torch.stack((band[:, None, :].expand(-1, length, -1), time[:, :, None].expand(-1, -1, bands)), dim=-1)
        edge = "border" if uniform((1,)) < 0.5 else "zeros"
        return F.grid_sample(pixels[:, None], grid, padding_mode=edge, align_corners=True)[:, 0]

    def _draw(self, kind: int, wide: Tensor) -> Tensor:
        """Clips for places in wide and narrow streams (R,): (R,) int64."""
        chances = self.chance.uniform((len(wide), 2)).tolist()
        drawn = [self.decks[w].draw(kind, (a, b)) for w, (a, b) in zip(wide.tolist(), chances, strict=True)]
        return torch.tensor(drawn, dtype=torch.int64)

    def _clips(self, clips: Tensor) -> Tensor:
        """Pixels of clips (R,) as float: (R, 98, M). What a picture lacks must not leak into the bands below it."""
        pixels, pictures = self.pixels[clips].float(), self.pictures[clips]
        pixels[pictures, :, self.base :] = pixels[pictures, :, self.base - 1 : self.base]
        return pixels

    def _shreds(self, wide: Tensor) -> Tensor:
        """Pieces of words, too short to be one, without a pause, as in running speech: (R, 98, M)."""
        length, count = self.recipe.shred, len(wide)
        pieces = -(-CLIP_FRAMES // length)
        clips = self._clips(self._draw(SHREDS, wide.repeat_interleave(pieces)))
        if not count:
            return clips
        onset, end = active_span(clips)
        room = (end - onset - length).clamp(min=0)
        start = onset + (self.chance.uniform((len(clips),)) * (room + 1)).long()
        rows = (start[:, None] + torch.arange(length)).clamp(max=CLIP_FRAMES - 1)
        cut = clips.gather(1, rows[..., None].expand(-1, -1, clips.shape[2]))
        return cut.view(count, pieces * length, -1)[:, :CLIP_FRAMES]


def active_span(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """First and last frame that stand out of a clip's own floor: two (R,) int64, for (R, T, M) pixels."""
    loudness = pixels.mean(dim=2)
    floor, peak = loudness.quantile(0.1, dim=1, keepdim=True), loudness.amax(dim=1, keepdim=True)
    active = loudness > floor + 0.35 * (peak - floor)
    place = torch.arange(loudness.shape[1])
    last = torch.where(active, place, 0).amax(dim=1)
    first = torch.where(active, place, loudness.shape[1] - 1).amin(dim=1)
    return first, last
