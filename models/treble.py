"""The treble that pictures lack, guessed from what they have, so that their speakers serve in wide streams, too.

To the mean guess comes what recordings differ by: how much treble a microphone lets through, drawn from some other
clip, and some noise. Nothing new is known of a word by that; but a network that hears treble should have heard more
speakers than those few whose audio is there.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from models.data import FRONTEND, Corpus
from models.guess import STEPS, fit

AUDIBLE = 60.0
"""Grey levels from which on a band varies as audio's does; below, ever less."""
RESTLESS = 0.5
"""Share of what a guess misses, beside a clip's own colour, that is made up by noise."""


def widened(corpus: Corpus, steps: int = STEPS, seed: int = 0) -> Corpus:
    """The corpus with a treble for its pictures, which count as audio from then on; as it is where there is no audio.

    Args:
        corpus: training clips.
        steps: of fitting the guess.
        seed: of what is drawn.
    """
    base, pictures = FRONTEND.base, ~corpus.raw
    if not corpus.raw.any() or not pictures.any():
        return corpus
    random, pixels = np.random.default_rng(seed), corpus.pixels.copy()
    heard = pixels[corpus.raw]
    guess = fit(heard[..., :base], heard[..., base:], steps, seed)
    missed = heard[..., base:] - guess.of(heard[..., :base])
    colours = missed.mean(axis=1)
    restless = RESTLESS * (missed - colours[:, None]).std(axis=(0, 1))
    mean = guess.of(pixels[pictures][..., :base])
    varied = colours[random.integers(len(colours), size=len(mean))][:, None]
    varied = varied + restless * random.standard_normal(mean.shape, np.float32)
    treble = mean + varied * np.clip(mean / AUDIBLE, 0.0, 1.0)
    pixels[pictures, :, base:] = np.clip(np.rint(treble), 0, 255).astype(np.uint8)
    return replace(corpus, pixels=pixels, raw=np.ones_like(corpus.raw))
