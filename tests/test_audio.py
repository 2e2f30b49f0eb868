"""Bytes become samples: every format, any split, nothing that is no number, nothing without end."""

from __future__ import annotations

import base64
import io
import struct

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from service.audio import FULL_SCALE, Decoder, Recent, clip_blocks
from service.errors import UnsupportedAudio
from service.protocol import Encoding, TooLong

TONE = (8_000 * np.sin(np.arange(16_000) * 2 * np.pi * 440 / 16_000)).astype(np.int16)


def encoded(samples: np.ndarray, encoding: Encoding) -> bytes:
    """int16 values -> bytes; G.711 by libsndfile, which is not ours."""
    if encoding is Encoding.S16LE:
        return samples.astype("<i2").tobytes()
    if encoding is Encoding.F32LE:
        return (samples / FULL_SCALE).astype("<f4").tobytes()
    subtype = {Encoding.MULAW: "ULAW", Encoding.ALAW: "ALAW"}[encoding]
    file = io.BytesIO()
    soundfile.write(file, samples, 16_000, format="RAW", subtype=subtype)
    return file.getvalue()


def g711(data: bytes, encoding: Encoding) -> np.ndarray:
    subtype = {Encoding.MULAW: "ULAW", Encoding.ALAW: "ALAW"}[encoding]
    raw = io.BytesIO(data)
    return soundfile.read(raw, dtype="int16", format="RAW", subtype=subtype, samplerate=16_000, channels=1)[0]


def wav(seconds: float, rate: int = 16_000, channels: int = 1, kind: str = "WAV") -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros((int(seconds * rate), channels), np.int16), rate, format=kind)
    return file.getvalue()


@pytest.mark.parametrize("encoding", [Encoding.MULAW, Encoding.ALAW])
def test_g711_is_what_libsndfile_says_for_every_code(encoding: Encoding) -> None:
    codes = bytes(range(256))
    np.testing.assert_array_equal(Decoder(encoding).feed(codes), g711(codes, encoding))


@pytest.mark.parametrize(("encoding", "off"), [(Encoding.S16LE, 0), (Encoding.F32LE, 0), (Encoding.MULAW, 300)])
def test_samples_keep_their_values(encoding: Encoding, off: int) -> None:
    assert np.abs(Decoder(encoding).feed(encoded(TONE, encoding)) - TONE).max() <= off


@given(
    st.sampled_from(list(Encoding)), st.sampled_from([8_000, 16_000, 44_100, 48_000]), st.integers(1, 3),
    st.lists(st.integers(0, 500), max_size=20),
)  # fmt: skip
def test_any_split_gives_the_same_samples(encoding: Encoding, rate: int, channels: int, cuts: list[int]) -> None:
    data = encoded(TONE[:2_400], encoding)
    whole, split = Decoder(encoding, channels, rate), Decoder(encoding, channels, rate)
    expected = np.concatenate((whole.feed(data), whole.flush()))
    parts, at = [], 0
    for cut in [*cuts, len(data)]:
        parts.append(split.feed(data[at : at + cut]))
        at += cut
    np.testing.assert_allclose(np.concatenate([*parts, split.flush()]), expected, atol=1e-2)
    assert split.samples == whole.samples


def test_channels_are_averaged() -> None:
    stereo = np.stack((TONE, -TONE // 2), axis=1)
    heard = Decoder(channels=2).feed(stereo.astype("<i2").tobytes())
    np.testing.assert_allclose(heard, stereo.mean(axis=1), atol=1)


@pytest.mark.parametrize("rate", [8_000, 22_050, 44_100, 48_000])
def test_resampled_tone_keeps_its_length_pitch_and_level(rate: int) -> None:
    tone = (8_000 * np.sin(np.arange(rate) * 2 * np.pi * 440 / rate)).astype("<i2")
    decoder = Decoder(sample_rate=rate)
    heard = np.concatenate((decoder.feed(tone.tobytes()), decoder.flush()))
    assert abs(len(heard) - 16_000) <= 1
    np.testing.assert_allclose(heard[2_000:14_000], TONE[2_000:14_000], atol=80)


@pytest.mark.parametrize("rate", [22_050, 44_100, 48_000])
def test_resampling_leaves_the_treble_that_the_network_hears(rate: int) -> None:
    tone = (8_000 * np.sin(np.arange(rate) * 2 * np.pi * 7_000 / rate)).astype("<i2")
    heard = Decoder(sample_rate=rate).feed(tone.tobytes())[2_000:12_000]
    assert np.sqrt(2 * np.mean(heard**2)) == pytest.approx(8_000, rel=0.02)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_no_numbers_are_refused(value: float) -> None:
    with pytest.raises(UnsupportedAudio, match="NaN"):
        Decoder(Encoding.F32LE).feed(np.array([0, value], "<f4").tobytes())


def test_floats_beyond_full_scale_are_clipped() -> None:
    loud = np.array([7, -7, 3e38, -3e38], "<f4")
    assert Decoder(Encoding.F32LE).feed(loud.tobytes()).tolist() == [32_767, -32_768] * 2


@pytest.mark.parametrize("kind", ["WAV", "FLAC", "OGG", "MP3", "AIFF"])
def test_files_are_read(kind: str) -> None:
    file = io.BytesIO()
    soundfile.write(file, TONE, 16_000, format=kind)
    heard = np.concatenate(list(clip_blocks(file.getvalue(), 10)))
    assert abs(len(heard) - len(TONE)) < 2_500  # MP3 pads
    assert 0.8 < heard[3_000:12_000].std() / TONE.std() < 1.2


def test_decoder_of_mp3_has_nothing_to_complain_of(spoken: np.ndarray, capfd: pytest.CaptureFixture[str]) -> None:
    file = io.BytesIO()
    soundfile.write(file, spoken, 16_000, format="MP3")
    blocks = list(clip_blocks(file.getvalue(), 60))
    assert all(len(block) == 16_000 for block in blocks[:-1])
    assert capfd.readouterr().err == ""
    whole = soundfile.read(io.BytesIO(file.getvalue()), dtype="float32")[0]
    np.testing.assert_allclose(np.concatenate(blocks), whole * FULL_SCALE, atol=1)


def test_clip_is_read_no_further_than_its_limit() -> None:
    blocks = clip_blocks(wav(30, kind="FLAC"), 2.5)
    assert len(next(blocks)) == len(next(blocks)) == 16_000
    with pytest.raises(TooLong):
        next(blocks)


def test_header_that_promises_a_gigabyte_gets_what_is_there() -> None:
    data = bytearray(wav(1))
    data[40:44] = struct.pack("<I", 1 << 30)
    assert sum(map(len, clip_blocks(bytes(data), 10))) == 16_000


@pytest.mark.parametrize("data", [b"", b"RIFF", b"not audio at all", wav(1)[:20], bytes(1000)])
def test_what_is_no_audio_is_refused(data: bytes) -> None:
    with pytest.raises(UnsupportedAudio):
        list(clip_blocks(data, 10))


@pytest.mark.parametrize(("rate", "channels"), [(7, 1), (500_000, 1), (16_000, 9)])
def test_absurd_files_are_refused(rate: int, channels: int) -> None:
    with pytest.raises(UnsupportedAudio, match=str(rate)):
        list(clip_blocks(wav(0.01, rate, channels), 10))


def test_clips_of_what_a_resampler_overshoots_do_not_wrap_around() -> None:
    square = np.where(np.arange(48_000) // 24 % 2, 32_767, -32_768).astype("<i2")
    samples = Decoder(Encoding.S16LE, 1, 48_000).feed(square.tobytes())
    assert np.abs(samples).max() > 33_000
    recent = Recent()
    recent.feed(samples, len(samples), 0)
    clip = np.frombuffer(base64.b64decode(recent.cut(0, 1)), "<i2")
    assert np.abs(clip - samples).max() <= np.abs(samples).max() - 32_767 + 1


def test_recent_audio_is_bounded_and_cut_by_stream_time() -> None:
    recent = Recent()
    for second in range(20):
        recent.feed(np.full(16_000, second, np.float32), 16_000 * (second + 1), 16_000 * (second - 3))
    clip = np.frombuffer(base64.b64decode(recent.cut(17.5, 18.25)), "<i2")
    assert (len(clip), clip[0], clip[-1]) == (12_000, 17, 18)
    assert recent.cut(0, 16) == ""
