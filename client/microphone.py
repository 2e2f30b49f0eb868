"""A microphone through PortAudio: chosen by name or number, opened at its own rate, found again after it was unplugged.

PortAudio calls back on a thread of its own that must never wait; the callback copies a block and does nothing else.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from client.errors import SourceError
from client.sources import RATES, block_samples, le_bytes, mixed, samples_of

GONE_S: Final = 2.0
"""A device that says nothing for this long is taken for unplugged, s."""
KEPT: Final = 1_000
"""Blocks that wait for a slow taker, 30 s of them; then the oldest are lost and counted."""

NO_PORTAUDIO: Final = (
    "PortAudio is missing, which reads microphones: apt-get install libportaudio2, or brew install portaudio"
)
NO_DEVICE: Final = """no microphone is to be seen. Look for it with `arecord -l` (ALSA) or `pactl list short sources` \
(PulseAudio, PipeWire). In a container, hand over /dev/snd or the PulseAudio socket; over ssh, start a PulseAudio \
session; on ALSA, be in the group `audio`. On a Mac, allow the terminal to use the microphone."""


def portaudio() -> Any:  # noqa: ANN401 (sounddevice has no types)
    """The module `sounddevice`.

    Raises:
        SourceError: if the library behind it is not installed.
    """
    try:
        import sounddevice
    except OSError:
        raise SourceError(NO_PORTAUDIO) from None
    return sounddevice


def devices() -> list[str]:
    """A line for each device that can record: its number, name, channels and rate."""
    return [
        f"{number:3}  {device['name']}  ({device['max_input_channels']} ch, {device['default_samplerate']:.0f} Hz)"
        for number, device in enumerate(portaudio().query_devices())
        if device["max_input_channels"]
    ]


def find(device: str | int | None) -> dict[str, Any]:
    """What PortAudio knows of a device, by number, by part of its name, or the default one.

    Raises:
        SourceError: if there is none, or the name fits several; the message lists them.
    """
    try:
        found: dict[str, Any] = portaudio().query_devices(device, "input")
    except (ValueError, portaudio().PortAudioError) as error:
        listed = devices()
        raise SourceError(f"{error}; there are:\n" + "\n".join(listed) if listed else NO_DEVICE) from None
    return found


class Microphone:
    """Async iterable of s16le mono blocks; use it in one `async for`, once.

    Attributes:
        name: of the device.
        rate: of the blocks, Hz: the device's own, or 48 kHz if that is more than a stream may have; it stays.
        overflows: how often blocks or samples were lost because nobody took them in time.
    """

    def __init__(self, device: str | int | None = None, on_loss: Callable[[str], None] = lambda _: None) -> None:
        """Choose a device; nothing is opened before it is iterated.

        Args:
            device: number, part of a name, or None for the default one.
            on_loss: called with a sentence when sound was lost, when the device went away, and when it is back.

        Raises:
            SourceError: if there is no such device, with help.
        """
        found = find(device)
        self.name, self.rate = str(found["name"]), min(max(round(found["default_samplerate"]), RATES[0]), RATES[1])
        self.overflows = self._told = 0
        self._device, self._on_loss = device, on_loss
        self._blocks: deque[bytes] = deque(maxlen=KEPT)
        self._arrived = asyncio.Event()
        self._loop: asyncio.AbstractEventLoop | None = None

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Blocks as they are recorded, for ever.

        Raises:
            SourceError: if the device cannot be opened the first time.
        """
        self._loop = asyncio.get_running_loop()
        stream = self._open()
        try:
            while True:
                async for block in self._until_silent():
                    yield le_bytes(mixed(samples_of(block), stream.channels))
                self._on_loss(f"{self.name} is gone; waiting for it")
                stream = await self._reopen(stream)
                self._on_loss(f"{self.name} is back")
        finally:
            stream.close(ignore_errors=True)

    async def _until_silent(self) -> AsyncIterator[bytes]:
        """Recorded blocks, until none has come for `GONE_S`."""
        while True:
            self._arrived.clear()
            while self._blocks:
                if self.overflows > self._told:
                    self._told = self.overflows
                    self._on_loss(f"sound was lost (times so far: {self._told}): this machine is too busy to take it")
                yield self._blocks.popleft()
            try:
                await asyncio.wait_for(self._arrived.wait(), GONE_S)
            except TimeoutError:
                return

    def _open(self) -> Any:  # noqa: ANN401 (sounddevice has no types)
        """Open with one channel if the device can."""
        sounddevice, found = portaudio(), find(self._device)
        self.name = str(found["name"])
        for channels in (1, found["max_input_channels"]):
            try:
                stream = sounddevice.RawInputStream(
                    samplerate=self.rate,
                    blocksize=block_samples(self.rate),
                    device=self._device,
                    channels=channels,
                    dtype="int16",
                    callback=self._copy,
                )
                stream.start()
            except sounddevice.PortAudioError as error:
                reason = str(error)
            else:
                return stream
        raise SourceError(
            f"{self.name} cannot be opened: {reason}. Does another program hold it, or a permission lack?"
        )

    async def _reopen(self, stream: Any) -> Any:  # noqa: ANN401 (sounddevice has no types)
        """Look for the device until it is there again; PortAudio lists devices only when it starts."""
        sounddevice = portaudio()
        while True:
            await asyncio.to_thread(stream.close, ignore_errors=True)
            sounddevice._terminate()  # noqa: SLF001 (the library's documented way to see new devices)
            sounddevice._initialize()  # noqa: SLF001
            try:
                return self._open()
            except SourceError:
                await asyncio.sleep(GONE_S / 2)

    def _copy(self, data: Any, _frames: int, _time: Any, status: Any) -> None:  # noqa: ANN401 (sounddevice's own)
        """Runs on PortAudio's thread."""
        if status.input_overflow or len(self._blocks) == KEPT:
            self.overflows += 1
        self._blocks.append(bytes(data))
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._arrived.set)
