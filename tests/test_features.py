"""Front end: the arithmetic of the pictures, and any split of the samples equal to the clip."""

from __future__ import annotations

import tarfile
from itertools import islice
from pathlib import Path, PurePosixPath

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.config import FrontEndConfig, ModelConfig
from models.data import pad_clip, picture, read_audio
from models.features import (
    FrameStream,
    Tokens,
    compress,
    expand,
    frames,
    hann,
    log_mel,
    mel_filters,
    network_input,
)
from models.spectrum import plan

CONFIG = ModelConfig()
TOKEN, OVERLAP, HOP, WINDOW = CONFIG.token_samples, 320, 160, 480


def recording(samples: int, seed: int = 0) -> np.ndarray:
    """Coloured noise that swells and fades, int16 values: (samples,)."""
    rng = np.random.default_rng(seed)
    white = rng.normal(0, 1, samples + 64)
    coloured = np.convolve(white, np.hanning(65), mode="valid")[:samples]
    swell = 1 + np.sin(np.arange(samples) / 3000)
    return np.clip(coloured * swell * 900, -32768, 32767).astype(np.float32)


def direct_pixels(samples: np.ndarray) -> np.ndarray:
    """The front end, a frame and a band at a time in float64, without a line of ours."""
    n = np.arange(480)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * n / 480)
    limit, top = 2595 * np.log10(1 + 4000 / 700), 2595 * np.log10(1 + 7600 / 700)
    mel = np.array([limit * i / 41 for i in range(42)] + [limit + (top - limit) * i / 8 for i in range(1, 9)])
    edges = 700 * (10 ** (mel / 2595) - 1)
    hertz = np.arange(257) * 16_000 / 512
    turns = np.exp(-2j * np.pi * np.outer(n, np.arange(257)) / 512)
    pixels = np.zeros((1 + (len(samples) - 480) // 160, 48))
    for t in range(len(pixels)):
        power = np.abs((samples[t * 160 : t * 160 + 480].astype(np.float64) * window) @ turns) ** 2
        for band in range(48):
            low, peak, high = edges[band : band + 3]
            weight = np.clip(np.minimum((hertz - low) / (peak - low), (high - hertz) / (high - peak)), 0, None)
            pixels[t, band] = np.clip(10 * np.log(1 + (power @ weight) / 480), 0, 255)
    return pixels


def windows_of(samples: np.ndarray, cuts: list[int], *, flush: bool = False) -> np.ndarray:
    """Feed `samples` cut at `cuts`: (N, stride, window)."""
    stream = FrameStream(CONFIG)
    parts = [stream.feed(part) for part in np.split(samples, sorted(cuts))]
    return np.concatenate([windows_in(part) for part in ([*parts, stream.flush()] if flush else parts)])


def windows_in(tokens: Tokens) -> np.ndarray:
    """The windows that tokens are made of: (N, stride, window)."""
    if not len(tokens):
        return np.zeros((0, CONFIG.stride, WINDOW), np.float32)
    samples = np.frombuffer(tokens.data, np.float32)
    return np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::HOP].reshape(-1, CONFIG.stride, WINDOW)


@pytest.mark.parametrize("scale", [0.0, 1e-3, 1.0, 30.0])
def test_frames_follow_the_published_arithmetic(scale: float) -> None:
    """A fiftieth of a grey level is what float32 loses beside a loud band; the pictures are 250 times coarser."""
    samples = np.clip(recording(16_000) * scale, -32768, 32767)
    np.testing.assert_allclose(frames(samples), direct_pixels(samples), atol=0.02)


def test_full_scale_reaches_the_ceiling_and_silence_the_floor() -> None:
    loud = frames(np.full(480, 32767, np.float32) * np.cos(np.arange(480) * 0.4, dtype=np.float32))
    assert loud.max() > 200
    assert loud.max() <= 255
    assert (log_mel([FrameStream(CONFIG).feed(np.zeros(2_000, np.float32))], CONFIG) == -1.0).all()


@pytest.mark.parametrize("shape", [{"bands": 128}, {"fft": 128, "window": 128, "hop": 64}])
def test_a_band_too_narrow_for_any_bin_is_silent(shape: dict[str, int]) -> None:
    config = FrontEndConfig(**shape)
    narrow = ~mel_filters(config).any(axis=0)
    tables = plan(hann(config), mel_filters(config))
    assert narrow.any()
    assert (tables.first[narrow] == tables.last[narrow]).all(), "the lowest and the highest bin are never worked out"
    tokens = FrameStream(model := ModelConfig(frontend=config)).feed(recording(4_000))
    assert (log_mel([tokens], model)[..., narrow] == -1.0).all()


def test_a_clip_is_ninety_eight_frames() -> None:
    assert frames(recording(16_000)).shape == (98, 48)
    assert frames(recording(480)).shape == (1, 48)
    assert frames(recording(479)).shape == (0, 48)


@given(st.floats(0, 200))
def test_expand_undoes_compress(pixel: float) -> None:
    assert compress(expand(np.array([pixel]))) == pytest.approx(pixel, abs=1e-6)


@given(st.integers(0, 4 * TOKEN), st.lists(st.integers(0, 4 * TOKEN), max_size=12))
def test_any_split_gives_the_windows_of_the_clip(length: int, cuts: list[int]) -> None:
    samples = recording(4 * TOKEN)[:length]
    got = windows_of(samples, [min(cut, length) for cut in cuts])
    assert len(got) == max(0, (length - OVERLAP) // TOKEN)
    for frame, window in enumerate(got.reshape(-1, WINDOW)):
        np.testing.assert_array_equal(window, samples[frame * HOP : frame * HOP + WINDOW])


def test_samples_may_come_one_by_one() -> None:
    samples = recording(3 * TOKEN + 7)
    whole = windows_of(samples, [], flush=True)
    np.testing.assert_array_equal(windows_of(samples, list(range(len(samples))), flush=True), whole)


@given(st.integers(0, 3 * TOKEN), st.integers(0, 3 * TOKEN))
def test_flush_judges_every_sample_once(length: int, cut: int) -> None:
    samples = np.arange(1, length + 1, dtype=np.float32)
    got = windows_of(samples, [min(cut, length)], flush=True)
    tokens = 0 if length == 0 else max(1, -(-(length - OVERLAP) // TOKEN))
    padded = np.pad(samples, (0, max(0, tokens * TOKEN + OVERLAP - length)))
    assert len(got) == tokens
    for frame, window in enumerate(got.reshape(-1, WINDOW)):
        np.testing.assert_array_equal(window, padded[frame * HOP : frame * HOP + WINDOW])


@given(st.integers(0, 3 * TOKEN))
def test_a_second_flush_has_nothing_to_add(length: int) -> None:
    stream = FrameStream(CONFIG)
    stream.feed(recording(length))
    stream.flush()
    assert len(stream.flush()) == 0


def test_reset_is_a_new_stream() -> None:
    stream, samples = FrameStream(CONFIG), recording(2000)
    stream.feed(recording(777, seed=1))
    stream.reset()
    assert stream.feed(samples) == FrameStream(CONFIG).feed(samples)


def test_streams_judged_together_equal_streams_judged_alone() -> None:
    """Strangers of different lengths, one of them without a whole token."""
    lengths = (2_000, 800, 799, 5_000, 1_300)
    streams = [FrameStream(CONFIG).feed(recording(length, seed)) for seed, length in enumerate(lengths)]
    together = np.split(log_mel(streams, CONFIG), np.cumsum([len(tokens) for tokens in streams])[:-1])
    for alone, part in zip(streams, together, strict=True):
        np.testing.assert_allclose(part, log_mel([alone], CONFIG), atol=1e-6)


@given(st.integers(0, 9), st.integers(0, 9))
def test_some_of_the_tokens_are_those_tokens(begin: int, end: int) -> None:
    tokens = FrameStream(CONFIG).feed(recording(9 * TOKEN + OVERLAP))
    part = tokens[begin:end] if begin <= end else tokens[end:begin]
    np.testing.assert_array_equal(windows_in(part), windows_in(tokens)[min(begin, end) : max(begin, end)])


def test_tokens_that_follow_each_other_can_be_joined() -> None:
    samples = recording(9 * TOKEN + OVERLAP)
    stream = FrameStream(CONFIG)
    joined = stream.feed(samples[:3_000]).then(stream.feed(samples[3_000:3_001])).then(stream.feed(samples[3_001:]))
    np.testing.assert_array_equal(windows_in(joined), windows_of(samples, []))
    assert joined.then(stream.flush()) == joined, "nothing follows, and nothing is lost"


def test_network_input_is_the_pixel_on_another_scale() -> None:
    tokens = log_mel([FrameStream(CONFIG).feed(recording(4000))], CONFIG).reshape(-1, 48)
    pixels = frames(recording(4000))[: len(tokens)]
    np.testing.assert_allclose(tokens, network_input(pixels), atol=1e-6)
    np.testing.assert_array_equal(network_input(np.array([0.0, 64.0, 255.0])), [-1.0, 0.0, 255 / 64 - 1])


def test_audio_and_its_picture_agree(shared_data: Path) -> None:
    """Validation clips exist both ways; what differs is the JPEG's noise, about four grey levels."""
    heard, pairs = {}, []
    with tarfile.open(shared_data / "speech_commands_validation_flac.tar") as clips:
        for member in islice((m for m in clips if m.isfile()), 0, None, 20):
            name = PurePosixPath(member.name)
            pixels = frames(pad_clip(read_audio(clips.extractfile(member).read())))
            heard[name.parent.name, name.stem] = pixels[:, : CONFIG.frontend.base]
    with tarfile.open(shared_data / "speech_commands_logmel_jpeg.tar") as pictures:
        for member in pictures:
            name = PurePosixPath(member.name)
            if (clip := heard.get((name.parent.name, name.stem))) is not None and "validation" in name.parts:
                pairs.append((picture(pictures.extractfile(member).read()), clip))
    assert len(pairs) > 50
    correlations = [np.corrcoef(seen.ravel(), clip.ravel())[0, 1] for seen, clip in pairs]
    assert np.median(correlations) > 0.99
    assert np.median([np.abs(seen - clip).mean() for seen, clip in pairs]) < 5.0
