"""The page's streams where a person or a server is not as quick as the page, and where a proxy lies between them."""

from __future__ import annotations

import asyncio
import json
import re
from contextlib import asynccontextmanager, suppress

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


async def listening(page, port):
    """Listen as a person does, with connections and microphone seen."""
    await page.open(f"http://127.0.0.1:{port}/")
    await page.run(WATCHED)
    await page.run(CLICK)
    await page.until("window.allow")
    await page.run("allow()")
    await page.until(f"{STATUS}.startsWith('Listening to')")


async def test_stream_whose_end_nobody_answers_is_let_go_and_says_nothing_into_the_next(chromium, port):
    word = {"type": "detection", "id": 0, "keyword": "late", "score": 0.9, "latency_ms": 1}
    word |= {"start_s": 0, "end_s": 0, "at_s": 0}
    async with tab(chromium) as page:
        await listening(page, port)
        await page.run("window.say = sockets[0].onmessage; sockets[0].send = () => {}; delete window.allow")
        await page.run(f"{CLICK}; {CLICK}")
        await page.until("window.allow")
        await page.run(f"say({{data: {json.dumps(json.dumps(word))}}}); allow()")
        await page.until("sockets[0].readyState === WebSocket.CLOSED")
        await page.until(f"{STATUS}.startsWith('Listening to')")
        assert await page.run("document.querySelectorAll('#detections li').length") == 0
        assert await page.run("sockets.length") == 2
    assert page.complaints == []


async def test_slider_is_no_interruption_and_a_microphone_may_be_unplugged(chromium, port):
    async with tab(chromium) as page:
        await listening(page, port)
        before = await page.run(STATUS)
        await page.run(
            "sockets[0].addEventListener('message', ({data}) => (window.adjusted ||= /\"ready\"/.test(data)))"
        )
        await page.run("document.querySelector('#sliders input[type=range]').oninput()")
        await page.until("window.adjusted")
        assert await page.run(STATUS) == before
        await page.run("heard.getTracks()[0].dispatchEvent(new Event('ended'))")
        await page.until(f"{STATUS}.startsWith('The microphone is gone.')")
        assert await page.run(LET_GO)
        assert await page.run("document.getElementById('listen').getAttribute('aria-pressed')") == "false"
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


async def poured(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All that one side says, to the other."""
    with suppress(ConnectionError):
        while data := await reader.read(65_536):
            writer.write(data)
    writer.close()


@asynccontextmanager
async def proxy(port: int, host: bytes = rb"\g<0>"):
    """Puts a server under `/deltaspot/` and has nothing else; may call it by another name."""

    async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        there, back = await asyncio.open_connection("127.0.0.1", port)
        head = re.sub(rb"^(\w+) (/deltaspot)?", lambda line: line[1] + (b" " if line[2] else b" /nothing"), head)
        head = re.sub(rb"(?<=\nHost: )[^\r]+", host, head.replace(b"\nConnection: keep-alive", b"\nConnection: close"))
        back.write(head)
        await asyncio.gather(poured(reader, back), poured(there, writer))

    async with await asyncio.start_server(pass_on, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}/deltaspot/"


async def test_page_works_under_a_path(chromium, port, tmp_path):
    soundfile.write(tmp_path / "short.wav", np.zeros(16_000, np.int16), 16_000)
    async with proxy(port) as url, tab(chromium) as page:
        await page.open(url)
        await page.choose("#file", tmp_path / "short.wav")
        await page.until(f"{STATUS} === 'short.wav: 1.0 s, 0 words.'", 60)
    assert page.complaints == []


async def test_refused_stream_is_no_absent_server(chromium, port):
    async with proxy(port, b"elsewhere") as url, tab(chromium) as page:  # so that the page's origin is a stranger's
        await page.open(url)
        await page.run(CLICK)
        await page.until(f"{STATUS}.startsWith('The server is there (ready), but refused the stream.')", 60)
