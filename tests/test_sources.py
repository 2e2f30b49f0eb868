"""Files and pipes become the samples that they hold, at the pace that was asked for."""

from __future__ import annotations

import asyncio
import io

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from client.errors import SourceError
from client.sources import BLOCK_BYTES, Resampler, file_blocks, level_db, pipe_blocks, read_audio


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


async def gather(source) -> bytes:
    return b"".join([block async for block in source])


async def test_a_16_khz_file_is_sent_bit_for_bit(tmp_path):
    samples = np.random.default_rng(1).integers(-32768, 32767, 20_011, np.int16)
    soundfile.write(tmp_path / "a.flac", samples, 16_000, subtype="PCM_16")
    blocks = [block async for block in file_blocks(tmp_path / "a.flac", speed=0)]
    assert b"".join(blocks) == samples.tobytes()
    assert {len(block) for block in blocks[:-1]} == {BLOCK_BYTES}


@pytest.mark.parametrize("rate", [8_000, 44_100, 48_000])
def test_other_rates_and_channels_sound_the_same(tmp_path, rate):
    stereo = np.stack((tone(rate), tone(rate)), axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, rate, subtype="FLOAT")
    heard = np.frombuffer(b"".join(read_audio(tmp_path / "a.wav")), "<i2") / 32768
    wanted = tone(16_000)
    assert len(heard) == pytest.approx(len(wanted), abs=2)
    middle = slice(2_000, 6_000)
    assert np.abs(heard[middle] - wanted[middle]).max() < 0.01


@given(st.lists(st.integers(0, 3_000), max_size=12), st.sampled_from([8_000, 22_050, 48_000]))
def test_resampling_does_not_depend_on_the_split(cuts, rate):
    whole = np.random.default_rng(2).uniform(-1, 1, (sum(cuts), 1)).astype(np.float32)
    pieces, start = Resampler(rate), 0
    split = b""
    for cut in cuts:
        split += pieces.feed(whole[start : start + cut])
        start += cut
    split += pieces.feed(whole[:0], last=True)
    assert split == Resampler(rate).feed(whole, last=True)


async def test_loud_floats_are_clipped_not_wrapped(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([2.0, -2.0]), 16_000, subtype="FLOAT")
    assert np.frombuffer(await gather(file_blocks(tmp_path / "a.wav", 0)), "<i2").tolist() == [32767, -32768]


async def test_a_file_keeps_the_pace_of_a_microphone(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    clock = asyncio.get_running_loop().time
    monkeypatch.setattr(asyncio, "sleep", sleep)
    start = clock()
    await gather(file_blocks(tmp_path / "a.wav", speed=4))
    assert len(slept) == 34
    assert 0.25 - (clock() - start) <= slept[-1] <= 0.25, "the last block is due after a second at four times the pace"


@pytest.mark.parametrize(("content", "reason"), [(None, "no such file"), (b"hello, world", "[Ff]ormat")])
async def test_what_is_no_audio_is_said(tmp_path, content, reason):
    path = tmp_path / "a.wav"
    if content:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=reason):
        await gather(file_blocks(path))


class Dribble(io.BytesIO):
    """A pipe that gives odd numbers of bytes."""

    def read1(self, _size=-1):
        return super().read1(7)


async def test_a_pipe_may_split_samples():
    samples = np.arange(-100, 100, dtype=np.int16)
    assert await gather(pipe_blocks(Dribble(samples.tobytes()))) == samples.tobytes()


async def test_a_pipe_of_another_rate_is_resampled():
    samples = (tone(48_000) * 32767).astype("<i2")
    heard = await gather(pipe_blocks(Dribble(samples.tobytes()), 48_000))
    assert len(heard) / 2 == pytest.approx(8_000, abs=2)


async def test_a_header_is_not_taken_for_sound():
    with pytest.raises(SourceError, match="ffmpeg"):
        await gather(pipe_blocks(io.BytesIO(b"RIFF....WAVE")))


def test_level_is_in_decibels_below_full_scale():
    assert level_db((tone(16_000) * 32767).astype("<i2").tobytes()) == pytest.approx(-9.03, abs=0.01)
    assert level_db(bytes(64)) == level_db(b"") == -100
