"""Files and pipes become the samples that they hold, at the pace that was asked for."""

from __future__ import annotations

import asyncio
import io
import os
import subprocess
import sys
from array import array
from subprocess import PIPE

import numpy as np
import pytest
import soundfile
from hypothesis import given
from hypothesis import strategies as st

from client.errors import SourceError
from client.sources import RATES, AudioFile, Pipe, level_db, mixed
from service.audio import clip_blocks
from service.protocol import Configure


def tone(rate: int, seconds: float = 0.5, hertz: float = 440.0):
    return 0.5 * np.sin(2 * np.pi * hertz * np.arange(round(rate * seconds)) / rate)


async def gather(source) -> bytes:
    return b"".join([block async for block in source])


async def test_a_file_is_sent_bit_for_bit(tmp_path):
    samples = np.random.default_rng(1).integers(-32768, 32767, 20_011, np.int16)
    soundfile.write(tmp_path / "a.flac", samples, 16_000, subtype="PCM_16")
    blocks = [block async for block in AudioFile(tmp_path / "a.flac", speed=0)]
    assert b"".join(blocks) == samples.tobytes()
    assert {len(block) for block in blocks[:-1]} == {960}, "30 ms"


@pytest.mark.parametrize(
    ("rate", "sent"), [(6_000, 8_000), (8_000, 8_000), (44_100, 44_100), (48_000, 48_000), (96_000, 48_000)]
)
def test_any_rate_and_channels_sound_the_same(tmp_path, rate, sent):
    stereo = np.stack((tone(rate), tone(rate)), axis=1)
    soundfile.write(tmp_path / "a.wav", stereo, rate, subtype="FLOAT")
    file = AudioFile(tmp_path / "a.wav")
    assert file.rate == sent
    Configure(sample_rate=file.rate)
    heard = np.frombuffer(b"".join(file), "<i2") / 32768
    assert len(heard) == pytest.approx(sent / 2, abs=20)
    spectrum = np.abs(np.fft.rfft(heard * np.hanning(len(heard))))
    assert spectrum.argmax() * sent / len(heard) == pytest.approx(440, abs=3)
    assert np.abs(heard).max() == pytest.approx(0.5, abs=0.02)


def test_rates_are_those_of_the_protocol():
    limits = Configure.model_json_schema()["properties"]["sample_rate"]
    assert (limits["minimum"], limits["maximum"]) == RATES


@pytest.mark.parametrize("suffix", ["wav", "flac", "mp3", "ogg"])
def test_formats_are_told_by_their_first_bytes(tmp_path, suffix):
    soundfile.write(tmp_path / f"a.{suffix}", tone(16_000), 16_000)
    path = (tmp_path / f"a.{suffix}").rename(tmp_path / "recording")
    heard = np.frombuffer(b"".join(AudioFile(path)), "<i2") / 32768
    assert np.abs(heard).max() == pytest.approx(0.5, abs=0.05)


def test_loud_floats_are_clipped_not_wrapped(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.array([2.0, -2.0]), 16_000, subtype="FLOAT")
    assert np.frombuffer(b"".join(AudioFile(tmp_path / "a.wav")), "<i2").tolist() == [32767, -32768]


@given(st.lists(st.integers(-32768, 32767), max_size=99), st.integers(2, 8))
def test_channels_are_averaged(values, channels):
    frames = np.array(values[: len(values) // channels * channels], np.int16).reshape(-1, channels)
    heard = mixed(array("h", frames.ravel().tolist()), channels)
    np.testing.assert_array_equal(heard, np.floor(frames.mean(axis=1)))


@pytest.mark.parametrize("suffix", ["wav", "flac"])
@pytest.mark.parametrize("channels", range(1, 9))
def test_every_channel_of_a_file_is_heard(tmp_path, suffix, channels):
    voices = np.stack([tone(48_000, hertz=300 + 200 * channel) for channel in range(channels)], axis=1)
    soundfile.write(tmp_path / f"a.{suffix}", voices, 48_000)
    blocks = list(AudioFile(tmp_path / f"a.{suffix}"))
    heard = np.frombuffer(b"".join(blocks), "<i2") / 32768
    np.testing.assert_allclose(heard, voices.mean(axis=1), atol=1e-3)
    assert {len(block) for block in blocks[:-1]} == {2 * 48_000 * 30 // 1_000}


def test_vorbis_of_many_channels_is_refused_rather_than_misheard(tmp_path):
    soundfile.write(tmp_path / "a.ogg", np.stack([tone(16_000)] * 4, axis=1), 16_000)
    with pytest.raises(SourceError, match="OGG Vorbis of 4 channels cannot be streamed; `deltaspot detect` reads it"):
        AudioFile(tmp_path / "a.ogg")


def test_formats_that_are_judged_elsewhere_are_named(tmp_path):
    soundfile.write(tmp_path / "a.opus", tone(48_000), 48_000, format="OGG", subtype="OPUS")
    with pytest.raises(SourceError, match="is no WAV, FLAC, MP3 or OGG Vorbis file; `deltaspot detect` reads Opus"):
        AudioFile(tmp_path / "a.opus")
    assert sum(map(len, clip_blocks((tmp_path / "a.opus").read_bytes(), 9.0))) == pytest.approx(8_000, rel=0.05)


async def test_a_file_keeps_the_pace_of_a_microphone(tmp_path, monkeypatch):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    slept = []

    async def sleep(seconds):
        slept.append(seconds)

    clock = asyncio.get_running_loop().time
    monkeypatch.setattr(asyncio, "sleep", sleep)
    start = clock()
    await gather(AudioFile(tmp_path / "a.wav", speed=4))
    assert len(slept) == 34
    assert 0.25 - (clock() - start) <= slept[-1] <= 0.25, "the last block is due after a second at four times the pace"


@pytest.mark.parametrize(("content", "reason"), [(None, "no such file"), (b"hello, world", "is no WAV, FLAC")])
def test_what_is_no_audio_is_said(tmp_path, content, reason):
    path = tmp_path / "a.wav"
    if content:
        path.write_bytes(content)
    with pytest.raises(SourceError, match=reason):
        AudioFile(path)


def test_a_folder_is_no_recording(tmp_path):
    with pytest.raises(SourceError, match="is a folder, not a recording"):
        AudioFile(tmp_path)


def test_a_pipe_in_the_place_of_a_recording_is_told_where_pipes_go(tmp_path):
    os.mkfifo(tmp_path / "a.wav")
    with pytest.raises(
        SourceError, match="is a pipe or a device, not a recording; `deltaspot listen -` reads raw samples"
    ):
        AudioFile(tmp_path / "a.wav")


def test_a_file_without_sound_is_said(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(0), 16_000)
    with pytest.raises(SourceError, match=r"a\.wav holds no audio"):
        list(AudioFile(tmp_path / "a.wav"))


@pytest.mark.parametrize("suffix", ["flac", "mp3"])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_file_that_was_cut_ends_with_an_error(tmp_path, suffix, rate):
    whole, cut = tmp_path / f"whole.{suffix}", tmp_path / f"cut.{suffix}"
    soundfile.write(whole, np.random.default_rng(1).normal(0, 0.1, 6 * rate), rate)
    assert len(b"".join(AudioFile(whole))) == 2 * 6 * rate
    cut.write_bytes(whole.read_bytes()[: whole.stat().st_size // 3])
    blocks = iter(AudioFile(cut))
    assert len(next(blocks)) == 2 * rate * 30 // 1_000, "what there is may be heard"
    with pytest.raises(SourceError, match=rf"cut\.{suffix} ends after [12]\.\d s of 6\.0 s"):
        list(blocks)


class Dribble(io.BytesIO):
    """A pipe that gives odd numbers of bytes."""

    def read1(self, _size=-1):
        return super().read1(7)


async def test_a_pipe_may_split_samples():
    samples = np.arange(-100, 100, dtype=np.int16)
    blocks = [block async for block in Pipe(Dribble(samples.tobytes() + b"!"), 48_000)]
    assert b"".join(blocks) == samples.tobytes()
    assert not any(len(block) % 2 for block in blocks)


def test_a_pipe_that_says_nothing_more_keeps_nobody():
    code = """
import asyncio, sys
from client.sources import Pipe

async def main():
    hearing = asyncio.create_task(anext(aiter(Pipe(sys.stdin.buffer))))
    await asyncio.sleep(0)
    hearing.cancel()

asyncio.run(main())
print("over")
"""
    with subprocess.Popen([sys.executable, "-c", code], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True) as process:
        assert process.wait(60) == 0, process.stderr.read()  # while its standard input is open
        assert process.stdout.read() == "over\n"


async def test_a_pipe_that_breaks_is_told():
    class Broken(io.BytesIO):
        def read1(self, _size=-1):
            raise OSError("cut off")

    with pytest.raises(OSError, match="cut off"):
        await gather(Pipe(Broken()))


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg"])
async def test_a_header_is_not_taken_for_sound(tmp_path, suffix):
    soundfile.write(tmp_path / f"a.{suffix}", tone(16_000), 16_000)
    with pytest.raises(SourceError, match=f"this is a file, {suffix.upper()}; .*ffmpeg"):
        await gather(Pipe(io.BytesIO((tmp_path / f"a.{suffix}").read_bytes())))


async def test_a_tag_of_mp3_is_not_taken_for_sound():
    with pytest.raises(SourceError, match="this is a file, MP3"):
        await gather(Pipe(io.BytesIO(b"ID3\x04....")))


def test_level_is_in_decibels_below_full_scale():
    assert level_db((tone(16_000) * 32767).astype("<i2").tobytes()) == pytest.approx(-9.03, abs=0.01)
    assert level_db(bytes(64)) == level_db(b"") == -100
