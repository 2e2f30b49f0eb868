"""Training streams, composed from clips in the power domain: what a microphone might hear in three seconds.

A stream is a row of segments (`models.segments`): keywords, unknown words, shreds of several words, and silence, laid
end to end over noise and babble at random levels. The first segment starts where the stream starts, as a clip does;
the later ones meet a cache with somebody else's past. A narrow stream is silent above 4 kHz, its noise included.

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

from models.config import ModelConfig
from models.data import CLIP_FRAMES, Corpus
from models.features import ENERGY_FLOOR, PIXEL_MAX, SILENT
from models.recipe import Recipe
from models.segments import Chance, Speaker, active_span


@dataclass(frozen=True, slots=True)
class Batch:
    """frames (B, T, M) network input; targets (B, N) int64; weights (B, N), each segment's add up to its worth.

    names: (B, N) int64, targets among labels and, behind them, `Recipe.named`.
    beliefs: (B, N, K), each target as a distribution, in which teachers had a say.
    segments: (B, N) int64, which segment a target is of; starts: (B, segments) int64, their first frames.
    """

    frames: Tensor
    targets: Tensor
    weights: Tensor
    names: Tensor
    beliefs: Tensor
    segments: Tensor
    starts: Tensor


class Composer:
    """Draws training streams from a corpus."""

    def __init__(self, corpus: Corpus, config: ModelConfig, recipe: Recipe, generator: torch.Generator) -> None:
        self.config, self.recipe, self.chance = config, recipe, Chance(generator)
        self.speaker = Speaker(corpus, config, recipe, self.chance)
        self.frames = -(-recipe.segments * (CLIP_FRAMES + 4) // config.stride) * config.stride
        self.noise = torch.from_numpy(_flat_noise(corpus, self.frames + 1))

    def batch(self, streams: int) -> Batch:
        """Compose `streams` streams."""
        recipe, speaker = self.recipe, self.speaker
        wide = self.chance.uniform((streams,)) < speaker.wide_share
        said = speaker.segments(wide.repeat_interleave(recipe.segments))
        pixels, names = said.pixels, said.names.view(streams, -1)
        beliefs = said.beliefs.view(streams, recipe.segments, -1)
        kind = self.chance.uniform((streams,))
        background = kind < recipe.background
        if len(speaker.speech):
            running = kind >= 1 - recipe.running
            pixels[running.repeat_interleave(recipe.segments)] = speaker.sentences(int(running.sum()))
            names[running], beliefs[running] = speaker.unknown, speaker.certain[speaker.unknown]
        pixels = speaker.perturb(pixels)
        pixels[background.repeat_interleave(recipe.segments)] = 0.0
        names[background], beliefs[background] = speaker.silence, speaker.certain[speaker.silence]
        onset, end = active_span(pixels)
        starts = self._starts(streams)
        frames = self._finish(self._lay(pixels, starts, background))
        frames[~wide, :, speaker.base :] = SILENT
        segment, weights = self._asked(names, starts, onset, end)
        names, rows = names.gather(1, segment), torch.arange(streams)[:, None]
        targets = names.where(names < speaker.labels, speaker.unknown)
        return Batch(frames, targets, weights, names, beliefs[rows, segment], segment, starts)

    def _starts(self, streams: int) -> Tensor:
        """First frame of every segment: (B, segments); the first one is always 0."""
        recipe = self.recipe
        starts = torch.arange(recipe.segments) * (CLIP_FRAMES + 4) + self.chance.integers(
            -recipe.jitter, recipe.jitter + 1, (streams, recipe.segments)
        )
        starts[:, 0] = 0
        return starts

    def _lay(self, pixels: Tensor, starts: Tensor, background: Tensor) -> Tensor:
        """Add segments, noise and babble: mel energies (B, T, M)."""
        recipe, (streams, segments) = self.recipe, starts.shape
        bands = pixels.shape[2]
        energy = expand(pixels).view(streams, segments, CLIP_FRAMES, bands)
        energy *= decibels(self.chance.uniform((streams, segments, 1, 1), -1, 1) * recipe.segment_gain_db)
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
        return stream * decibels(self.chance.uniform((streams, 1, 1), *recipe.gain_db))

    def _background(self, stream: Tensor, level: Tensor, alone: Tensor) -> Tensor:
        """Noise at a random distance below the speech's mean level, and now and then other people: (B, T, M)."""
        recipe, (streams, length, _) = self.recipe, stream.shape
        start = self.chance.integers(0, len(self.noise) - length, (streams, 1))
        noise = self.noise[start + torch.arange(length)].float()
        backwards = self.chance.uniform((streams,)) < recipe.reversed
        noise[backwards] = noise[backwards].flip(1)
        noise = expand(self.speaker.perturb(noise))
        noise *= decibels(self._colour(streams, -recipe.colour_db, recipe.colour_db))
        mean = noise.mean(dim=(1, 2), keepdim=True).clamp(min=ENERGY_FLOOR / 100)
        snr = self.chance.uniform((streams, 1, 1), *recipe.snr_db)
        noisy = self.chance.uniform((streams, 1, 1)) < recipe.noisy
        factor = (level / mean) / decibels(snr) * noisy
        factor[alone] = 1.0
        background = noise * factor
        others = stream.roll(1, 0).roll(37, 1)
        quiet = level / others.mean(dim=(1, 2), keepdim=True).clamp(min=ENERGY_FLOOR)
        quiet = quiet / decibels(self.chance.uniform((streams, 1, 1), *recipe.babble_snr_db))
        babble = (self.chance.uniform((streams, 1, 1)) < recipe.babble) & ~alone[:, None, None]
        return background + others * quiet * babble + self._bursts(stream.shape) * level

    def _colour(self, streams: int, low: float, high: float) -> Tensor:
        """A smooth random curve over the bands, in dB: (B, 1, M)."""
        knots = self.chance.uniform((streams, 1, 5), low, high)
        return F.interpolate(knots, size=self.config.frontend.bands, mode="linear", align_corners=True)

    def _bursts(self, shape: tuple[int, ...]) -> Tensor:
        """Knocks and clicks, relative to the speech's mean level: sudden, coloured, decaying (B, T, M)."""
        streams, length, _ = shape
        energy = torch.zeros(shape)
        for _ in range(3):
            age = torch.arange(length)[None] - self.chance.integers(0, length, (streams, 1))
            decay = torch.exp(-age.clamp(min=0) / self.chance.uniform((streams, 1), 0.5, 6.0)) * (age >= 0)
            colour = self._colour(streams, -12.0, 6.0)
            energy += decay[..., None] * decibels(colour + self.chance.uniform((streams, 1, 1), -10.0, 15.0))
        return energy * (self.chance.uniform((streams, 1, 1)) < self.recipe.bursts)

    def _finish(self, energy: Tensor) -> Tensor:
        """Mel energies -> masked, slightly noisy network input."""
        recipe, (streams, length, bands) = self.recipe, energy.shape
        pixels = 10.0 * torch.log1p(energy / ENERGY_FLOOR)
        noise = torch.randn(pixels.shape, generator=self.chance.generator)
        pixels = pixels + noise * self.chance.uniform((streams, 1, 1), 0.0, recipe.pixel_noise)
        pixels = pixels.clamp(0.0, PIXEL_MAX)
        for _ in range(recipe.band_masks):
            pixels = pixels.masked_fill(self._span(streams, bands, recipe.band_mask)[:, None, :], 0.0)
        for _ in range(recipe.segments):
            pixels = pixels.masked_fill(self._span(streams, length, recipe.time_mask)[:, :, None], 0.0)
        return pixels / 64.0 - 1.0

    def _span(self, count: int, length: int, longest: int) -> Tensor:
        """A random span of up to `longest` places in each row: (count, length) bool."""
        size = self.chance.integers(0, longest + 1, (count, 1))
        start = (self.chance.uniform((count, 1)) * (length - size)).long()
        place = torch.arange(length)[None]
        return (place >= start) & (place < start + size)

    def _asked(self, labels: Tensor, starts: Tensor, onset: Tensor, end: Tensor) -> tuple[Tensor, Tensor]:
        """Which segment is asked for, and how much: (B, N) int64 and float.

        Labels (B, segments) and, in frames, starts (B, segments), onsets and ends (B * segments,) within each.
        """
        recipe, stride = self.recipe, self.config.stride
        streams, segments = labels.shape
        newest = torch.arange(self.frames // stride)[None] * stride + stride - 1
        onset, end = starts + onset.view(streams, -1), starts + end.view(streams, -1)
        weights = torch.zeros(streams, newest.shape[1])
        segment = weights.long()
        for i in range(segments):
            label, start = labels[:, i : i + 1], starts[:, i : i + 1]
            silent = label == self.speaker.silence
            last = torch.maximum(end[:, i : i + 1] + recipe.linger, start + CLIP_FRAMES + stride - 1)
            last = torch.where(silent, start + CLIP_FRAMES, last)
            # a silent segment counts once the word before it is out of the window
            other = (label == self.speaker.unknown) | (label >= self.speaker.labels)
            asked_from = torch.where(other, onset[:, i : i + 1] + recipe.notice, end[:, i : i + 1] + recipe.settle)
            heard = labels[:, i - 1 : i] != self.speaker.silence if i else torch.zeros_like(silent)
            first = torch.where(silent, start + torch.where(heard, 85, 30), asked_from)
            first = torch.minimum(first, start + CLIP_FRAMES - 1)
            if i + 1 < segments:
                quiet = labels[:, i + 1 : i + 2] == self.speaker.silence
                follower = torch.where(quiet, 10**6, onset[:, i + 1 : i + 2])
                last = torch.minimum(last, torch.maximum(follower, first + stride))
            asked = (newest >= first) & (newest <= last)
            segment = torch.where(asked, i, segment)
            worth = torch.where(other, recipe.unknown_weight, 1.0)
            share = asked * worth / asked.sum(dim=1, keepdim=True).clamp(min=1)
            weights = torch.where(asked, share, weights)
        return segment, weights


def expand(pixels: Tensor) -> Tensor:
    """Pixels -> mel energies; the inverse of the front end's compression."""
    return ENERGY_FLOOR * torch.expm1(pixels / 10.0)


def decibels(value: Tensor) -> Tensor:
    """dB -> factor of power."""
    return 10.0 ** (value / 10.0)


def _flat_noise(corpus: Corpus, least: int) -> NDArray[np.uint8]:
    """All noise in one, made up to `least` frames with silence: (T, M)."""
    bands = corpus.pixels.shape[2]
    noise = np.concatenate([np.zeros((0, bands), np.uint8), *corpus.noise])
    return np.pad(noise, ((0, max(0, least - len(noise))), (0, 0)))
