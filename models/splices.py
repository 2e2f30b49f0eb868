"""Words that nobody has said: the first half of one and the second half of another, as pixels.

Enrolled words are always new to the background, which has to know how words differ that it never heard. A few dozen
words span fewer directions than an embedding has; their halves, put together, span all. Knows no network.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from models.data import CLIP_FRAMES, Corpus
from models.streams import spoken_frames

WIDE = 0.3
"""Share of splices of audio, which has treble, where both words have any."""


def spliced(corpus: Corpus, each: int, random: np.random.Generator) -> Corpus:
    """Splices of every word with every other, `each` times, in the corpus' noise."""
    clips = {str(word): np.flatnonzero(corpus.words == word) for word in np.unique(corpus.words)}
    pairs = [(one, other) for one in clips for other in clips if one != other]
    pixels = np.zeros((len(pairs) * each, *corpus.pixels.shape[1:]), np.uint8)
    raw = np.zeros(len(pixels), bool)
    for i in range(len(pixels)):
        wide = random.random() < WIDE
        halves = [_drawn(clips[word], corpus.raw, wide, random) for word in pairs[i // each]]
        pixels[i] = _joined(*(corpus.pixels[half] for half in halves))
        raw[i] = corpus.raw[halves].all()
    words = np.repeat(np.array(["+".join(pair) for pair in pairs], dtype=np.str_), each)
    return replace(corpus, pixels=pixels, words=words, raw=raw, beliefs=None)


def _drawn(clips: NDArray[np.int64], raw: NDArray[np.bool_], wide: bool, random: np.random.Generator) -> int:
    """One of a word's clips, of the kind that is asked for if there is one."""
    kind = clips[raw[clips] == wide]
    return int(random.choice(kind if len(kind) else clips))


def _joined(one: NDArray[np.uint8], other: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Two clips (T, M) -> the one until the middle of its word, the other from there (T, M)."""
    first, second = (spoken_frames(pixels.astype(np.float32)) for pixels in (one, other))
    both = np.concatenate((one[: int(first[0] + first[-1]) // 2], other[int(second[0] + second[-1]) // 2 :]))
    return np.pad(both, ((0, max(0, CLIP_FRAMES - len(both))), (0, 0)), mode="edge")[:CLIP_FRAMES]
