"""Training streams, composed from clips in the power domain: what a microphone might hear in three seconds.

A stream is a row of segments: keywords, unknown words, shreds of several words, and silence, each stretched,
warped in frequency and shifted, laid end to end over noise and babble at random levels. The first segment
starts where the stream starts, as a clip does; the later ones meet a cache with somebody else's past.

Every token gets a target and a weight. A word counts from shortly after it ended until it leaves the window;
silence counts once the last word has left. In between nothing is asked (weight 0).
Knows nothing of networks; draws from one `torch.Generator`.
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
from models.features import ENERGY_FLOOR, PIXEL_MAX

SEGMENT_KINDS = ("keyword", "unknown", "shreds", "silence")


@dataclass(frozen=True, slots=True)
class Recipe:
    """How training streams are made. Levels in dB, lengths in frames of 10 ms, shares in 0..1."""

    segments: int = 3
    shares: tuple[float, float, float, float] = (0.58, 0.18, 0.14, 0.10)
    background: float = 0.12
    """Share of streams without any speech, in which noise keeps its own level."""
    running: float = 0.08
    """Share of streams that are sentences without a keyword, where the corpus has any."""
    stretch: float = 0.15
    warp: float = 0.08
    shift: int = 10
    jitter: int = 12
    gain_db: tuple[float, float] = (-18.0, 8.0)
    segment_gain_db: float = 4.0
    noisy: float = 0.75
    snr_db: tuple[float, float] = (-3.0, 30.0)
    colour_db: float = 8.0
    """How far a noise's bands are bent up or down, so that no noise is heard twice."""
    reversed: float = 0.3
    """Share of unknown words that are played backwards: speech that nobody has heard."""
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
    linger: int = 32
    """Frames after the end of a word until which its label is asked for at least."""


@dataclass(frozen=True, slots=True)
class Batch:
    """frames (B, T, M) network input; targets (B, N) int64; weights (B, N), each segment's add up to its worth."""

    frames: Tensor
    targets: Tensor
    weights: Tensor


class Composer:
    """Draws training streams from a corpus."""

    def __init__(self, corpus: Corpus, config: ModelConfig, recipe: Recipe, generator: torch.Generator) -> None:
        self.config, self.recipe, self.generator = config, recipe, generator
        self.pixels = torch.from_numpy(corpus.pixels)
        label = {word: i for i, word in enumerate(config.labels)}
        self.silence, self.unknown = label[SILENCE], label[UNKNOWN]
        words = sorted(set(corpus.words.tolist()))
        self.members = {w: torch.from_numpy((corpus.words == w).nonzero()[0]) for w in words}
        self.keywords = [w for w in words if w in label]
        self.others = [w for w in words if w not in label]
        self.label = label
        self.frames = -(-recipe.segments * (CLIP_FRAMES + 4) // config.stride) * config.stride
        self.noise = torch.from_numpy(_flat_noise(corpus, self.frames + 1))
        self.speech = torch.from_numpy(corpus.speech)

    def _uniform(self, shape: tuple[int, ...], low: float = 0.0, high: float = 1.0) -> Tensor:
        return torch.rand(shape, generator=self.generator) * (high - low) + low

    def _integers(self, low: int, high: int, shape: tuple[int, ...]) -> Tensor:
        return torch.randint(low, high, shape, generator=self.generator)

    def _draw(self, words: list[str], count: int) -> tuple[Tensor, list[str]]:
        """Clips of words, each word equally likely: indices (count,) and their words."""
        chosen = [words[i] for i in self._integers(0, len(words), (count,)).tolist()]
        index = [int(self.members[w][self._integers(0, len(self.members[w]), (1,))]) for w in chosen]
        return torch.tensor(index, dtype=torch.int64), chosen

    def batch(self, streams: int) -> Batch:
        """Compose `streams` streams."""
        recipe = self.recipe
        pixels, labels = self._segments(streams * recipe.segments)
        kind, labels = self._uniform((streams,)), labels.view(streams, -1)
        background = kind < recipe.background
        if len(self.speech):
            running = kind >= 1 - recipe.running
            pixels[running.repeat_interleave(recipe.segments)] = self._sentences(int(running.sum()))
            labels[running] = self.unknown
        pixels = self._perturb(pixels)
        pixels[background.repeat_interleave(recipe.segments)] = 0.0
        labels[background] = self.silence
        onset, end = active_span(pixels)
        starts = self._starts(streams)
        energy = self._lay(pixels, starts, background)
        targets, weights = self._targets(labels, starts, onset, end)
        return Batch(self._finish(energy), targets, weights)

    def _segments(self, count: int) -> tuple[Tensor, Tensor]:
        """Pixels (R, 98, M) float and labels (R,) of `count` segments."""
        shares = torch.tensor(self.recipe.shares)
        kinds = torch.multinomial(shares, count, replacement=True, generator=self.generator)
        index, labels = torch.zeros(count, dtype=torch.int64), torch.full((count,), self.unknown)
        keyword, other = (kinds == 0).nonzero()[:, 0], (kinds == 1).nonzero()[:, 0]
        index[keyword], words = self._draw(self.keywords, len(keyword))
        labels[keyword] = torch.tensor([self.label[w] for w in words], dtype=torch.int64)
        index[other], _ = self._draw(self.others, len(other))
        labels[kinds == 3] = self.silence
        pixels = self.pixels[index].float()
        backwards = other[self._uniform((len(other),)) < self.recipe.reversed]
        pixels[backwards] = pixels[backwards].flip(1)
        pixels[kinds == 3] = 0.0
        shreds = (kinds == 2).nonzero()[:, 0]
        if len(shreds):
            pixels[shreds] = self._shreds(len(shreds))
        return pixels, labels

    def _sentences(self, streams: int) -> Tensor:
        """Running speech, cut into the segments of each stream: (streams * segments, 98, M)."""
        length = self.recipe.segments * CLIP_FRAMES
        start = self._integers(0, max(1, len(self.speech) - length), (streams, 1))
        rows = (start + torch.arange(length)).clamp(max=len(self.speech) - 1)
        return self.speech[rows].float().view(-1, CLIP_FRAMES, self.speech.shape[1])

    def _shreds(self, count: int) -> Tensor:
        """Pieces of words, too short to be one, without a pause, as in running speech: (count, 98, M)."""
        length = self.recipe.shred
        pieces = -(-CLIP_FRAMES // length)
        index, _ = self._draw(self.others * 2 + self.keywords, count * pieces)
        clips = self.pixels[index].float()
        onset, end = active_span(clips)
        room = (end - onset - length).clamp(min=0)
        start = onset + (self._uniform((len(index),)) * (room + 1)).long()
        rows = (start[:, None] + torch.arange(length)).clamp(max=CLIP_FRAMES - 1)
        cut = clips.gather(1, rows[..., None].expand(-1, -1, clips.shape[2]))
        return cut.view(count, pieces * length, -1)[:, :CLIP_FRAMES]

    def _perturb(self, pixels: Tensor) -> Tensor:
        """Stretch in time, warp in frequency and shift, in one bilinear resampling."""
        recipe, (count, length, bands) = self.recipe, pixels.shape
        rate = 1.0 + self._uniform((count, 1), -recipe.stretch, recipe.stretch)
        shift = self._uniform((count, 1), -recipe.shift, recipe.shift) * 2 / length
        warp = 1.0 + self._uniform((count, 1), -recipe.warp, recipe.warp)
        time = torch.linspace(-1, 1, length)[None] * rate + shift
        band = (torch.linspace(-1, 1, bands)[None] + 1) * warp - 1
        grid = torch.stack((band[:, None, :].expand(-1, length, -1), time[:, :, None].expand(-1, -1, bands)), dim=-1)
        edge = "border" if self._uniform((1,)) < 0.5 else "zeros"
        return F.grid_sample(pixels[:, None], grid, padding_mode=edge, align_corners=True)[:, 0]

    def _starts(self, streams: int) -> Tensor:
        """First frame of every segment: (B, segments); the first one is always 0."""
        recipe = self.recipe
        starts = torch.arange(recipe.segments) * (CLIP_FRAMES + 4) + self._integers(
            -recipe.jitter, recipe.jitter + 1, (streams, recipe.segments)
        )
        starts[:, 0] = 0
        return starts

    def _lay(self, pixels: Tensor, starts: Tensor, background: Tensor) -> Tensor:
        """Add segments, noise and babble: mel energies (B, T, M)."""
        recipe, (streams, segments) = self.recipe, starts.shape
        bands = pixels.shape[2]
        energy = expand(pixels).view(streams, segments, CLIP_FRAMES, bands)
        energy *= decibels(self._uniform((streams, segments, 1, 1), -1, 1) * recipe.segment_gain_db)
        room = self.frames + recipe.jitter + CLIP_FRAMES
        stream = torch.zeros(streams, room, bands)
        rows = torch.arange(streams)[:, None]
        for i in range(segments):
            stream[rows, starts[:, i : i + 1] + torch.arange(CLIP_FRAMES)] += energy[:, i]
        stream = stream[:, : self.frames]
        level = stream.mean(dim=(1, 2), keepdim=True)
        heard = level > ENERGY_FLOOR
        level = torch.where(heard, level, level[heard].mean() if heard.any() else torch.tensor(1e6))
        stream = stream + self._background(stream, level, background)
        return stream * decibels(self._uniform((streams, 1, 1), *recipe.gain_db))

    def _background(self, stream: Tensor, level: Tensor, alone: Tensor) -> Tensor:
        """Noise at a random distance below the speech's mean level, and now and then other people: (B, T, M)."""
        recipe, (streams, length, _) = self.recipe, stream.shape
        start = self._integers(0, len(self.noise) - length, (streams, 1))
        noise = expand(self.noise[start + torch.arange(length)].float())
        noise *= decibels(self._colour(streams, -recipe.colour_db, recipe.colour_db))
        mean = noise.mean(dim=(1, 2), keepdim=True).clamp(min=ENERGY_FLOOR / 100)
        snr = self._uniform((streams, 1, 1), *recipe.snr_db)
        noisy = self._uniform((streams, 1, 1)) < recipe.noisy
        factor = (level / mean) / decibels(snr) * noisy
        factor[alone] = 1.0
        background = noise * factor
        others = stream.roll(1, 0).roll(37, 1)
        quiet = level / others.mean(dim=(1, 2), keepdim=True).clamp(min=ENERGY_FLOOR)
        quiet = quiet / decibels(self._uniform((streams, 1, 1), *recipe.babble_snr_db))
        babble = (self._uniform((streams, 1, 1)) < recipe.babble) & ~alone[:, None, None]
        return background + others * quiet * babble + self._bursts(stream.shape) * level

    def _colour(self, streams: int, low: float, high: float) -> Tensor:
        """A smooth random curve over the bands, in dB: (B, 1, M)."""
        knots = self._uniform((streams, 1, 5), low, high)
        return F.interpolate(knots, size=self.pixels.shape[2], mode="linear", align_corners=True)

    def _bursts(self, shape: tuple[int, ...]) -> Tensor:
        """Knocks and clicks, relative to the speech's mean level: sudden, coloured, decaying (B, T, M)."""
        streams, length, _ = shape
        energy = torch.zeros(shape)
        for _ in range(3):
            age = torch.arange(length)[None] - self._integers(0, length, (streams, 1))
            decay = torch.exp(-age.clamp(min=0) / self._uniform((streams, 1), 0.5, 6.0)) * (age >= 0)
            colour = self._colour(streams, -12.0, 6.0)
            energy += decay[..., None] * decibels(colour + self._uniform((streams, 1, 1), -10.0, 15.0))
        return energy * (self._uniform((streams, 1, 1)) < self.recipe.bursts)

    def _finish(self, energy: Tensor) -> Tensor:
        """Mel energies -> masked, slightly noisy network input."""
        recipe, (streams, length, bands) = self.recipe, energy.shape
        pixels = 10.0 * torch.log1p(energy / ENERGY_FLOOR)
        noise = torch.randn(pixels.shape, generator=self.generator)
        pixels = pixels + noise * self._uniform((streams, 1, 1), 0.0, recipe.pixel_noise)
        pixels = pixels.clamp(0.0, PIXEL_MAX)
        for _ in range(recipe.band_masks):
            pixels = pixels.masked_fill(self._span(streams, bands, recipe.band_mask)[:, None, :], 0.0)
        for _ in range(recipe.segments):
            pixels = pixels.masked_fill(self._span(streams, length, recipe.time_mask)[:, :, None], 0.0)
        return pixels / 64.0 - 1.0

    def _span(self, count: int, length: int, longest: int) -> Tensor:
        """A random span of up to `longest` places in each row: (count, length) bool."""
        size = self._integers(0, longest + 1, (count, 1))
        start = (self._uniform((count, 1)) * (length - size)).long()
        place = torch.arange(length)[None]
        return (place >= start) & (place < start + size)

    def _targets(self, labels: Tensor, starts: Tensor, onset: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Targets and weights (B, N) from labels, starts, onsets and ends (B, segments), in frames."""
        recipe, stride = self.recipe, self.config.stride
        streams, segments = labels.shape
        newest = torch.arange(self.frames // stride)[None] * stride + stride - 1
        onset, end = starts + onset.view(streams, -1), starts + end.view(streams, -1)
        targets, weights = (
            torch.zeros(streams, newest.shape[1], dtype=torch.int64),
            torch.zeros(streams, newest.shape[1]),
        )
        for i in range(segments):
            label, start = labels[:, i : i + 1], starts[:, i : i + 1]
            silent = label == self.silence
            last = torch.maximum(end[:, i : i + 1] + recipe.linger, start + CLIP_FRAMES + stride - 1)
            last = torch.where(silent, start + CLIP_FRAMES, last)
            # a silent segment counts once the word before it is out of the window
            asked_from = torch.where(
                label == self.unknown, onset[:, i : i + 1] + recipe.notice, end[:, i : i + 1] + recipe.settle
            )
            heard = labels[:, i - 1 : i] != self.silence if i else torch.zeros_like(silent)
            first = torch.where(silent, start + torch.where(heard, 85, 30), asked_from)
            first = torch.minimum(first, start + CLIP_FRAMES - 1)
            if i + 1 < segments:
                follower = torch.where(labels[:, i + 1 :][:, :1] == self.silence, 10**6, onset[:, i + 1 : i + 2])
                last = torch.minimum(last, torch.maximum(follower, first + stride))
            asked = (newest >= first) & (newest <= last)
            targets = torch.where(asked, label, targets)
            worth = torch.where(label == self.unknown, recipe.unknown_weight, 1.0)
            share = asked * worth / asked.sum(dim=1, keepdim=True).clamp(min=1)
            weights = torch.where(asked, share, weights)
        return targets, weights


def expand(pixels: Tensor) -> Tensor:
    """Pixels -> mel energies; the inverse of the front end's compression."""
    return ENERGY_FLOOR * torch.expm1(pixels / 10.0)


def decibels(value: Tensor) -> Tensor:
    """dB -> factor of power."""
    return 10.0 ** (value / 10.0)


def active_span(pixels: Tensor) -> tuple[Tensor, Tensor]:
    """First and last frame that stand out of a clip's own floor: two (R,) int64, for (R, T, M) pixels."""
    loudness = pixels.mean(dim=2)
    floor, peak = loudness.quantile(0.1, dim=1, keepdim=True), loudness.amax(dim=1, keepdim=True)
    active = loudness > floor + 0.35 * (peak - floor)
    place = torch.arange(loudness.shape[1])
    last = torch.where(active, place, 0).amax(dim=1)
    first = torch.where(active, place, loudness.shape[1] - 1).amin(dim=1)
    return first, last


def _flat_noise(corpus: Corpus, least: int) -> NDArray[np.uint8]:
    """All noise in one, made up to `least` frames with silence: (T, M)."""
    bands = corpus.pixels.shape[2]
    noise = np.concatenate([np.zeros((0, bands), np.uint8), *corpus.noise])
    return np.pad(noise, ((0, max(0, least - len(noise))), (0, 0)))
