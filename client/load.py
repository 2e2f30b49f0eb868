"""Many paced streams from one process: how long from a chunk to its verdict, and what got lost.

    python -m client.load --streams 100 --seconds 10

Every chunk is followed by a marker, which the server echoes once the chunk has been judged. Streams begin one after
the other, at different places of the recording, and their chunks are spread evenly over time, as strangers' would be;
those of the beginning count, too. Lean on purpose: frames are prebuilt, a chunk and its marker go out together, and no
garbage is looked for, so that the client's core is not what is measured; `client_late_p99_ms` tells.
"""

from __future__ import annotations

import asyncio
import gc
import json
import math
import struct
import time
from array import array
from collections import Counter
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Annotated, Final, cast
from urllib.parse import urlsplit

import typer

from client.address import stream_url
from client.errors import CannotConnect, ClientError, SourceError
from client.frames import BINARY, CLOSE, PING, PONG, TEXT, Reader, client_frame, upgrade
from client.handshake import told
from client.sources import AudioFile
from client.wishes import configured
from service.protocol import Configure

SAMPLE: Final = Path(__file__).with_name("samples") / "commands.flac"
OPENING: Final = 64
"""Handshakes under way at the same time."""
GRACE_S: Final = 5.0
"""Time after the last chunk in which its verdict still counts, s."""
OPEN_S: Final = 30.0


@dataclass(slots=True)
class Report:
    """What a load run saw; latencies are from sending a chunk to the echo of its marker, in ms of wall time."""

    streams: int
    opened: int = 0
    refused: int = 0
    chunk_ms: int = 0
    seconds: float = 0.0
    chunks: int = 0
    lost: int = 0
    p50_ms: float | None = None
    p90_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None
    client_late_p99_ms: float | None = None
    client_cpu_share: float = 0.0
    detections: int = 0
    macs_skipped_vs_window: float | None = None
    macs_skipped_vs_causal: float | None = None
    warnings: dict[str, int] = field(default_factory=dict)
    closed: dict[str, int] = field(default_factory=dict)


class Run:
    """What all streams of a run share: prebuilt frames, and the tally.

    Attributes:
        latencies: of the chunks that were judged, s.
        late: how late each chunk was sent by its own timetable, s.

    Raises:
        SourceError: for audio that does not fill a chunk.
    """

    def __init__(self, chunk_ms: int, seconds: float, audio: bytes, configure: Configure, ramp_s: float = 0.0) -> None:
        size = 2 * (configure.sample_rate * chunk_ms // 1_000)
        loops = [audio[start : start + size] for start in range(0, len(audio) - size + 1, size)]
        if not loops:
            raise SourceError(f"the recording is shorter than a chunk, {chunk_ms} ms")
        self.interval, self.steps, self.ramp_s = chunk_ms / 1_000, round(seconds * 1_000 / chunk_ms), ramp_s
        self.chunks = [client_frame(BINARY, chunk) for chunk in loops]
        most = self.steps + math.ceil(ramp_s / self.interval)
        self.markers = [_text({"type": "marker", "id": step}) for step in range(most)]
        self.hello = client_frame(TEXT, configure.model_dump_json(exclude_none=True).encode())
        self.bye = _text({"type": "close"})
        self.latencies, self.late = array("d"), array("d")
        self.seen: Counter[str] = Counter()
        self.warnings: Counter[str] = Counter()
        self.closed: Counter[str] = Counter()
        self.skipped: list[tuple[float, float]] = []


class Stream(asyncio.Protocol):
    """One stream: opens, sends on its timetable, notes when markers come back."""

    def __init__(self, run: Run, request: bytes, offset: int) -> None:
        self._run, self._request, self._offset = run, request, offset
        self._reader, self._sent = Reader(), array("d")
        self._transport: asyncio.Transport | None = None
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._begin, self._steps = 0.0, 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Ask for the upgrade."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's is none by inheritance
        self._transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Count what the server says."""
        upgraded = self._reader.status
        for opcode, payload in self._reader.feed(data):
            if opcode == TEXT:
                self._message(json.loads(payload))
            elif opcode == PING:
                self._write(client_frame(PONG, payload))
            elif opcode == CLOSE:
                self._close(payload)
        if not upgraded and self._reader.status == 101:
            self._write(self._run.hello)
        elif not upgraded and self._reader.status:
            why = told(self._reader.body)
            self._refuse(f"{why} (HTTP {self._reader.status})" if why else f"HTTP {self._reader.status}")

    def connection_lost(self, exc: Exception | None) -> None:
        """Whatever was not judged by now never will be."""
        self._refuse(str(exc or "closed"))
        if not self.ended.done():
            self.ended.set_result(None)

    def start(self, at: float, steps: int) -> None:
        """Send so many chunks from this time on (the loop's clock)."""
        self._begin, self._steps = at, steps
        asyncio.get_running_loop().call_at(at, self._tick)

    def finish(self) -> None:
        """Ask for the totals."""
        self._write(self._run.bye)

    def _tick(self) -> None:
        run, step, now = self._run, len(self._sent), time.monotonic()
        if self.ended.done():
            return
        run.late.append(now - self._begin - step * run.interval)
        self._sent.append(now)
        run.seen["chunks"] += 1
        self._write(run.chunks[(self._offset + step) % len(run.chunks)] + run.markers[step])
        if step + 1 < self._steps:
            asyncio.get_running_loop().call_at(self._begin + (step + 1) * run.interval, self._tick)

    def _message(self, message: dict[str, object]) -> None:
        run = self._run
        match message["type"]:
            case "marker":
                run.latencies.append(time.monotonic() - self._sent[int(str(message["id"]))])
            case "ready" if not self.ready.done():
                self.ready.set_result(None)
            case "warning":
                run.warnings[str(message["code"])] += 1
            case "error":
                self._refuse(str(message["message"]))
            case "closed":
                totals = message["totals"]
                assert isinstance(totals, dict)  # noqa: S101 (the protocol says so)
                run.skipped.append((totals["macs_skipped_vs_window"], totals["macs_skipped_vs_causal"]))
            case kind:
                run.seen[str(kind)] += 1

    def _close(self, payload: bytes) -> None:
        code = struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else 1005
        self._run.closed[str(code)] += 1
        self._write(client_frame(CLOSE, payload[:2]))
        if self._transport is not None:
            self._transport.close()

    def _refuse(self, reason: str) -> None:
        if not self.ready.done():
            self.ready.set_exception(CannotConnect(reason))

    def _write(self, data: bytes) -> None:
        if self._transport is not None and not self._transport.is_closing():
            self._transport.write(data)


def _text(message: dict[str, object]) -> bytes:
    return client_frame(TEXT, json.dumps(message, separators=(",", ":")).encode())


async def load(url: str, streams: int, seconds: float, run: Run, key: str | None = None) -> Report:
    """Drive `streams` streams for `seconds`; `run` holds what they send.

    Raises:
        CannotConnect: if not one of them could be opened.
    """
    opened, reasons = await _open_all(url, streams, run, key)
    if not opened:
        raise CannotConnect(f"no stream could be opened at {url}: {reasons[0] if reasons else 'none was asked for'}")
    begin, used = time.monotonic() + 0.1, time.process_time()
    for number, stream in enumerate(opened):
        late = run.ramp_s * number / len(opened)
        steps = run.steps + int((run.ramp_s - late) / run.interval)
        stream.start(begin + late + run.interval * number / len(opened), steps)
    await asyncio.sleep(begin + run.ramp_s + (run.steps + 1) * run.interval - time.monotonic())
    for stream in opened:
        stream.finish()  # the server judges everything before it answers this
    await asyncio.wait([stream.ended for stream in opened], timeout=GRACE_S)
    lasted, used = time.monotonic() - begin, time.process_time() - used
    report = Report(streams, len(opened), streams - len(opened), round(run.interval * 1_000), seconds)
    report.chunks, report.lost = run.seen["chunks"], run.seen["chunks"] - len(run.latencies)
    report.detections, report.client_cpu_share = run.seen["detection"], round(used / lasted, 3)
    report.warnings, report.closed = dict(run.warnings), dict(run.closed)
    return _with_figures(report, run)


async def _open_all(url: str, streams: int, run: Run, key: str | None) -> tuple[list[Stream], list[str]]:
    """Open as many streams as the server lets; return them, and why the others are not."""
    parts = urlsplit(stream_url(url))
    secure = parts.scheme == "wss"
    host, port = parts.hostname or "127.0.0.1", parts.port or (443 if secure else 80)
    request = upgrade(f"{host}:{port}", parts.path, key)
    gate, reasons = asyncio.Semaphore(OPENING), []

    async def one(number: int) -> Stream | None:
        offset = number * len(run.chunks) // streams
        async with gate:
            try:
                _transport, stream = await asyncio.get_running_loop().create_connection(
                    lambda: Stream(run, request, offset), host, port, ssl=secure or None
                )
                await asyncio.wait_for(stream.ready, OPEN_S)
            except (OSError, CannotConnect) as error:
                reasons.append(str(error) or type(error).__name__)
                return None
        return stream

    opened = await asyncio.gather(*(one(number) for number in range(streams)))
    return [stream for stream in opened if stream is not None], reasons


def _with_figures(report: Report, run: Run) -> Report:
    if run.latencies:
        sorted_ms = sorted(1_000 * latency for latency in run.latencies)
        report.p50_ms, report.p90_ms, report.p99_ms, report.max_ms = (
            _percentile(sorted_ms, share) for share in (0.5, 0.9, 0.99, 1)
        )
        report.client_late_p99_ms = _percentile(sorted(1_000 * late for late in run.late), 0.99)
    if run.skipped:
        window, causal = (round(fmean(shares), 5) for shares in zip(*run.skipped, strict=True))
        report.macs_skipped_vs_window, report.macs_skipped_vs_causal = window, causal
    return report


def _percentile(values: Sequence[float], share: float) -> float:
    """The value of sorted ones that `share` of them do not exceed."""
    return round(values[math.ceil(share * len(values)) - 1], 2)


def _runner() -> Callable[[Coroutine[object, object, Report]], Report]:
    """Runs a coroutine on the fastest event loop that is installed."""
    try:
        import uvloop
    except ModuleNotFoundError:
        return asyncio.run
    return uvloop.run


def main(
    url: Annotated[str, typer.Option(help="The server.")] = "ws://127.0.0.1:8770",
    streams: Annotated[int, typer.Option(min=1, help="Streams at the same time.")] = 10,
    seconds: Annotated[float, typer.Option(min=0.1, help="How long, all of them.")] = 10.0,
    ramp: Annotated[float, typer.Option(min=0, help="Time before that in which they begin, one by one, s.")] = 0.0,
    chunk_ms: Annotated[int, typer.Option(min=10, max=2_000, help="Audio in one message, ms.")] = 100,
    audio: Annotated[Path, typer.Option(help="A recording; it is repeated.")] = SAMPLE,
    point: Annotated[str | None, typer.Option(help="Operating point.")] = None,
    key: Annotated[str | None, typer.Option(envvar="DELTASPOT_KEY", help="API key, if the server wants one.")] = None,
) -> None:
    """Stream a recording many times at once and print the report as JSON."""
    gc.disable()  # nothing here makes cycles, and looking for them costs as much as sending
    try:
        recording = AudioFile(audio)
        configure = configured({"point": point, "heartbeat_ms": 10_000, "sample_rate": recording.rate})
        run = Run(chunk_ms, seconds, b"".join(recording), configure, ramp)
        report = _runner()(load(url, streams, seconds, run, key))
    except ClientError as error:
        typer.echo(str(error), err=True)
        raise typer.Exit(2) from error
    typer.echo(json.dumps(asdict(report)))


if __name__ == "__main__":
    typer.run(main)
