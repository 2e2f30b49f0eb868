"""`deltaspot bench service`: a server, a load client in a process of its own, and what the streams felt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from client.errors import CannotConnect
from service.commands.options import AsJson
from service.commands.own_server import free_port, server
from service.commands.tables import show

SAMPLE_S = 0.25
"""How often the server's memory is looked at."""
RAMP_S = 5.0
"""Time in which a run's streams begin: a thousand strangers do not do so in the same tenth of a second."""


@dataclass(frozen=True, slots=True)
class Row:
    """What `sessions` streams felt; latency is from the last byte of a chunk to its marker's echo.

    What the server took is None where its process is not known.
    """

    sessions: int
    latency_ms_p50: float | None
    latency_ms_p90: float | None
    latency_ms_p99: float | None
    lost_chunks: int
    refused: int
    server_cpu_per_stream_second: float | None
    client_cpu: float
    bytes_per_session: int | None
    macs_skipped_vs_window: float | None
    macs_skipped_vs_causal: float | None
    shed: bool


def service(
    sessions: Annotated[str, typer.Option(help="Numbers of streams, such as 1,10,100.")] = "1,10,100",
    seconds: Annotated[float, typer.Option(min=1, help="Length of each run, once all streams are there.")] = 20.0,
    url: Annotated[
        str | None, typer.Option(help="A server that runs already; one with default settings is started if left out.")
    ] = None,
    pid: Annotated[int | None, typer.Option(help="Its process, to measure CPU time and memory.")] = None,
    as_json: AsJson = False,
) -> None:
    """Measure latency, loss, CPU time and memory over real sockets, by number of streams.

    Raises:
        BadParameter: for numbers of streams that are none.
    """
    numbers = read_numbers(sessions)
    with _server(url, pid) as (address, process):
        rows = [measure(address, process, number, seconds) for number in numbers]
    if as_json:
        print(json.dumps({"rows": [asdict(row) for row in rows]}))
    else:
        show(_table(rows), *([] if process else ["The server's CPU time and memory are measured with its --pid."]))


def read_numbers(text: str) -> list[int]:
    """Numbers of streams, from 1,10,100.

    Raises:
        BadParameter: for anything else.
    """
    words = [word.strip() for word in text.split(",")]
    if not all(word.isdecimal() and int(word) for word in words):
        raise typer.BadParameter(f"--sessions takes numbers of streams between commas, such as 1,10,100; not {text!r}")
    return [int(word) for word in words]


@contextmanager
def _server(url: str | None, pid: int | None) -> Iterator[tuple[str, int | None]]:
    if url is not None:
        yield url, pid
        return
    port = free_port(0)
    with server(port) as process:
        yield f"ws://127.0.0.1:{port}", process.pid


def measure(url: str, pid: int | None, streams: int, seconds: float) -> Row:
    """One run of the load client.

    Raises:
        CannotConnect: it could open no stream.
    """
    before, cpu = memory(pid), cpu_seconds(pid)
    command = [sys.executable, "-m", "client.load", "--url", url, "--streams", str(streams), "--seconds", str(seconds)]
    command += ["--ramp", str(RAMP_S)]
    peak = before
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:  # noqa: S603 (our own command)
        try:
            while True:
                try:
                    output, _ = load.communicate(timeout=SAMPLE_S)
                    break
                except subprocess.TimeoutExpired:
                    peak = max(peak, memory(pid))
        finally:
            load.terminate()  # which has ended, unless this command ends before it
    if load.returncode:
        raise CannotConnect("the load client gave up; it said why")
    report: dict[str, Any] = json.loads(output)
    audio_s = report["chunks"] * report["chunk_ms"] / 1_000
    used, taken = cpu_seconds(pid) - cpu, max(0, peak - before)
    return Row(
        sessions=report["opened"],
        latency_ms_p50=report["p50_ms"],
        latency_ms_p90=report["p90_ms"],
        latency_ms_p99=report["p99_ms"],
        lost_chunks=report["lost"],
        refused=report["refused"],
        server_cpu_per_stream_second=round(used / max(1.0, audio_s), 6) if pid else None,
        client_cpu=report["client_cpu_share"],
        bytes_per_session=taken // max(1, report["opened"]) if pid else None,
        macs_skipped_vs_window=report["macs_skipped_vs_window"],
        macs_skipped_vs_causal=report["macs_skipped_vs_causal"],
        shed="shedding" in report["warnings"],
    )


def cpu_seconds(pid: int | None) -> float:
    """User and system time of a process, in seconds; 0 if there is none to look at."""
    if pid is None:
        return 0.0
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int | None) -> int:
    """Resident memory of a process, in bytes; 0 if there is none to look at."""
    if pid is None:
        return 0
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _table(rows: list[Row]) -> Table:
    table = Table("streams", "p50 ms", "p90 ms", "p99 ms", "lost", "CPU per stream", "KiB per stream", box=None)
    for row in rows:
        latencies = (row.latency_ms_p50, row.latency_ms_p90, row.latency_ms_p99)
        cpu, taken = row.server_cpu_per_stream_second, row.bytes_per_session
        table.add_row(
            str(row.sessions),
            *("-" if value is None else f"{value:.1f}" for value in latencies),
            str(row.lost_chunks),
            "-" if cpu is None else f"{cpu:.3%}",
            "-" if taken is None else str(taken // 1024),
        )
    return table
