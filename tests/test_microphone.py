"""A real PortAudio stream on a real PulseAudio: speech is played into a null sink, whose monitor is the microphone."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from client.errors import SourceError
from client.microphone import Microphone, devices, find
from service.commands.demo import SAMPLE, script
from tests.browser import as_microphone
from tests.programs import need

SAID = {word.text for word in script()}
STAGE = "module-null-sink sink_name=stage rate=48000"
ENOUGH = 3
PATIENCE_S = 90


class Room:
    """A sound server of its own, with a microphone `stage.monitor` that hears what is played."""

    def __init__(self, folder: Path) -> None:
        self.environment = os.environ | {
            "HOME": str(folder),
            "XDG_RUNTIME_DIR": str(folder),
            "PULSE_RUNTIME_PATH": str(folder),
            "PULSE_SERVER": f"unix:{folder}/native",
            "PULSE_SINK": "stage",
            "PULSE_SOURCE": "stage.monitor",
        }
        self.folder = folder
        self.playing: list[asyncio.subprocess.Process] = []

    async def start(self, *command: str, stdout: int = asyncio.subprocess.DEVNULL) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            *command, env=self.environment, stdout=stdout, stderr=asyncio.subprocess.DEVNULL
        )

    async def control(self, *words: str) -> bool:
        return await (await self.start("pactl", *words)).wait() == 0

    async def play(self, recording: Path) -> asyncio.subprocess.Process:
        self.playing.append(await self.start("paplay", str(recording)))
        return self.playing[-1]

    @asynccontextmanager
    async def listening(self, port: int) -> AsyncIterator[AsyncIterator[dict]]:
        """`deltaspot listen mic` and the events that it prints."""
        command = ["listen", "mic", "--device", "pulse", "--json", "--url", f"127.0.0.1:{port}"]
        plain = ("env", "--default-signal=INT")  # a test in the background of a script ignores it, and so would this
        process = await self.start(
            *plain, sys.executable, "-m", "service.cli", *command, stdout=asyncio.subprocess.PIPE
        )

        async def events():
            async for line in process.stdout:
                yield json.loads(line)

        try:
            async with asyncio.timeout(PATIENCE_S):
                yield events()
        finally:
            process.send_signal(signal.SIGINT)
            await process.wait()
        assert process.returncode == 0, "Ctrl-C is the usual end"


@pytest.fixture
async def room(tmp_path):
    need("pulseaudio", "pactl", "paplay")
    room = Room(tmp_path)
    modules = [STAGE, f"module-native-protocol-unix socket={tmp_path}/native"]
    flags = ["-n", "--daemonize=no", "--exit-idle-time=-1", "--use-pid-file=no", *(f"--load={m}" for m in modules)]
    sound = await room.start("pulseaudio", *flags)
    async with asyncio.timeout(PATIENCE_S):
        while not await room.control("info"):
            assert sound.returncode is None, "PulseAudio did not start"
    yield room
    sound.terminate()
    for process in (sound, *room.playing):  # whoever still plays ends with the sound server
        await process.wait()


@pytest.mark.system
@pytest.mark.parametrize("loud", [pytest.param(True, id="speech"), pytest.param(False, id="silence")])
async def test_words_are_heard_if_they_are_said(room, running, tmp_path, loud):
    recording = as_microphone(SAMPLE / "commands.flac", tmp_path, gain=float(loud))
    heard, at_s = [], 0.0
    async with room.listening(running.port) as events:
        async for event in events:
            if event["type"] == "ready":
                player = await room.play(recording)
            elif event["type"] == "detection":
                heard.append(event["keyword"])
            elif event["type"] == "heartbeat":
                at_s = event["at_s"]
            if len(heard) == ENOUGH or (not loud and at_s > 2):
                break
        player.kill()
        await player.wait()
    assert set(heard) <= SAID
    assert len(heard) == (ENOUGH if loud else 0)


@pytest.mark.system
async def test_unplugged_microphone_is_found_again(room, running):
    notes, at_s = [], []
    async with room.listening(running.port) as events:
        async for event in events:
            if event["type"] == "note" and not event["message"].startswith("sound was lost"):
                notes.append(event["message"])
                if len(notes) == 1:
                    assert await room.control("load-module", *STAGE.split())
            elif event["type"] == "heartbeat":
                at_s.append(event["at_s"])
                if len(at_s) == 2:
                    assert await room.control("unload-module", "module-null-sink")
                if len(notes) == 2 and at_s[-1] > at_s[1] + 2:
                    break
    assert notes == ["pulse is gone; waiting for it", "pulse is back"]


@pytest.mark.system
async def test_devices_are_listed(room):
    listing = await room.start(
        sys.executable, "-m", "service.cli", "listen", "mic", "--devices", stdout=asyncio.subprocess.PIPE
    )
    printed, _ = await listing.communicate()
    assert re.search(r"^ *\d+  pulse  \(\d+ ch, 44100 Hz\)$", printed.decode(), re.MULTILINE)


async def test_sound_that_nobody_took_is_missed_aloud(monkeypatch):
    """PulseAudio drops what a stopped process does not take without a word, so the device is played here."""
    monkeypatch.setattr("client.microphone.find", lambda _: {"name": "desk", "default_samplerate": 16_000})
    monkeypatch.setattr(Microphone, "_open", lambda _: SimpleNamespace(channels=1, close=lambda **_: None))
    notes = []
    microphone = Microphone(on_loss=notes.append)
    blocks = aiter(microphone)
    for lost in (False, True, False):
        microphone._copy(bytes(640), 320, None, SimpleNamespace(input_overflow=lost))
        assert await anext(blocks) == bytes(640)
    await blocks.aclose()
    assert notes == ["sound was lost (times so far: 1): this machine is too busy to take it"]


def test_no_microphone_is_explained(monkeypatch):
    monkeypatch.setattr("sounddevice.query_devices", lambda *_: [] if len(_) == 0 else _raise(ValueError("none")))
    with pytest.raises(SourceError, match="arecord -l"):
        find(None)
    assert devices() == []


def test_missing_portaudio_is_explained(monkeypatch):
    monkeypatch.setitem(sys.modules, "sounddevice", None)
    monkeypatch.setattr("builtins.__import__", _import_without_portaudio(__import__))
    with pytest.raises(SourceError, match="libportaudio2"):
        Microphone()


def _raise(error: Exception):
    raise error


def _import_without_portaudio(real):
    def imported(name, *rest):
        if name == "sounddevice":
            raise OSError("PortAudio library not found")
        return real(name, *rest)

    return imported
