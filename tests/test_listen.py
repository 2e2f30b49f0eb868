"""The commands of a client: `deltaspot listen` and `deltaspot detect`."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import os
import pty
import shlex
import signal
import subprocess
import sys
import threading
import wave
from contextlib import nullcontext, suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import numpy as np
import pytest
import soundfile
import typer
from rich.console import Console
from typer.testing import CliRunner
from websockets.asyncio.server import serve

from client.connection import connect
from client.display import PlainLines
from client.errors import CannotConnect, SourceError
from client.sources import AudioFile
from service.commands.demo import SAMPLE, script
from service.commands.detect import app as detect_command
from service.commands.detect import here, remotely
from service.commands.listen import Runner, Saver, follow, opened
from service.commands.listen import app as listen_command
from service.commands.own_server import free_port
from service.protocol import Detection, Failed, parse_client
from tests.peer import Peer, detection, greet, server


def heard(**changes) -> Detection:
    return detection(3, 10).model_copy(update={"keyword": "stop", "score": 0.876, "start_s": 12.345} | changes)


def test_command_gets_values_as_arguments_and_no_shell_reads_them():
    runner = Runner("echo 'word: {keyword}' {score} at={start_s} { other } {} $(rm) ; `ls`")
    assert runner.filled(heard(keyword="'; rm -rf / {score} $HOME")) == [
        "echo",
        "word: '; rm -rf / {score} $HOME",
        "0.876",
        "at=12.35",
        "{",
        "other",
        "}",
        "{}",
        "$(rm)",
        ";",
        "`ls`",
    ]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("echo 'unclosed", 'No closing quotation in "echo \'unclosed"'),
        ("", "there is no command ''"),
        ("no-such-program {keyword}", "there is no command 'no-such-program'"),
        ("echo {keyword} {word}", "fills in {keyword} {score} {start_s} {end_s}, and knows no {word}"),
    ],
)
def test_command_that_cannot_run_is_refused_before_anything_is_opened(command, reason, tmp_path):
    options = ["--on-detect", command, "--save-clips", str(tmp_path / "clips")]
    done = CliRunner().invoke(listen_command, [str(tmp_path / "none.wav"), *options], standalone_mode=False)
    assert isinstance(done.exception, typer.BadParameter)
    assert reason in str(done.exception)
    assert not list(tmp_path.iterdir())


async def test_program_may_be_named_by_the_word(capfd, tmp_path):
    script = tmp_path / "stop.sh"
    script.write_text("#!/bin/sh\necho heard\n")
    script.chmod(0o755)
    runner = Runner(f"{tmp_path}/{{keyword}}.sh")
    runner(heard())
    await runner.ended()
    assert capfd.readouterr() == ("heard\n", "")


async def test_command_that_fails_is_told_once(capfd, tmp_path):
    for runner, reason in (
        (Runner("sh -c 'exit 3'"), "sh ended with status 3"),
        (Runner(f"{tmp_path}/{{keyword}}.sh"), "No such file"),
        (Runner("echo {keyword}"), "null byte"),
    ):
        for _ in range(3):
            runner(heard(keyword="a\0b" if reason == "null byte" else "stop"))
        await runner.ended()
        out, err = capfd.readouterr()
        assert not out
        assert err.count("deltaspot: --on-detect: ") == err.count(reason) == len(err.splitlines()) == 1


def test_command_leaves_standard_input_and_json_alone(running):
    options = ["--speed", "0", "--url", running.http, "--json", "--on-detect", "sh -c 'cat; echo heard {keyword}'"]
    command = [sys.executable, "-m", "service.cli", "listen", str(SAMPLE / "commands.flac"), *options]
    done = subprocess.run(command, input=b"samples", capture_output=True, check=True)
    events = [json.loads(line) for line in done.stdout.splitlines()]
    words = [event["keyword"] for event in events if event["type"] == "detection"]
    assert words
    assert sorted(done.stderr.decode().splitlines()) == sorted(f"heard {word}" for word in words)


@pytest.mark.system
def test_terminal_has_its_cursor_back_when_the_program_is_terminated(running):
    """As by `timeout 10 deltaspot listen mic`."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "service.cli", "listen", str(SAMPLE / "commands.flac"), "--url", running.http]
    there = {"stdin": theirs, "stdout": theirs, "stderr": theirs}
    with subprocess.Popen(command, env={**os.environ, "TERM": "xterm"}, **there) as one:
        os.close(theirs)
        seen = b""
        while b"yes" not in seen:
            seen += os.read(ours, 1 << 16)
        one.terminate()
        with suppress(OSError):  # a terminal that nobody holds any more
            while more := os.read(ours, 1 << 16):
                seen += more
    os.close(ours)
    assert one.returncode == 128 + signal.SIGTERM
    assert seen.rfind(b"\x1b[?25h") > seen.rfind(b"\x1b[?25l") >= 0
    assert b"Traceback" not in seen


def test_standard_input_that_is_closed_is_one_sentence():
    command = [sys.executable, "-m", "service.cli", "listen", "-"]
    closed = ["sh", "-c", f"{shlex.join(command)} <&-"]
    done = subprocess.run(closed, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (2, b"deltaspot: standard input is closed\n")


def test_clip_is_a_wav_file_whose_name_is_no_path(tmp_path):
    samples = np.arange(-500, 500, dtype="<i2")
    Saver(tmp_path / "clips")(heard(keyword="../../etc/passwd", clip=base64.b64encode(samples.tobytes()).decode()))
    (path,) = (tmp_path / "clips").iterdir()
    assert path.parent == tmp_path / "clips"
    assert path.name.startswith("000012.3")
    with wave.open(str(path)) as file:
        assert file.getframerate() == 16_000
        assert file.readframes(1_000) == samples.tobytes()


async def test_every_detection_is_shown_and_acted_upon(tmp_path):
    async def act(peer: Peer) -> None:
        await greet(peer)
        await peer.until(6_400)
        await peer.say(detection(0, 10))
        await peer.close()

    soundfile.write(tmp_path / "a.wav", np.zeros(3_200), 16_000)
    console = Console(file=io.StringIO(), width=100)
    flag = tmp_path / "heard"
    program = f"from pathlib import Path; Path({str(flag)!r}).write_text('{{keyword}}')"
    runner = Runner(f'{sys.executable} -c "{program}"')
    async with server(act) as (url, _peers):
        await follow(connect(url), AudioFile(tmp_path / "a.wav", 0), PlainLines(console), [runner])
    assert "yes" in console.file.getvalue()
    assert flag.read_text() == "yes"


@pytest.mark.parametrize(("wait_s", "opens"), [(0, True), (1_000, False)])
async def test_server_that_is_not_ready_is_waited_for_and_not_for_ever(tmp_path, wait_s, opens):
    refusals = [Failed(code="capacity", message="the models are not ready yet").model_dump_json()]

    def refuse(connection, _request):
        if not refusals:
            return None
        response = connection.respond(503, refusals.pop())
        response.headers["Retry-After"] = str(wait_s)
        return response

    async def handle(socket):
        peer = Peer(socket, parse_client(await socket.recv()))
        await greet(peer)
        await peer.close()

    soundfile.write(tmp_path / "a.wav", np.zeros(3_200), 16_000)
    console = Console(file=io.StringIO(), width=200)
    async with serve(handle, "127.0.0.1", 0, process_request=refuse) as listening:
        spotter = connect(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}")
        with nullcontext() if opens else pytest.raises(CannotConnect, match="not ready yet"):
            await follow(spotter, AudioFile(tmp_path / "a.wav", 0), PlainLines(console), [])
    assert (spotter.connections == 1) is opens
    assert ("not ready yet (HTTP 503); trying again" in console.file.getvalue()) is opens


async def test_server_that_is_not_there_yet_is_waited_for(tmp_path):
    async def handle(socket):
        peer = Peer(socket, parse_client(await socket.recv()))
        await greet(peer)
        await peer.close()

    waits = asyncio.Event()
    display = PlainLines(Console(file=io.StringIO(), width=200))
    display.note = lambda text: waits.set() if "no server answers" in text else None
    soundfile.write(tmp_path / "a.wav", np.zeros(3_200), 16_000)
    port = free_port(0)
    spotter = connect(f"127.0.0.1:{port}")
    following = asyncio.create_task(follow(spotter, AudioFile(tmp_path / "a.wav", 0), display, []))
    await waits.wait()
    async with serve(handle, "127.0.0.1", port):
        await following
    assert spotter.totals.samples == 3_200


async def test_server_is_waited_for_as_long_as_is_asked(tmp_path):
    async def leave(peer: Peer) -> None:
        await greet(peer)
        peer.socket.server.close()

    soundfile.write(tmp_path / "a.wav", np.zeros(3_200), 16_000)
    async with server(leave) as (url, _peers):
        for reason in ("gave up on ws://.* after 0 s: ", "no server answers at"):
            arguments = [str(tmp_path / "a.wav"), "--url", url, "--retry", "0"]
            done = await asyncio.to_thread(CliRunner().invoke, listen_command, arguments, standalone_mode=False)
            with pytest.raises(CannotConnect, match=reason):
                raise done.exception


def test_words_run_a_command_and_leave_their_sound(running, tmp_path):
    note = tmp_path / "heard"
    program = f"open({str(note)!r}, 'a').write('{{keyword}} ')"
    options = ["--speed", "0", "--url", running.http, "--keywords", "yes,stop", "--save-clips", str(tmp_path / "clips")]
    command = [sys.executable, "-m", "service.cli", "listen", str(SAMPLE / "commands.flac"), *options]
    done = subprocess.run(
        [*command, "--on-detect", f'{sys.executable} -c "{program}"'], capture_output=True, check=True
    )
    words = [line.split()[2] for line in done.stdout.decode().splitlines() if " s  " in line]
    assert set(words) <= {"yes", "stop"}
    assert words
    assert sorted(note.read_text().split()) == sorted(words)
    clips = sorted((tmp_path / "clips").iterdir())
    assert [path.stem.split("-")[1] for path in clips] == words
    for clip in clips:
        samples, rate = soundfile.read(clip)
        assert rate == 16_000
        assert 0.3 < len(samples) / rate < 3
        assert np.abs(samples).max() > 0.01, "the word itself"


async def test_source_that_turns_out_to_be_none_ends_the_stream(monkeypatch):
    async def act(peer: Peer) -> None:
        await greet(peer)
        await peer.socket.wait_closed()

    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"RIFF....WAVE")))
    display = PlainLines(Console())
    async with server(act) as (url, _peers):
        with pytest.raises(SourceError, match="ffmpeg"):
            await follow(connect(url), opened("-", 1.0, None, 16_000, display), display, [])
    with pytest.raises(SourceError, match=r"nothing\.wav: there is no such file"):
        opened("nothing.wav", 1.0, None, 16_000, display)


async def test_a_file_goes_no_faster_than_a_server_allows(serving):
    with serving(speed=12.0, burst_s=3.5) as strict:  # a hiccup of 250 ms does no harm
        sound = AudioFile(SAMPLE / "commands.flac", speed=0)
        async with connect(strict.http, sample_rate=sound.rate) as spotter:
            spotter.play(sound)
            heard = [event async for event in spotter if isinstance(event, Detection)]
    assert spotter.totals
    assert spotter.totals.audio_s > 15
    assert len(heard) == spotter.totals.detections > 0
    assert spotter.connections == 1


async def test_recordings_are_judged_here_without_a_server():
    results = [(file, result) async for file, result in here([SAMPLE / "commands.flac"], None)]
    ((_file, result),) = results
    assert {found["keyword"] for found in result["detections"]} <= {word.text for word in script()}
    assert len(result["detections"]) >= 4
    assert set(result) >= {"detections", "top", "macs", "seconds"}
    assert result["macs"]["skipped_vs_window"] > 0.9


async def test_here_no_setting_of_a_server_matters(monkeypatch):
    """But the model; see tests/test_enroll.py."""
    for name, value in (("KEYS", "/nonexistent"), ("METHODS", '["dense"]'), ("PORT", "abc")):
        monkeypatch.setenv(f"DELTASPOT_{name}", value)
    ((_file, result),) = [pair async for pair in here([SAMPLE / "commands.flac"], "shipped")]
    assert len(result["detections"]) >= 4


class Door(BaseHTTPRequestHandler):
    """Answers as `/v1/detect` does."""

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        good = (
            self.path == "/v1/detect?point=dense" and self.headers["Authorization"] == "Bearer k" and body == b"sound"
        )
        self.send_response(200 if good else 415)
        self.end_headers()
        refusal = Failed(code="unsupported_audio", message="not an audio file").model_dump()
        self.wfile.write(json.dumps({"detections": []} if good else refusal).encode())

    def log_message(self, *_):
        """Say nothing."""


@pytest.fixture
def door():
    listening = HTTPServer(("127.0.0.1", 0), Door)
    thread = threading.Thread(target=listening.serve_forever)
    thread.start()
    yield f"ws://127.0.0.1:{listening.server_port}"
    listening.shutdown()
    thread.join()
    listening.server_close()


async def judged(url: str, path: Path, **more):
    return [result async for _, result in remotely(url, [path], more.pop("key", None), more)]


async def test_recordings_are_sent_to_a_server_and_refusals_are_told(door, tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"sound")
    assert await judged(door, path, key="k", point="dense") == [{"detections": []}]
    (refusal,) = await judged(door, path)
    assert isinstance(refusal, CannotConnect)
    assert "not an audio file" in str(refusal)


def test_recording_whose_name_is_no_text_is_judged(door, tmp_path):
    path = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.wav"))
    try:
        path.write_bytes(b"sound")
    except OSError:
        pytest.skip("this file system has such names for no files")
    wishes = ["--url", door, "--key", "k", "--point", "dense", "--json"]
    command = [sys.executable, "-m", "service.cli", "detect", path, *wishes]
    strict = {**os.environ, "PYTHONIOENCODING": "utf-8"}  # as a terminal's is, but for the C locale
    done = subprocess.run(command, capture_output=True, check=False, env=strict)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {"file": str(path), "detections": []}


async def test_troubles_of_detect_are_one_sentence(tmp_path):
    (missing,) = await judged("127.0.0.1:9", tmp_path / "nothing.wav")
    assert isinstance(missing, SourceError)
    assert "No such file" in str(missing)
    (tmp_path / "a.wav").write_bytes(b"sound")
    (alone,) = await judged("127.0.0.1:9", tmp_path / "a.wav")
    assert isinstance(alone, CannotConnect)
    assert "no server answers" in str(alone)


def test_one_bad_recording_does_not_hide_the_others(tmp_path):
    (tmp_path / "bad.wav").write_bytes(b"no music")
    soundfile.write(tmp_path / "silence.wav", np.zeros(16_000), 16_000)
    files = [tmp_path / "bad.wav", tmp_path / "gone.wav", SAMPLE / "commands.flac", tmp_path / "silence.wav"]
    done = CliRunner().invoke(detect_command, [str(file) for file in files])
    assert done.exit_code == 2
    complaints = done.stderr.splitlines()
    assert [line.partition(".wav: ")[0] for line in complaints] == [
        f"deltaspot: {tmp_path}/bad",
        f"deltaspot: {tmp_path}/gone",
    ]
    assert complaints[1].count("gone.wav") == 1
    words, silence = done.stdout.split(f"{files[3]}:")
    assert "yes" in words
    assert "most likely" not in words, "which would read as a failure beside words that were heard"
    assert "most likely _silence_" in silence
