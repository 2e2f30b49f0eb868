"""The page in a real Chromium on a real server, its microphone playing a recording: used as a person would use it."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json

import numpy as np
import pytest
import soundfile

from client.keywords import enroll, read_keyword
from models.features import FrameStream, log_mel
from service.commands.demo import SAMPLE, script
from service.commands.own_server import free_port, server
from service.protocol import Enrolled, KeywordFile
from tests.browser import Page, as_microphone, browser, tab
from tests.own_words import variants

pytestmark = pytest.mark.system

RECORDING = SAMPLE / "commands.flac"
SAID = {word.text for word in script()}
WORDS = "[...document.querySelectorAll('#detections b')].map(b => b.textContent)"
ENOUGH = 4
PATIENCE_S = 120


@pytest.fixture(scope="module")
def port(running):
    return running.port


async def listen(page: Page, port: int, **view) -> None:
    await page.open(f"http://127.0.0.1:{port}/", **view)
    await page.run("document.getElementById('listen').focus()")
    await page.press("Enter", 13)


async def test_spoken_words_appear(port, tmp_path):
    async with browser(as_microphone(RECORDING, tmp_path)) as page:
        await listen(page, port)
        await page.until(f"{WORDS}.length >= {ENOUGH}", PATIENCE_S)
        heard = await page.run(WORDS)
        skipped = await page.until("parseFloat(document.getElementById('window').textContent)")
        drawn = await page.run(
            "Promise.all(['mel', 'posteriors', 'work'].map(async (id) => {"
            "const canvas = document.getElementById(id);"
            "const {data} = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);"
            "return new Set(new Uint32Array(data.buffer)).size}))"
        )
        layers = await page.run("document.getElementById('layers').innerText.split('\\n')")
    assert set(heard) <= SAID
    assert skipped > 90
    assert min(drawn) > 20, "every lane has many colours once there was sound"
    assert layers[0] == "stem"
    assert layers[-1] == "read-out"
    assert page.complaints == []


async def test_silence_brings_no_words(port, tmp_path):
    async with browser(as_microphone(RECORDING, tmp_path, gain=0.0)) as page:
        await listen(page, port)
        await page.until("parseFloat(document.getElementById('seconds').textContent) > 2", PATIENCE_S)
        assert await page.run(WORDS) == []
        assert await page.run("document.getElementById('level').value") == -60
    assert page.complaints == []


async def test_file_is_judged_and_sliders_and_boxes_act(chromium, port):
    judged = "/words?\\.$/.test(document.getElementById('status').textContent)"
    all_sliders = "document.querySelectorAll('#sliders input[type=range]').forEach(s => {s.value = 1; s.oninput()})"
    all_boxes = "document.querySelectorAll('#sliders input[type=checkbox]').forEach(b => b.click())"
    async with tab(chromium) as page:
        await page.open(f"http://127.0.0.1:{port}/")
        heard = []
        for change in ("0", all_sliders, all_boxes):
            await page.run(change)
            await page.choose("#file", RECORDING)
            await page.until("document.getElementById('status').textContent.startsWith('Judging')", PATIENCE_S)
            await page.until(judged, PATIENCE_S)
            heard.append(await page.run(WORDS))
        crossed = await page.run("document.querySelectorAll('#names .off').length")
    assert len(heard[0]) >= ENOUGH
    assert len(heard[1]) < len(heard[0]), "a threshold of 0.99 is hardly ever reached"
    assert heard[2] == []
    assert crossed == 10
    assert page.complaints == []


@pytest.fixture(scope="module")
def teacher(learning):
    return learning.port


def repeated(spoken, folder, gain):
    """Somebody who says `seven` again and again, for Chromium's fake microphone."""
    hiss = np.random.default_rng(1).normal(0, 10, 24_000)
    pieces = [piece for word in variants(spoken, "seven", 9) for piece in (hiss, word)]
    path = folder / "seven.wav"
    soundfile.write(path, np.concatenate(pieces).clip(-32768, 32767).astype(np.int16), 16_000)
    return as_microphone(path, folder, gain)


TROUBLES = "document.getElementById('own').textContent"
OWN = "[...document.querySelectorAll('#own b')].map(b => b.textContent)"


async def teach(page: Page, port: int) -> None:
    await page.open(f"http://127.0.0.1:{port}/")
    await page.run("document.getElementById('word').value = 'lucky'")
    await page.run("document.getElementById('word').focus()")
    await page.press("Enter", 13)


async def test_word_that_is_said_three_times_is_heard(teacher, spoken, tmp_path):
    async with browser(repeated(spoken, tmp_path, 1.0)) as page:
        await teach(page, teacher)
        await page.until("document.querySelectorAll('#takes .done').length === 2", PATIENCE_S)
        await page.until(f"{OWN}.includes('lucky')", PATIENCE_S)
        await page.until(f"{WORDS}.includes('lucky')", PATIENCE_S)
        rows = await page.run("document.querySelectorAll('#sliders input').length")
        kept = await page.run("JSON.parse(localStorage.getItem('deltaspot-keywords'))[0]")
        await page.reload()
        await page.until(f"{OWN}.includes('lucky')", PATIENCE_S)
        await page.run("document.querySelector('#own [aria-label^=Forget]').click()")
        await page.until(f"{OWN}.length === 0", PATIENCE_S)
    assert rows == 22, "ten words and this one"
    assert Enrolled.model_validate_json(json.dumps(kept)).recordings == 3
    assert page.complaints == []


async def test_word_is_not_made_of_silence(teacher, spoken, tmp_path):
    async with browser(repeated(spoken, tmp_path, 0.0)) as page:
        await teach(page, teacher)
        await page.until("/Nothing was heard/.test(document.getElementById('status').textContent)", PATIENCE_S)
        assert await page.run(OWN) == []
        assert await page.run("document.getElementById('say').textContent") == "Say it three times"
    assert page.complaints == []


async def test_file_of_a_keyword_is_taken(chromium, teacher, tmp_path):
    word = {"format": "deltaspot-keyword-3", "name": "hey", "fingerprint": "f", "recordings": 1, "prototype": [0.5]}
    word["weights"] = [0.1, 0.2]
    (tmp_path / "hey.json").write_text(json.dumps(word))
    (tmp_path / "no.json").write_text("{}")
    (tmp_path / "old.json").write_text(json.dumps(word | {"format": "deltaspot-keyword-1"}))
    async with tab(chromium) as page:
        await page.open(f"http://127.0.0.1:{teacher}/")
        await page.choose("#file", tmp_path / "no.json")
        await page.until("/is no keyword/.test(document.getElementById('status').textContent)", PATIENCE_S)
        await page.choose("#file", tmp_path / "old.json")
        await page.until("/another version. Say it three times/.test(document.getElementById('status').textContent)")
        await page.run("localStorage.setItem('deltaspot-keywords', '[{\"name\": \"ancient\"}]')")
        await page.reload()
        await page.until(f"/older version. Say it three times/.test({TROUBLES})")
        await page.until("!document.getElementById('point').disabled")  # the page knows the model
        await page.choose("#file", tmp_path / "hey.json")
        await page.until(f"{OWN}.includes('hey')", PATIENCE_S)
        await page.until("/another model. Say it three times/.test(document.getElementById('status').textContent)")
        await page.until(f"/another model. Say it three times/.test({TROUBLES})")
        saved = tmp_path / "saved"
        await page.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(saved))
        await page.run("document.querySelector('#own [aria-label^=Save]').click()")
        async with asyncio.timeout(PATIENCE_S):
            while not ((saved / "hey.json").is_file() and (saved / "hey.json").read_text().endswith("\n")):
                await page.run("new Promise(requestAnimationFrame)")
        assert read_keyword(saved / "hey.json") == read_keyword(tmp_path / "hey.json")
        await page.choose("#file", RECORDING)
        await page.until("/words?\\.$/.test(document.getElementById('status').textContent)", PATIENCE_S)
        assert len(await page.run(WORDS)) >= ENOUGH, "words of other models and versions are left at home"
    assert page.complaints == []


async def test_word_that_fits_no_longer_is_not_asked_for_though_its_slider_was_moved(
    chromium, teacher, spoken, tmp_path
):
    for number, samples in enumerate(variants(spoken, "seven", 3)):
        soundfile.write(tmp_path / f"{number}.wav", samples.astype(np.int16), 16_000)
    made = await enroll(f"http://127.0.0.1:{teacher}", "lucky", [tmp_path / f"{number}.wav" for number in range(3)])
    word = KeywordFile(**made.model_dump()).model_dump(mode="json")
    (tmp_path / "lucky.json").write_text(json.dumps(word))
    (tmp_path / "other.json").write_text(json.dumps(word | {"fingerprint": "f"}))
    judged = "/words?\\.$/.test(document.getElementById('status').textContent)"
    async with tab(chromium) as page:
        await page.open(f"http://127.0.0.1:{teacher}/")
        await page.until("!document.getElementById('point').disabled")  # the page knows the model
        await page.choose("#file", tmp_path / "lucky.json")
        await page.until(f"{OWN}.includes('lucky')", PATIENCE_S)
        await page.choose("#file", RECORDING)
        await page.until(judged, PATIENCE_S)
        await page.run("document.getElementById('sensitivity-lucky').oninput()")
        await page.choose("#file", tmp_path / "other.json")
        await page.until(f"/another model/.test({TROUBLES})", PATIENCE_S)
        await page.choose("#file", RECORDING)
        await page.until(f"{judged} || /know/.test(document.getElementById('status').textContent)", PATIENCE_S)
        assert len(await page.run(WORDS)) >= ENOUGH
    assert page.complaints == []


async def test_ninth_word_takes_no_others_place(chromium, port, tmp_path):
    word = {"format": "deltaspot-keyword-3", "fingerprint": "f", "recordings": 1, "prototype": [0.5], "weights": [0.1]}
    names = [f"word{number}" for number in range(9)]
    for name in names:
        (tmp_path / f"{name}.json").write_text(json.dumps(word | {"name": name}))
    async with tab(chromium) as page:
        await page.open(f"http://127.0.0.1:{port}/")
        for count, name in enumerate(names[:8], 1):
            await page.choose("#file", tmp_path / f"{name}.json")
            await page.until(f"{OWN}.length === {count}", PATIENCE_S)
        await page.choose("#file", tmp_path / "word8.json")
        await page.until("/word8.json finds no room/.test(document.getElementById('status').textContent)", PATIENCE_S)
        assert await page.run(OWN) == names[:8]
        await page.run("document.getElementById('word').value = 'word9'; document.getElementById('say').click()")
        await page.until("/“word9” finds no room/.test(document.getElementById('status').textContent)", PATIENCE_S)
        await page.choose("#file", tmp_path / "word0.json")
        await page.until(f"{OWN}.at(-1) === 'word0'", PATIENCE_S)
    assert page.complaints == []


@pytest.mark.parametrize(
    "before",
    [
        """for (const name of ["keywords", "theme"]) localStorage.setItem(`deltaspot-${name}`, '{"not": "ours"}')""",
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('', 'SecurityError') } })",
    ],
)
async def test_page_needs_nothing_that_a_browser_keeps(chromium, port, before):
    async with tab(chromium) as page:
        await page.open(f"http://127.0.0.1:{port}/")
        await page.call("Page.addScriptToEvaluateOnNewDocument", source=before)
        await page.reload()
        await page.until("!document.getElementById('point').disabled", PATIENCE_S)
        scheme = await page.run("getComputedStyle(document.documentElement).colorScheme")
        await page.run("document.getElementById('theme').click()")
        assert await page.run("getComputedStyle(document.documentElement).colorScheme") != scheme
        assert await page.run(OWN) == []
    assert page.complaints == []


async def test_what_is_no_audio_is_said(chromium, port, tmp_path):
    path = tmp_path / "letter.wav"
    path.write_text("Dear friend")
    async with tab(chromium) as page:
        await page.open(f"http://127.0.0.1:{port}/")
        await page.choose("#file", path)
        await page.until("/no audio/.test(document.getElementById('status').textContent)", PATIENCE_S)
        assert await page.run("document.getElementById('listen').getAttribute('aria-pressed')") == "false"


async def test_server_that_wants_a_key_may_be_restarted(tmp_path):
    keys = tmp_path / "keys"
    keys.write_text(f"page {hashlib.sha256(b'open sesame').hexdigest()} stream\n")
    port, settings = free_port(0), {"keys": str(keys), "drain_s": "0"}
    async with browser(as_microphone(RECORDING, tmp_path)) as page:
        with server(port, **settings):
            await listen(page, port)
            await page.until("!document.getElementById('access').hidden", PATIENCE_S)
            await page.run("document.getElementById('key').value = 'open sesame'")
            await page.run("document.getElementById('listen').click()")
            await page.until(f"{WORDS}.length >= 1", PATIENCE_S)
            before = await page.run("parseFloat(document.getElementById('seconds').textContent)")
        await page.until("/Interrupted|stop/.test(document.getElementById('status').textContent)", PATIENCE_S)
        with server(port, **settings):
            await page.until(f"{WORDS}.length >= {ENOUGH}", PATIENCE_S)
            after = await page.run("parseFloat(document.getElementById('seconds').textContent)")
            heard = await page.run(WORDS)
            times = await page.run(
                "[...document.querySelectorAll('#detections time')].map(t => parseFloat(t.textContent))"
            )
    assert after > before, "the stream's clock goes on"
    assert set(heard) <= SAID
    assert times == sorted(set(times), reverse=True), "no detection is told twice"


@pytest.mark.parametrize(("width", "scheme"), [(360, "light"), (1280, "dark")])
async def test_page_fits_and_everything_has_a_name(chromium, port, width, scheme):
    async with tab(chromium) as page:
        await page.open(f"http://127.0.0.1:{port}/", width=width, scheme=scheme)
        await page.choose("#file", RECORDING)
        await page.until("document.querySelectorAll('#sliders input').length === 20", PATIENCE_S)
        assert await page.run("document.documentElement.scrollWidth") <= width
        nameless = (
            "[...document.querySelectorAll('button, input, select, canvas:not([aria-hidden]), meter')].filter("
            "e => !(e.ariaLabel || e.textContent.trim() || e.labels?.length)).map(e => e.outerHTML)"
        )
        assert await page.run(nameless) == []
        assert await page.run("getComputedStyle(document.documentElement).colorScheme") == scheme
        await page.run("document.getElementById('theme').click()")
        assert await page.run("getComputedStyle(document.documentElement).colorScheme") != scheme
    assert page.complaints == []


async def test_browser_computes_the_networks_own_picture(chromium, port, network, spoken):
    samples = spoken[:16_000]
    text = base64.b64encode(samples.astype("<i2").tobytes()).decode()
    async with tab(chromium) as page:
        await page.open(f"http://127.0.0.1:{port}/")
        shown = await page.run(
            "import('/logmel.js').then(({LogMel}) => {"
            f"const bytes = Uint8Array.from(atob('{text}'), c => c.charCodeAt(0));"
            "const samples = new Int16Array(bytes.buffer), mel = new LogMel(), frames = [];"
            "for (let i = 0; i < samples.length; i += 77) frames.push(...mel.feed(samples.slice(i, i + 77)));"
            "return frames.map(f => [...f])})"
        )
    tokens = FrameStream(network.config).feed(samples.astype(np.float32))
    frames = log_mel([tokens], network.config).reshape(3 * len(tokens), -1)
    wanted = np.array(shown[: len(frames)], np.float32)
    slope, offset = np.polyfit(wanted.ravel(), frames.ravel(), 1)
    assert np.abs(slope * wanted + offset - frames).max() < 1.5 * slope, "equal but for rounding to whole grey levels"


async def test_browser_resamples_without_aliases(chromium, port):
    script = """import('/resampler.js').then(({Resampler}) => [440, 6000, 10000].map(hz => {
        const resampler = new Resampler(44100), heard = [];
        const block = i => Float32Array.from({length: 128}, (_, n) => Math.sin(2 * Math.PI * hz * (i + n) / 44100));
        for (let i = 0; i < 44100; i += 128) heard.push(...resampler.feed(block(i)));
        return Math.sqrt(heard.slice(2000, 14000).reduce((sum, x) => sum + x * x, 0) / 12000);
    }))"""
    async with tab(chromium) as page:
        await page.open(f"http://127.0.0.1:{port}/")
        low, high, beyond = await page.run(script)
    assert low == pytest.approx(0.7071, abs=0.003)
    assert high == pytest.approx(0.7071, abs=0.02)
    assert beyond < 0.001
