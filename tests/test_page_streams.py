"""The page's streams where a person or a server is not as quick as the page: Stop holds, and nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest
import soundfile

from tests.browser import tab

pytestmark = pytest.mark.system

WATCHED = """
window.sockets = [];
window.WebSocket = class extends WebSocket {
  constructor(url) {
    super(url);
    sockets.push(this);
  }
};
const ask = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
navigator.mediaDevices.getUserMedia = async (wanted) => {
  await new Promise((allow) => (window.allow = allow));
  return (window.heard = await ask(wanted));
};
"""
"""The page's connections are seen, and the microphone is granted when the test says so."""
STATUS = "document.getElementById('status').textContent"
CLICK = "document.getElementById('listen').click()"
LET_GO = "sockets.length === 1 && sockets[0].readyState === WebSocket.CLOSED"
HASTY = "const ticks = setInterval; window.setInterval = (act, ms) => ticks(() => [...Array(20)].forEach(act), ms)"
"""A file is given out twenty times as fast."""


@pytest.fixture(scope="module")
def port(running):
    return running.port


async def test_stop_while_the_browser_asks_leaves_no_microphone_on(chromium, port):
    async with tab(chromium) as page:
        await page.open(f"http://127.0.0.1:{port}/")
        await page.run(WATCHED)
        await page.run(CLICK)
        await page.until("window.allow")
        await page.run(f"{CLICK}; allow()")
        await page.until("window.heard?.getTracks().every((track) => track.readyState === 'ended')")
        await page.until(LET_GO)
        assert await page.run(STATUS) == "Stopped."
    assert page.complaints == []


async def test_stop_while_the_page_connects_is_not_forgotten(chromium, port):
    async with tab(chromium) as page:
        await page.open(f"http://127.0.0.1:{port}/")
        await page.run(WATCHED)
        await page.run(f"(async () => {{{CLICK}; while ({STATUS} !== 'Connecting …') await null; {CLICK}}})()")
        await page.until(LET_GO)
        assert await page.run(STATUS) == "Stopped."
        assert await page.run("window.allow === undefined"), "nobody is asked for a microphone"
    assert page.complaints == []


async def test_file_waits_for_a_slow_server(chromium, serving, tmp_path):
    soundfile.write(tmp_path / "long.wav", np.zeros(16_000 * 100, np.int16), 16_000)
    with serving(speed=12.0) as slow:
        async with tab(chromium) as page:
            await page.open(f"http://127.0.0.1:{slow.port}/")
            await page.run(HASTY)
            await page.choose("#file", tmp_path / "long.wav")
            await page.until(f"{STATUS}.endsWith(' words.')", 120)
            assert await page.run(STATUS) == "long.wav: 100.0 s, 0 words."
    assert page.complaints == []
