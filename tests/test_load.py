"""The load client speaks WebSocket as others do, loses nothing, and counts what is lost."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner
from websockets.asyncio.server import serve
from websockets.frames import Frame, Opcode
from websockets.server import ServerProtocol

from client.errors import CannotConnect
from client.frames import BINARY, TEXT, Reader, client_frame, upgrade
from client.load import Run, load
from service.commands import bench_service
from service.commands.bench import app as BENCH
from service.commands.own_server import free_port
from service.protocol import Close, Closed, Configure, Failed, Marker, Totals, parse_client
from tests.peer import ready
from tests.talk import wav


@given(st.lists(st.binary(max_size=70_000), max_size=4))
def test_frames_are_read_by_another_implementation(payloads):
    server = ServerProtocol()
    server.receive_data(upgrade("h", "/v1/stream"))
    server.send_response(server.accept(server.events_received()[0]))
    for payload in payloads:
        server.receive_data(client_frame(BINARY, payload))
    assert [bytes(event.data) for event in server.events_received()] == payloads


@given(st.lists(st.binary(max_size=70_000), min_size=1, max_size=3), st.integers(1, 5_000))
def test_reader_takes_any_split(payloads, size):
    stream = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"
    stream += b"".join(Frame(Opcode.TEXT, payload).serialize(mask=False) for payload in payloads)
    reader = Reader()
    heard = [message for start in range(0, len(stream), size) for message in reader.feed(stream[start : start + size])]
    assert reader.status == 101
    assert heard == [(TEXT, payload) for payload in payloads]


def test_reader_joins_fragments():
    reader = Reader()
    data = b"HTTP/1.1 101 x\r\n\r\n"
    data += Frame(Opcode.TEXT, b"one ", fin=False).serialize(mask=False) + Frame(Opcode.PING, b"?").serialize(
        mask=False
    )
    data += Frame(Opcode.CONT, b"two").serialize(mask=False)
    assert list(reader.feed(data)) == [(Opcode.PING, b"?"), (TEXT, b"one two")]


def a_run(seconds: float = 0.2) -> Run:
    return Run(20, seconds, bytes(64_000), Configure())


def server_that_answers(share: int):
    """Echoes every marker, or one in `share`."""

    async def handle(socket) -> None:
        assert isinstance(parse_client(await socket.recv()), Configure)
        await socket.send(ready().model_dump_json())
        chunks = 0
        async for message in socket:
            if isinstance(message, bytes):
                chunks += 1
                continue
            said = parse_client(message)
            if isinstance(said, Marker) and int(said.id) % share == 0:
                await socket.send(json.dumps({"type": "marker", "id": said.id}))
            elif isinstance(said, Close):
                totals = Totals(audio_s=0.0, samples=0, chunks=chunks, tokens=0, detections=0, macs_done=0)
                await socket.send(Closed(reason="normal", totals=totals).model_dump_json())
                return

    return serve(handle, "127.0.0.1", 0)


@pytest.mark.parametrize(("share", "lost"), [(1, 0), (2, 15)])
async def test_every_chunk_is_timed_or_counted_as_lost(share, lost):
    run = a_run()
    async with server_that_answers(share) as listening:
        report = await load(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}", 3, 0.2, run)
    assert (report.opened, report.refused, report.chunks, report.lost) == (3, 0, 30, lost)
    assert report.closed == {"1000": 3}
    assert 0 < report.p50_ms <= report.p90_ms <= report.p99_ms <= report.max_ms


@pytest.mark.parametrize(
    ("body", "told"),
    [
        ("full", ": HTTP 503$"),
        (Failed(code="capacity", message="not ready").model_dump_json(), r": not ready \(HTTP 503"),
    ],
)
async def test_refusals_are_counted_or_raised(body, told):
    def refuse(connection, _request):
        return connection.respond(503, body)

    async with serve(lambda _: asyncio.sleep(0), "127.0.0.1", 0, process_request=refuse) as listening:
        with pytest.raises(CannotConnect, match=told):
            await load(f"127.0.0.1:{listening.sockets[0].getsockname()[1]}", 2, 0.2, a_run())


def test_nobody_there_is_said_in_a_line():
    """By the load client, and by the benchmark that runs it."""
    port = free_port(0)
    result = CliRunner().invoke(
        BENCH, ["service", "--sessions", "1", "--seconds", "1", "--url", f"ws://127.0.0.1:{port}"]
    )
    assert isinstance(result.exception, CannotConnect)
    command = [sys.executable, "-m", "client.load", "--streams", "1", "--url", f"ws://127.0.0.1:{port}"]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout, said.stderr.count("\n")) == (2, "", 1)
    assert "no stream could be opened" in said.stderr


@pytest.mark.parametrize(
    ("option", "content", "reason"),
    [
        ("--audio", b"dear diary", "is no WAV"),
        ("--audio", wav(np.zeros(800)), "shorter than a chunk, 100 ms"),
        ("--point", "nope", "this model has the points dense, "),
        ("--point", "x" * 33, "point: String should have at most 32"),
    ],
)
def test_what_cannot_be_sent_and_what_a_server_refuses_is_said_in_a_line(running, tmp_path, option, content, reason):
    if isinstance(content, bytes):
        (tmp_path / "a.wav").write_bytes(content)
        content = str(tmp_path / "a.wav")
    command = [sys.executable, "-m", "client.load", "--streams", "2", "--url", running.http, option, content]
    said = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (said.returncode, said.stdout, said.stderr.count("\n")) == (2, "", 1)
    assert reason in said.stderr


def test_what_a_server_takes_is_told_where_its_process_is_known(running, monkeypatch):
    def bench(*options: str) -> list[str]:
        arguments = ["service", "--sessions", "1", "--seconds", "1", "--url", running.http, *options]
        result = CliRunner().invoke(BENCH, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout.splitlines()  # the server's log first, since it runs in this process

    monkeypatch.setattr(bench_service, "RAMP_S", 0.0)
    (row,) = json.loads(bench("--json")[-1])["rows"]
    assert row["server_cpu_per_stream_second"] is None
    assert row["bytes_per_session"] is None
    *_, cells, note = bench()
    assert cells.split()[-2:] == ["-", "-"]
    assert "--pid" in note
    *_, cells = bench("--pid", str(os.getpid()))
    assert cells.split()[-2].endswith("%")
    assert cells.split()[-1].isdecimal()
