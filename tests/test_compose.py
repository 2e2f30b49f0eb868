"""Training streams: what is laid down is what is asked for, and the seed decides all of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from models import features
from models.compose import Batch, Composer, decibels, expand
from models.config import ModelConfig
from models.data import CLIP_FRAMES, Corpus
from models.recipe import Recipe
from models.segments import active_span

CONFIG = ModelConfig(channels=32, heads=2, layers=1, hidden=32, span=16, labels=("_silence_", "_unknown_", "yes", "no"))
KINDS = ("keyword", "unknown", "shreds", "silence")
"""Of segments, as `Recipe.shares` has them."""
BANDS, BASE = CONFIG.frontend.bands, CONFIG.frontend.base
QUIET = Recipe(
    wide=0.0,
    background=0.0, noisy=0.0, bursts=0.0, babble=0.0, pixel_noise=0.0, band_mask=0, time_mask=0, stretch=0.0, warp=0.0,
    shift=0, gain_db=(0.0, 0.0), segment_gain_db=0.0, jitter=0,
)  # fmt: skip
"""Nothing but the clips themselves."""


def corpus(*, noise: int = 3000) -> Corpus:
    """Words as blocks of sound in frames 30 to 59, each in bands of its own."""
    rng = np.random.default_rng(0)
    words = np.array(["yes", "no", "bed", "cat"] * 3)
    pixels = rng.integers(0, 12, (len(words), CLIP_FRAMES, BANDS)).astype(np.uint8)
    for clip, word in zip(pixels, words, strict=True):
        first = 10 * ["yes", "no", "bed", "cat"].index(word)
        clip[30:60, first : first + 10] = 150
    hiss = rng.integers(30, 50, (noise, BANDS)).astype(np.uint8)
    return Corpus(pixels, words, np.ones(len(words), np.bool_), [hiss] if noise else [])


CORPUS = corpus()


def compose(recipe: Recipe, seed: int = 0, streams: int = 8, source: Corpus = CORPUS) -> Batch:
    return Composer(source, CONFIG, recipe, torch.Generator().manual_seed(seed)).batch(streams)


def only(kind: str, **changes: object) -> Recipe:
    """Streams of one kind of segment, without a background."""
    shares = tuple(float(name == kind) for name in KINDS)
    return replace(QUIET, shares=shares, **changes)


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4), st.integers(1, 9))
def test_every_seed_gives_a_whole_batch(seed: int, segments: int, streams: int) -> None:
    batch = compose(Recipe(segments=segments), seed, streams)
    tokens = batch.targets.shape[1]
    assert batch.frames.shape == (streams, tokens * CONFIG.stride, BANDS)
    assert batch.weights.shape == batch.targets.shape == (streams, tokens)
    assert torch.isfinite(batch.frames).all()
    assert batch.frames.min() >= -1
    assert batch.frames.max() <= 255 / 64 - 1
    assert batch.targets.min() >= 0
    assert batch.targets.max() < len(CONFIG.labels)
    assert (batch.weights >= 0).all()


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(1, 4))
def test_each_segment_asked_for_weighs_one(seed: int, segments: int) -> None:
    asked = compose(Recipe(segments=segments, unknown_weight=1.0), seed).weights.sum(dim=1)
    torch.testing.assert_close(asked, asked.round(), rtol=0, atol=1e-4)
    assert asked.min() >= 0
    assert asked.max() <= segments + 1e-4


def test_unknown_word_weighs_what_the_recipe_says() -> None:
    asked = compose(only("unknown", segments=1, unknown_weight=1.5)).weights.sum(dim=1)
    torch.testing.assert_close(asked, torch.full((8,), 1.5))


def test_nearly_every_segment_is_asked_for() -> None:
    asked = torch.cat([compose(Recipe(), seed, 32).weights.sum(dim=1) for seed in range(4)])
    assert asked.mean() > 0.85 * Recipe().segments


def test_seed_decides_everything() -> None:
    one, same, other = (compose(Recipe(), seed) for seed in (1, 1, 2))
    for part in ("frames", "targets", "weights", "names", "beliefs"):
        assert torch.equal(getattr(one, part), getattr(same, part))
    assert not torch.equal(one.frames, other.frames)


def test_batches_of_one_composer_differ_and_leave_torchs_generator_alone() -> None:
    before = torch.get_rng_state()
    composer = Composer(CORPUS, CONFIG, Recipe(), torch.Generator().manual_seed(0))
    assert not torch.equal(composer.batch(4).frames, composer.batch(4).frames)
    assert torch.equal(torch.get_rng_state(), before)


def test_word_is_asked_for_after_it_ended() -> None:
    """A quiet word in frames 30 to 59 of a stream of one: asked for from `settle` frames after its end to the end."""
    recipe = only("keyword", segments=1)
    batch = compose(recipe)
    for stream in range(8):
        asked = batch.weights[stream].nonzero()[:, 0]
        target = set(batch.targets[stream, asked].tolist())
        loud = batch.frames[stream, :, :BASE].mean(dim=0).view(4, 10).mean(dim=1).argmax().item()
        assert target == {2 + loud}
        newest = asked * CONFIG.stride + CONFIG.stride - 1
        assert 59 + recipe.settle <= newest[0] < 59 + recipe.settle + CONFIG.stride
        assert newest[-1] >= CLIP_FRAMES - CONFIG.stride


@pytest.mark.parametrize(
    ("kind", "label"), [("unknown", "_unknown_"), ("shreds", "_unknown_"), ("silence", "_silence_")]
)
def test_other_segments_are_asked_for_as_what_they_are(kind: str, label: str) -> None:
    batch = compose(only(kind))
    assert set(batch.targets[batch.weights > 0].tolist()) == {CONFIG.labels.index(label)}
    assert batch.weights.sum() > 0


def test_background_alone_is_silence_at_the_noises_own_level() -> None:
    batch = compose(replace(QUIET, background=1.0, noisy=1.0))
    assert set(batch.targets[batch.weights > 0].tolist()) == {CONFIG.labels.index("_silence_")}
    pixels = (batch.frames[..., :BASE] + 1) * 64
    assert 25 < pixels.mean() < 55


def test_silence_is_exact_where_nothing_sounds() -> None:
    assert (compose(only("silence")).frames == -1).all()


def test_first_segment_begins_where_the_stream_begins() -> None:
    loud = (compose(only("keyword", jitter=12)).frames > 0.5).any(dim=2)
    assert (loud.int().argmax(dim=1) == 30).all()


@pytest.mark.parametrize("noise", [0, 10])
def test_little_noise_will_do(noise: int) -> None:
    assert torch.isfinite(compose(Recipe(noisy=1.0), source=corpus(noise=noise)).frames).all()


def test_noise_stays_below_the_speech_by_the_distance_asked_for() -> None:
    clean = compose(only("keyword", segments=1, wide=1.0))
    noisy = compose(only("keyword", segments=1, wide=1.0, noisy=1.0, snr_db=(10.0, 10.0)))
    power, both = (expand((batch.frames + 1) * 64).mean(dim=(1, 2)) for batch in (clean, noisy))
    torch.testing.assert_close(10 * torch.log10(power / (both - power)), torch.full((8,), 10.0), rtol=0, atol=0.3)


def test_expand_is_the_front_ends() -> None:
    pixels = np.linspace(0, 200, 50, dtype=np.float32)
    np.testing.assert_allclose(expand(torch.from_numpy(pixels)), features.expand(pixels), rtol=1e-5)


def test_decibels() -> None:
    torch.testing.assert_close(decibels(torch.tensor([-10.0, 0.0, 3.0103])), torch.tensor([0.1, 1.0, 2.0]))


def test_active_span_is_where_the_word_is() -> None:
    first, last = active_span(torch.from_numpy(CORPUS.pixels).float())
    assert set(first.tolist()) == {30}
    assert set(last.tolist()) == {59}


def test_running_speech_is_unknown_from_end_to_end() -> None:
    speech = np.full((2000, BANDS), 120, np.uint8)
    spoken = replace(CORPUS, speech=speech)
    batch = compose(replace(QUIET, running=1.0, segments=2), source=spoken)
    asked = batch.weights > 0
    assert asked.any(dim=1).all()
    assert (batch.targets[asked] == CONFIG.labels.index("_unknown_")).all()
    middle = batch.frames[:, 20:60, :BASE]
    torch.testing.assert_close(middle, torch.full_like(middle, 120 / 64 - 1), atol=0.02, rtol=0)


def test_without_running_speech_the_share_changes_nothing() -> None:
    one, other = (compose(replace(QUIET, running=share)) for share in (0.0, 1.0))
    torch.testing.assert_close(one.frames, other.frames)


def test_noise_is_bent_in_colour_and_stays_steady() -> None:
    flat = replace(CORPUS, noise=[np.full((3000, BANDS), 100, np.uint8)])
    alone = replace(QUIET, background=1.0)
    plain, bent = (compose(replace(alone, colour_db=db), source=flat).frames[..., :BASE] for db in (0.0, 8.0))
    torch.testing.assert_close(plain, torch.full_like(plain, 100 / 64 - 1))
    assert bent.std(dim=2).min() > 0.02, "every stream has a colour"
    assert bent.std(dim=1).max() < 1e-5, "which does not change with time"
    assert (bent - plain).abs().max() <= 0.8 * np.log(10) * 10 / 64 + 1e-4


def test_narrow_stream_has_no_treble_and_a_wide_one_has() -> None:
    narrow, wide = (compose(replace(QUIET, wide=share, noisy=1.0)).frames for share in (0.0, 1.0))
    assert (narrow[..., BASE:] == features.SILENT).all()
    assert (wide[..., BASE:] > features.SILENT).any(dim=2).any(dim=1).all()
    assert (narrow[..., :BASE] > features.SILENT).any(dim=2).any(dim=1).all()


def test_wide_stream_holds_no_picture() -> None:
    """Pictures are as loud as can be here, audio is silent."""
    pixels = np.concatenate((np.zeros_like(CORPUS.pixels), np.full_like(CORPUS.pixels, 200)))
    raw = np.arange(len(pixels)) < len(CORPUS.pixels)
    mixed = replace(CORPUS, pixels=pixels, words=np.tile(CORPUS.words, 2), raw=raw)
    for kind in ("keyword", "unknown", "shreds"):
        assert compose(only(kind, wide=1.0), source=mixed).frames.max() == features.SILENT
        assert compose(only(kind, wide=0.0), source=mixed).frames.max() > 0


def test_no_stream_is_wide_while_a_keyword_has_no_audio() -> None:
    pictures_of_yes = replace(CORPUS, raw=CORPUS.words != "yes")
    batch = compose(replace(QUIET, wide=1.0), source=pictures_of_yes)
    assert (batch.frames[..., BASE:] == features.SILENT).all()


def test_what_a_picture_lacks_stays_out_of_its_lower_bands() -> None:
    """Flat sound up to 4 kHz, warped in frequency: its upper bands stay as they are."""
    flat = np.zeros_like(CORPUS.pixels)
    flat[..., :BASE] = 120
    pictures = replace(CORPUS, pixels=flat, raw=np.zeros_like(CORPUS.raw))
    base = compose(only("keyword", warp=0.08, segments=1), source=pictures).frames[:, 20:60, 2 : BASE - 1]
    torch.testing.assert_close(base, torch.full_like(base, 120 / 64 - 1), rtol=0, atol=1e-3)


def test_other_words_are_named_unless_they_are_backwards_or_left_out() -> None:
    labels = len(CONFIG.labels)
    named = compose(only("unknown", named=("bed",), reversed=0.0))
    asked = named.weights > 0
    assert set(named.names[asked].tolist()) == {CONFIG.labels.index("_unknown_"), labels}
    assert set(named.targets[asked].tolist()) == {CONFIG.labels.index("_unknown_")}
    backwards = compose(only("unknown", named=("bed",), reversed=1.0))
    assert set(backwards.names.flatten().tolist()) == {CONFIG.labels.index("_unknown_")}


def test_teachers_are_believed_as_far_as_the_recipe_says() -> None:
    opinion = np.tile(np.float32([0.1, 0.2, 0.3, 0.4]), (len(CORPUS.pixels), 1))
    taught = replace(CORPUS, beliefs=opinion)
    batch = compose(only("keyword", trust=0.25), source=taught)
    wanted = 0.75 * torch.eye(4)[batch.targets] + 0.25 * torch.from_numpy(opinion[0])
    torch.testing.assert_close(batch.beliefs[batch.weights > 0], wanted[batch.weights > 0])
    shreds = compose(only("shreds"), source=taught)
    torch.testing.assert_close(shreds.beliefs, torch.eye(4)[shreds.targets])
