"""The JavaScript module: a package that npm would take, typed as the wire is, run by Node against a real server."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import numpy as np
import pytest
import soundfile

from service import protocol
from service.commands.demo import SAMPLE, script
from tests.conftest import Running, Serving
from tests.own_words import variants
from tests.peer import Peer, detection, greet, heartbeat, of_another_version, ready, server
from tests.talk import play, words

WEB = SAMPLE.parent / "web"
PACKAGE = json.loads((WEB / "package.json").read_text())
TYPES = (WEB / "deltaspot.d.ts").read_text()
MESSAGES = {
    "Configuration": protocol.Configure,
    "Detection": protocol.Detection,
    "Enrolled": protocol.Enrolled,
    "Heartbeat": protocol.Heartbeat,
    "KeywordSettings": protocol.KeywordSettings,
    "Ready": protocol.Ready,
    "Scores": protocol.Scores,
    "Totals": protocol.Totals,
}
OWN = {"type", "protocol", "encoding", "channels", "resume", "checkpoint"}
"""Fields that the module fills in, or reads itself."""


def node(code: str, **variables: Any) -> Any:
    """Run a module beside the package's files; what it writes is JSON."""
    program = shutil.which("node")
    if program is None:
        pytest.skip("needs Node")
    head = "".join(f"const {name} = {json.dumps(value)};\n" for name, value in variables.items())
    command = [program, "--experimental-websocket", "--no-warnings", "--input-type=module", "-"]
    done = subprocess.run(command, cwd=WEB, input=head + code, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_package_has_all_that_it_names() -> None:
    entries = [entry if isinstance(entry, dict) else {"default": entry} for entry in PACKAGE["exports"].values()]
    named = {target.removeprefix("./") for entry in entries for target in entry.values()}
    assert named == set(PACKAGE["files"]), "what is published may be imported"
    assert all((WEB / name).is_file() for name in named)
    lines = [line for name in named for line in (WEB / name).read_text().splitlines()]
    imported = {line.split('"')[1].removeprefix("./") for line in lines if line.startswith("import ")}
    assert imported <= named


def test_npm_packs_these_files() -> None:
    if shutil.which("npm") is None:
        pytest.skip("needs npm")
    done = subprocess.run(["npm", "pack", "--dry-run", "--json"], cwd=WEB, capture_output=True, text=True, check=True)
    packed = json.loads(done.stdout)
    (packed,) = packed if isinstance(packed, list) else packed.values()
    assert {file["path"] for file in packed["files"]} == {*PACKAGE["files"], "package.json"}


@pytest.mark.parametrize("name", [name for name in PACKAGE["files"] if name.endswith(".d.ts")])
def test_every_export_is_typed(name: str) -> None:
    code = (WEB / name.replace(".d.ts", ".js")).read_text()
    exported = set(re.findall(r"^export (?:async )?(?:class|function|const) (\w+)", code, re.MULTILINE))
    typed = set(re.findall(r"^export (?:class|function|const) (\w+)", (WEB / name).read_text(), re.MULTILINE))
    assert exported - {"Outbox"} == typed, "Outbox is the module's own"


@pytest.mark.parametrize("name", MESSAGES)
def test_types_are_those_of_the_wire(name: str) -> None:
    body = re.search(rf"export interface {name} {{\n(.*?)^}}", TYPES, re.DOTALL | re.MULTILINE)[1]
    assert set(re.findall(r"^  (\w+)\??:", body, re.MULTILINE)) == set(MESSAGES[name].model_fields) - OWN


def test_streams_go_on_where_trying_again_helps() -> None:
    final = re.search(r"FINAL = new Set\(\[([^]]*)]\)", (WEB / "deltaspot.js").read_text())[1]
    given_up = {code for code in protocol.CloseCode if not code.retry and code is not protocol.CloseCode.NORMAL}
    assert set(map(int, final.split(","))) == given_up


def test_a_server_can_be_named_in_many_ways() -> None:
    code = """
    import { streamUrl } from "./deltaspot.js";
    import { enroll } from "./enroll.js";
    globalThis.fetch = async ({ href }) => ({ ok: true, json: async () => ({ href }) });
    const told = [];
    for (const name of names) told.push([streamUrl(name), (await enroll(name, "hey", [])).href]);
    console.log(JSON.stringify(told));
    """
    names = {
        "ws://h:1/v1/stream?x=1": ["ws://h:1/v1/stream?x=1", "http://h:1/v1/enroll"],
        "http://h:1": ["ws://h:1/v1/stream", "http://h:1/v1/enroll"],
        "https://h/deltaspot/": ["wss://h/deltaspot/v1/stream", "https://h/deltaspot/v1/enroll"],
        "ws://h/deltaspot/v1/stream": ["ws://h/deltaspot/v1/stream", "http://h/deltaspot/v1/enroll"],
        "http://h/own/path": ["ws://h/own/path", "http://h/v1/enroll"],
    }
    assert node(code, names=[*names]) == [*names.values()]


def test_sample_is_streamed_and_heard(running: Running) -> None:
    samples, _ = soundfile.read(SAMPLE / "commands.flac", dtype="int16")
    code = """
    import { connect } from "./deltaspot.js";
    const spotter = await connect(url, { keywords: { yes: {}, stop: {}, go: {} } });
    const words = [];
    spotter.addEventListener("detection", ({ detail }) => words.push(detail.keyword));
    for (let at = 0; at < samples.length; at += 480) spotter.send(Int16Array.from(samples.slice(at, at + 480)));
    const totals = await spotter.finish();
    console.log(JSON.stringify({ words, totals }));
    """
    heard = node(code, url=running.http, samples=samples[: 16_000 * 15].tolist())
    assert set(heard["words"]) <= {"yes", "stop", "go"} & {word.text for word in script()}
    assert heard["words"]
    assert heard["totals"]["samples"] == 16_000 * 15


@pytest.fixture(scope="module")
def strict(serving: Serving) -> Iterator[Running]:
    """A server that takes no more than it has announced."""
    with serving(frame_bytes=1_024, speed=20.0, burst_s=5.0) as one:  # a hiccup of 200 ms does no harm
        yield one


def test_a_file_goes_no_faster_than_a_server_allows(strict: Running) -> None:
    code = """
    import { connect } from "./deltaspot.js";
    const spotter = await connect(url);
    for (let block = 0; block < 500; block++) spotter.send(new Int16Array(320));
    console.log(JSON.stringify(await spotter.finish()));
    """
    assert node(code, url=strict.http)["samples"] == 160_000


def test_an_array_of_any_length_is_sent_as_the_server_takes_it(strict: Running) -> None:
    code = """
    import { connect } from "./deltaspot.js";
    const spotter = await connect(url);
    spotter.send(new Int16Array(160_000));
    console.log(JSON.stringify(await spotter.finish()));
    """
    totals = node(code, url=strict.http)
    assert (totals["samples"], totals["chunks"]) == (160_000, 320), "frames of at most 512 samples"


async def test_what_is_sent_again_fits_the_next_server_too() -> None:
    sizes: list[int] = []

    async def first(peer: Peer) -> None:
        await greet(peer)
        await peer.until(32_000)
        peer.socket.transport.abort()

    async def second(peer: Peer) -> None:
        limits = ready().limits.model_copy(update={"frame_bytes": 1_024})
        await peer.say(ready(peer.start).model_copy(update={"limits": limits}))
        while isinstance(message := await peer.socket.recv(), bytes):
            sizes.append(len(message))
        await peer.end()

    code = """
    import { connect } from "./deltaspot.js";
    const spotter = await connect(url);
    spotter.send(new Int16Array(16_000));
    await spotter.finish();
    console.log(null);
    """
    async with server(first, second) as (url, _peers):
        await asyncio.to_thread(node, code, url=f"ws://{url}")
    assert (max(sizes), sum(sizes)) == (1_024, 32_000)


def test_channels_that_would_be_miscounted_are_refused() -> None:
    code = """
    import { connect } from "./deltaspot.js";
    const { field, message } = await connect("ws://127.0.0.1:9", { channels: 2 }).catch((error) => error);
    console.log(JSON.stringify([field, message]));
    """
    assert node(code) == ["channels", "channels: this module sends one; mix them first"]


def test_audio_goes_on_between_rare_heartbeats(serving: Serving) -> None:
    code = """
    import { connect } from "./deltaspot.js";
    const spotter = await connect(url, { heartbeat_ms: 60_000 });
    for (let second = 0; second < 70; second++) spotter.send(new Int16Array(16_000));
    spotter.configure({ heartbeat_ms: 100 });
    spotter.send(new Int16Array(16_000));
    console.log(JSON.stringify({ ...(await spotter.finish()), lost: spotter.lost }));
    """
    with serving(speed=100.0) as quick:
        totals = node(code, url=quick.http)
    assert (totals["samples"], totals["lost"]) == (16_000 * 71, 0)


async def test_next_connection_brings_no_marker_twice_and_takes_no_feedback() -> None:
    said: list[protocol.ClientMessage] = []

    async def hear(peer: Peer, last: type[protocol.ClientMessage]) -> None:
        await greet(peer)
        while not said or not isinstance(said[-1], last):
            said.append(message := protocol.parse_client(await peer.socket.recv()))
            if isinstance(message, protocol.Marker):
                await peer.say(message)

    async def first(peer: Peer) -> None:
        await hear(peer, protocol.Feedback)
        peer.socket.transport.close()  # what was said still goes

    async def second(peer: Peer) -> None:
        await hear(peer, protocol.Close)
        await peer.end()

    code = """
    import { connect } from "./deltaspot.js";
    const spotter = await connect(url);
    let told = 0;
    spotter.addEventListener("marker", () => told++);
    for (const id of [7, 7]) spotter.marker(id);
    while (told < 2) await new Promise((tell) => setTimeout(tell, 5));
    spotter.feedback(0, true);
    await spotter.finish();
    console.log(JSON.stringify(told));
    """
    async with server(first, second) as (url, _peers):
        assert await asyncio.to_thread(node, code, url=f"ws://{url}") == 2
    kinds = [message.type for message in said]
    assert kinds == ["marker", "marker", "feedback", "close"]


async def test_settings_and_markers_keep_their_places_in_the_next_connections() -> None:
    said: list[list[str]] = []

    async def hear(peer: Peer, markers: int) -> None:
        """Echo the first marker; leave after some of them, or at the end."""
        await greet(peer)
        said.append([])
        while said[-1].count("marker") < markers and "close" not in said[-1]:
            if isinstance(message := await peer.socket.recv(), str):
                said[-1].append((told := protocol.parse_client(message)).type)
                if said == [["marker"]]:
                    await peer.say(told)

    async def first(peer: Peer) -> None:
        await hear(peer, 2)
        peer.socket.transport.abort()

    async def second(peer: Peer) -> None:
        await hear(peer, 9)
        await peer.say(heartbeat(3_200))
        await peer.socket.close(protocol.CloseCode.DRAINING)

    async def third(peer: Peer) -> None:
        await hear(peer, 9)
        await peer.end()

    code = """
    import { connect } from "./deltaspot.js";
    const spotter = await connect(url);
    spotter.send(new Int16Array(1_600));
    spotter.marker(7);
    spotter.configure({ scores: true });
    spotter.send(new Int16Array(1_600));
    await new Promise((told) => spotter.addEventListener("marker", told));
    spotter.marker(7);
    await spotter.finish();
    console.log(null);
    """
    async with server(first, second, third) as (url, peers):
        await asyncio.to_thread(node, code, url=f"ws://{url}")
    assert said == [["marker", "configure", "marker"], ["configure", "marker", "close"], ["marker", "close"]]
    assert [peer.hello.scores for peer in peers] == [False, False, True], "as at the place where each begins"


async def test_scores_that_two_connections_tell_are_told_once() -> None:
    async def tell(peer: Peer, at_s: float, *rows: float) -> None:
        await peer.say(protocol.Scores(at_s=at_s, hop_s=0.03, posteriors=[[row] for row in rows], work=[]))

    async def first(peer: Peer) -> None:
        await greet(peer)
        await tell(peer, 0.03 + 0.08, 0.1, 0.2, 0.3)
        await peer.socket.close(protocol.CloseCode.DRAINING)

    async def second(peer: Peer) -> None:
        await greet(peer)
        await tell(peer, 0.08, 0.2)
        await tell(peer, 0.14, 0.2, 0.3, 0.4)
        await peer.close()

    code = """
    import { connect } from "./deltaspot.js";
    const spotter = await connect(url);
    const told = [];
    spotter.addEventListener("scores", ({ detail }) => told.push(...detail.posteriors));
    await spotter.finish();
    console.log(JSON.stringify(told));
    """
    async with server(first, second) as (url, _peers):
        assert await asyncio.to_thread(node, code, url=f"ws://{url}") == [[0.1], [0.2], [0.3], [0.4]]


async def test_totals_have_the_audio_and_the_detections_of_all_connections() -> None:
    async def hear(peer: Peer, number: int) -> None:
        await greet(peer)
        await peer.until(32_000)
        await peer.say(detection(number, 12_000))

    async def first(peer: Peer) -> None:
        await hear(peer, 0)
        await peer.socket.close(protocol.CloseCode.DRAINING)

    async def second(peer: Peer) -> None:
        await hear(peer, 1)
        await peer.close()

    code = """
    import { connect } from "./deltaspot.js";
    const spotter = await connect(url);
    let closed;
    spotter.addEventListener("closed", ({ detail }) => (closed = detail.totals));
    spotter.send(new Int16Array(16_000));
    const { audio_s, detections } = await spotter.finish();
    console.log(JSON.stringify([audio_s, detections, closed.audio_s, closed.detections]));
    """
    async with server(first, second) as (url, _peers):
        assert await asyncio.to_thread(node, code, url=f"ws://{url}") == [1, 2, 1, 2]


async def test_keepalives_that_are_due_in_months_do_not_go_at_once() -> None:
    async def hear(peer: Peer) -> None:
        await peer.say(ready(idle_s=1e7))
        await peer.close()

    code = """
    import { connect } from "./deltaspot.js";
    const warnings = [];
    process.on("warning", ({ name }) => warnings.push(name));
    await (await connect(url)).finish();
    console.log(JSON.stringify(warnings));
    """
    async with server(hear) as (url, _peers):
        assert "TimeoutOverflowWarning" not in await asyncio.to_thread(node, code, url=f"ws://{url}")


async def test_stream_without_sound_does_not_add_up_its_breaks() -> None:
    async def breaks(peer: Peer) -> None:
        await greet(peer)
        await peer.socket.recv()
        peer.socket.transport.abort()

    async def last(peer: Peer) -> None:
        await greet(peer)
        await peer.close()

    code = """
    import { connect } from "./deltaspot.js";
    const { now } = Date;
    const { send } = WebSocket.prototype;
    let hours = 0;
    Date.now = () => now() + hours * 3_600_000;
    WebSocket.prototype.send = function (data) {
      if (data === '{"type":"close"}') hours++;
      send.call(this, data);
    };
    const spotter = await connect(url);
    console.log(JSON.stringify((await spotter.finish()).samples));
    """
    async with server(breaks, breaks, last) as (url, _peers):
        assert await asyncio.to_thread(node, code, url=f"ws://{url}") == 0


async def test_connection_that_died_unnoticed_is_left_for_the_next() -> None:
    async def first(peer: Peer) -> None:
        await greet(peer)
        await peer.until(32_000)
        await peer.socket.wait_closed()

    async def second(peer: Peer) -> None:
        await greet(peer)
        await peer.close()

    code = """
    import { connect } from "./deltaspot.js";
    const { now } = Date;
    const every = setInterval;
    globalThis.setInterval = (act, ms) => every(act, Math.min(ms, 50));
    Date.now = () => 100 * now();
    const spotter = await connect(url);
    const reasons = [];
    spotter.addEventListener("interrupted", ({ detail }) => {
      reasons.push(detail.reason);
      Date.now = now;
    });
    spotter.send(new Int16Array(40_000));
    await new Promise((again) => spotter.addEventListener("ready", again));
    const { samples } = await spotter.finish();
    console.log(JSON.stringify({ reasons, samples }));
    """
    async with server(first, second) as (url, _peers):
        told = await asyncio.to_thread(node, code, url=f"ws://{url}")
    assert told == {"reasons": ["the server says nothing any more"], "samples": 40_000}


async def test_stream_that_is_abandoned_is_not_opened_again() -> None:
    async def leave(peer: Peer) -> None:
        await greet(peer)
        await peer.socket.recv()
        peer.socket.transport.abort()

    code = """
    import { connect } from "./deltaspot.js";
    const spotter = await connect(url);
    spotter.addEventListener("interrupted", () => spotter.abandon());
    console.log(JSON.stringify(await spotter.finish().catch(({ message }) => message)));
    """
    async with server(leave) as (url, peers):
        assert await asyncio.to_thread(node, code, url=f"ws://{url}") == "this stream was abandoned"
        assert len(peers) == 1


async def test_connection_that_is_closed_before_everything_was_judged_was_interrupted() -> None:
    async def first(peer: Peer) -> None:
        await greet(peer)
        await peer.until(32_000)
        await peer.socket.close(protocol.CloseCode.NORMAL)

    async def second(peer: Peer) -> None:
        await greet(peer)
        await peer.close()

    code = """
    import { connect } from "./deltaspot.js";
    const spotter = await connect(url);
    spotter.send(new Int16Array(16_000));
    console.log(JSON.stringify((await spotter.finish()).samples));
    """
    async with server(first, second) as (url, _peers):
        assert await asyncio.to_thread(node, code, url=f"ws://{url}") == 16_000


async def test_server_of_another_version_begins_with_what_is_kept(running: Running, spoken: np.ndarray) -> None:
    code = """
    import { connect } from "./deltaspot.js";
    const spotter = await connect(url, { point: "dense" });
    spotter.url = next;
    const reasons = [];
    const told = [];
    spotter.addEventListener("interrupted", ({ detail }) => reasons.push(detail.reason));
    spotter.addEventListener("detection", ({ detail }) => told.push([detail.keyword, detail.at_s]));
    spotter.send(Int16Array.from(samples));
    const { samples: heard } = await spotter.finish();
    console.log(JSON.stringify({ reasons, told, heard }));
    """
    wanted = words(await play(running.stream, spoken, protocol.Configure(point="dense")))
    async with server(of_another_version) as (url, _peers):
        more = {"next": running.stream, "samples": spoken.tolist()}
        answer = await asyncio.to_thread(node, code, url=f"ws://{url}", **more)
    assert answer["reasons"][0] == "the connection broke"
    assert "not made by a server of this version" in answer["reasons"][1]
    after = [[word, pytest.approx(at_s, abs=0.25)] for word, at_s in wanted if at_s * 16_000 > 50_000]
    assert answer["told"] == after != []
    assert answer["heard"] < len(spoken) - 5_000, "what was judged is forgotten"


async def test_server_that_accepts_and_says_nothing_is_left_for_the_next() -> None:
    async def first(peer: Peer) -> None:
        await greet(peer)
        await peer.until(32_000)
        peer.socket.transport.abort()

    async def second(peer: Peer) -> None:
        await peer.socket.wait_closed()

    async def third(peer: Peer) -> None:
        await greet(peer)
        await peer.close()

    code = """
    import { connect } from "./deltaspot.js";
    const spotter = await connect(url);
    const wait = setTimeout;
    const reasons = [];
    spotter.addEventListener("interrupted", ({ detail }) => {
      reasons.push(detail.reason);
      globalThis.setTimeout = reasons.length === 1 ? (act, ms) => wait(act, Math.min(ms, 500)) : wait;
    });
    spotter.send(new Int16Array(16_000));
    const { samples } = await spotter.finish();
    console.log(JSON.stringify({ reasons, samples }));
    """
    async with server(first, second, third) as (url, _peers):
        told = await asyncio.to_thread(node, code, url=f"ws://{url}")
    assert told == {"reasons": ["the connection broke", "the server says nothing"], "samples": 16_000}


async def test_an_array_that_is_used_again_is_sent_as_it_was() -> None:
    async def hear(peer: Peer) -> None:
        await greet(peer)
        await peer.close()

    code = """
    import { connect } from "./deltaspot.js";
    const spotter = await connect(url);
    const own = new Int16Array(1_600);
    for (let block = 0; block < 20; block++) spotter.send(own.fill(block));
    own.fill(99);
    console.log(JSON.stringify((await spotter.finish()).samples));
    """
    async with server(hear) as (url, peers):
        assert await asyncio.to_thread(node, code, url=f"ws://{url}") == 32_000
    assert peers[0].audio == np.arange(20, dtype="<i2").repeat(1_600).tobytes()


async def test_nothing_follows_the_end() -> None:
    async def hear(peer: Peer) -> None:
        await greet(peer)
        await peer.close()

    code = """
    import { connect } from "./deltaspot.js";
    const spotter = await connect(url);
    spotter.send(new Int16Array(1_600));
    const { samples } = await spotter.finish();
    const again = await spotter.finish();
    const says = [() => spotter.send(new Int16Array(9)), () => spotter.flush(), () => spotter.configure({})];
    const said = says.map((say) => {
      try { return say(); } catch ({ name, message }) { return [name, message]; }
    });
    console.log(JSON.stringify({ samples, again: again.samples, said }));
    """
    async with server(hear) as (url, peers):
        told = await asyncio.to_thread(node, code, url=f"ws://{url}")
    assert (told["samples"], told["again"]) == (1_600, 1_600)
    assert told["said"] == [["SpotterError", "this stream is finished; connect() begins another one"]] * 3
    assert len(peers[0].audio) == 2 * 1_600


def test_a_word_is_cut_out_of_an_array_that_is_used_again() -> None:
    code = """
    import { Takes } from "./enroll.js";
    const takes = new Takes();
    const own = new Int16Array(480);
    const words = [];
    const blocks = [...Array(5).fill(0), ...Array(10).fill(9_000), ...Array(20).fill(0)];
    for (const value of blocks) words.push(takes.feed(own.fill(value)));
    console.log(JSON.stringify([...words.find(Boolean)].filter(Boolean).length));
    """
    assert node(code) == 10 * 480


async def test_refused_connection_is_tried_again_until_there_was_no_progress_for_long_enough() -> None:
    async def leave(peer: Peer) -> None:
        await greet(peer)
        peer.socket.server.close()
        await peer.socket.wait_closed()

    code = """
    import { connect } from "./deltaspot.js";
    const first = await connect("ws://127.0.0.1:9").catch(({ message, code }) => [message, code]);
    const spotter = await connect(url, { retrySeconds: 0.5 });
    const reasons = [];
    spotter.addEventListener("interrupted", ({ detail }) => reasons.push(detail.reason));
    const last = await spotter.finish().catch(({ message, code }) => [message, code]);
    console.log(JSON.stringify({ first, reasons, last }));
    """
    async with server(leave) as (url, _peers):
        told = await asyncio.to_thread(node, code, url=f"ws://{url}")
    assert told["first"] == told["last"] == ["no server answers", 0]
    assert told["reasons"][1:] == ["no server answers"] * (len(told["reasons"]) - 1) != []


def test_answer_that_is_no_server_of_ours_is_said() -> None:
    class Proxy(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["Content-Length"]))
            self.send_response(502)
            self.end_headers()
            self.wfile.write(b"<html>Bad Gateway</html>")

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    code = """
    import { enroll } from "./enroll.js";
    const told = await enroll(url, "seven", [new Int16Array(16000)]).catch(({ name, message }) => [name, message]);
    console.log(JSON.stringify(told));
    """
    with HTTPServer(("127.0.0.1", 0), Proxy) as proxy:
        thread = threading.Thread(target=proxy.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{proxy.server_port}"
        name, message = node(code, url=url)
        proxy.shutdown()
        thread.join()
    assert (name, message) == ("SpotterError", f"no deltaspot server answers at {url}/v1/enroll: HTTP 502")


def test_keyword_is_made(learning: Running, spoken: Any) -> None:
    clips = [samples.astype("int16").tolist() for samples in variants(spoken, "seven", 3)]
    code = """
    import { enroll } from "./enroll.js";
    const made = await enroll(url, "seven", clips.map((clip) => Int16Array.from(clip)), { threshold: 0.6 });
    const refused = await enroll(url, "seven", [new Int16Array(16000)]).catch(({ message }) => message);
    console.log(JSON.stringify({ made, refused }));
    """
    answer = node(code, url=learning.stream, clips=clips)
    keyword = protocol.Enrolled.model_validate_json(json.dumps(answer["made"]))
    assert (keyword.name, keyword.recordings, keyword.threshold) == ("seven", 3, 0.6)
    assert "recording 1 is silent" in answer["refused"]
