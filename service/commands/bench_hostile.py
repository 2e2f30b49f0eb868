"""`deltaspot bench hostile`: what honest streams feel while hostile connections come by the thousand."""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from client.hostile import intrude
from service.commands.bench_service import Row, measure, memory
from service.commands.options import AsJson
from service.commands.own_server import free_port, server
from service.commands.tables import show

STAY_S = 5.0
"""For how long a hostile connection stays, unless it is thrown out."""


@dataclass(frozen=True, slots=True)
class Phase:
    """What honest streams felt, and the server's resident memory at the end of it."""

    name: str
    felt: Row
    bytes: int


@dataclass(slots=True)
class Siege:
    """How hostile connections ended, and how late the last of them came: if much, this process was what was slow."""

    thrown_out: int = 0
    stayed: int = 0
    not_let_in: int = 0
    late_s: float = 0.0


def hostile(
    connections: Annotated[int, typer.Option(min=1, help="Hostile connections, all kinds in turn.")] = 10_000,
    seconds: Annotated[float, typer.Option(min=1, help="They come evenly over this time.")] = 60.0,
    streams: Annotated[int, typer.Option(min=1, help="Honest streams, at the pace of real time.")] = 20,
    quiet: Annotated[float, typer.Option(min=1, help="Length of the runs before and after, s.")] = 15.0,
    as_json: AsJson = False,
) -> None:
    """Measure honest streams before, during and after hostile connections, and the server's memory."""
    port, siege = free_port(0), Siege()
    with server(port) as process:
        phases = asyncio.run(_phases(port, process.pid, streams, quiet, seconds, connections, siege))
    if as_json:
        print(json.dumps({"phases": [asdict(phase) for phase in phases], "hostile": asdict(siege)}))
        return
    table = Table("", "p50 ms", "p99 ms", "lost", "refused", "memory, MiB", box=None)
    for phase in phases:
        felt = phase.felt
        latencies = (f"{value:.1f}" for value in (felt.latency_ms_p50 or 0, felt.latency_ms_p99 or 0))
        table.add_row(phase.name, *latencies, str(felt.lost_chunks), str(felt.refused), f"{phase.bytes / 2**20:.0f}")
    ends = f"{siege.thrown_out:,} thrown out, {siege.stayed:,} gone after {STAY_S:g} s, {siege.not_let_in:,} not let in"
    ends += f"; {siege.late_s:.1f} s late at most"
    show(table, f"Hostile connections: {ends}.")


async def _phases(
    port: int, pid: int, streams: int, quiet: float, seconds: float, connections: int, siege: Siege
) -> list[Phase]:
    url, phases = f"ws://127.0.0.1:{port}", []
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("hostile connections", total=connections)

        async def besiege() -> None:
            began = time.monotonic()
            await asyncio.gather(
                *(one(number, began + number * seconds / connections) for number in range(connections))
            )

        async def one(number: int, at: float) -> None:
            await asyncio.sleep(at - time.monotonic())
            await _intrude(port, number, siege)
            siege.late_s = max(siege.late_s, round(time.monotonic() - at - STAY_S, 3))
            progress.advance(task)

        for name, length in (("before", quiet), ("during", seconds + STAY_S), ("after", quiet)):
            besieging = asyncio.create_task(besiege()) if name == "during" else None
            felt = await asyncio.to_thread(measure, url, pid, streams, length)
            if besieging is not None:
                await besieging
            phases.append(Phase(name, felt, memory(pid)))
    return phases


async def _intrude(port: int, number: int, siege: Siege) -> None:
    try:
        hostile = await intrude(port, number)
    except OSError:
        siege.not_let_in += 1
        return
    await asyncio.wait([hostile.ended], timeout=STAY_S)
    if hostile.ended.done():
        siege.thrown_out += 1
    else:
        siege.stayed += 1
        hostile.leave()
