"""A headless Chromium over its own protocol (CDP), just enough to use a page as a person does. No test in here."""

from __future__ import annotations

import asyncio
import base64
import itertools
import json
import re
import shutil
import subprocess
import tempfile
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import soundfile
import soxr
from websockets.asyncio.client import ClientConnection, connect

from tests.programs import lacking

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --remote-debugging-port=0 --mute-audio --hide-scrollbars "
    "--use-fake-ui-for-media-stream --use-fake-device-for-media-stream"
)


class Page:
    """One tab.

    Attributes:
        complaints: what the page logged as an error, exceptions and refused content included.
        context: what it shares with no other tab: storage, permissions, downloads.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._ids = socket, itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._session: str | None = None
        self.context: dict[str, Any] = {}
        self._loaded = asyncio.Event()
        self.complaints: list[str] = []
        self._reader = asyncio.create_task(self._read())

    async def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._ids)
        self._answers[number] = asyncio.get_running_loop().create_future()
        message = {"id": number, "method": method, "params": params}
        await self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        answer = await self._answers[number]
        assert "error" not in answer, answer["error"]
        return answer.get("result", {})

    async def open(
        self, url: str, width: int = 1280, height: int = 900, scheme: str = "dark", scale: float = 1
    ) -> None:
        target = await self.call("Target.createTarget", url="about:blank", **self.context)
        self._session = (await self.call("Target.attachToTarget", flatten=True, **target))["sessionId"]
        for domain in ("Page", "Runtime", "Log", "DOM"):
            await self.call(f"{domain}.enable")
        size = {"width": width, "height": height, "deviceScaleFactor": scale, "mobile": width < 600}
        await self.call("Emulation.setDeviceMetricsOverride", **size)
        await self.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        await self.call("Page.navigate", url=url)
        await self.until("document.readyState === 'complete'")

    async def reload(self) -> None:
        """Load the page anew; what it kept stays."""
        self._loaded.clear()
        await self.call("Page.reload")
        await asyncio.wait_for(self._loaded.wait(), 30)

    async def run(self, script: str) -> Any:
        """Value of an expression; promises are awaited."""
        result = await self.call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True, userGesture=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    async def until(self, condition: str, seconds: float = 30) -> Any:
        """Wait until an expression is true, looking at every frame; return its value."""
        frames = "new Promise(resolve => {const look = () => {let v; try {v = (" + condition + ")} catch {}; "
        frames += "v ? resolve(v) : setTimeout(look, 16)}; look()})"
        return await asyncio.wait_for(self.run(frames), seconds)

    async def choose(self, selector: str, file: Path) -> None:
        """Put a file into a file input."""
        root = await self.call("DOM.getDocument")
        node = await self.call("DOM.querySelector", nodeId=root["root"]["nodeId"], selector=selector)
        await self.call("DOM.setFileInputFiles", files=[str(file)], **node)

    async def press(self, key: str, code: int) -> None:
        """Press and release a key."""
        for kind in ("keyDown", "keyUp"):
            text = {"text": "\r"} if key == "Enter" and kind == "keyDown" else {}
            await self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)

    async def picture(self, *, whole: bool = False) -> bytes:
        """The page as PNG."""
        return base64.b64decode((await self.call("Page.captureScreenshot", captureBeyondViewport=whole))["data"])

    async def _read(self) -> None:
        async for text in self._socket:
            message = json.loads(text)
            if waiting := self._answers.pop(message.get("id"), None):
                waiting.set_result(message)
            elif message.get("method") == "Page.loadEventFired":
                self._loaded.set()
            elif message.get("method") == "Runtime.exceptionThrown":
                details = message["params"]["exceptionDetails"]
                self.complaints.append(details.get("exception", {}).get("description", details["text"]))
            elif message.get("method") == "Log.entryAdded" and message["params"]["entry"]["level"] == "error":
                self.complaints.append(message["params"]["entry"]["text"])


@contextmanager
def chromium(*flags: str) -> Iterator[str]:
    """A Chromium of its own -> where it is spoken to."""
    if CHROMIUM is None:
        lacking("needs Chromium: apt-get install chromium")
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        log = Path(profile, "log")
        command = [CHROMIUM, *FLAGS.split(), f"--user-data-dir={profile}", *flags]
        with log.open("wb") as lines, subprocess.Popen(command, stderr=lines) as process:
            try:
                while not (found := re.search(r"DevTools listening on (\S+)\n", log.read_text(errors="replace"))):
                    assert process.poll() is None, "Chromium did not start"
                    threading.Event().wait(0.01)
                yield found[1]
            finally:
                process.kill()


@asynccontextmanager
async def tab(address: str) -> AsyncIterator[Page]:
    """A tab of a Chromium that may have others, which shares nothing with them."""
    async with connect(address, max_size=None) as socket:
        page = Page(socket)
        page.context = await page.call("Target.createBrowserContext", disposeOnDetach=True)
        yield page


@asynccontextmanager
async def browser(microphone: Path | None = None) -> AsyncIterator[Page]:
    """A tab in a Chromium of its own, whose microphone plays a WAV file once."""
    flags = [f"--use-file-for-fake-audio-capture={microphone}%noloop"] if microphone else []
    with chromium(*flags) as address:
        async with tab(address) as page:
            yield page


def as_microphone(recording: Path, folder: Path, gain: float = 1.0) -> Path:
    """A recording as Chromium's fake microphone wants it: WAV at 48 kHz."""
    samples, rate = soundfile.read(recording, dtype="float32")
    path = folder / "microphone.wav"
    soundfile.write(path, gain * soxr.resample(samples, rate, 48_000), 48_000, subtype="PCM_16")
    return path
