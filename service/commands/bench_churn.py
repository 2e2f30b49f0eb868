"""`deltaspot bench churn`: streams that open and close by the thousand, and what they leave in the server's memory."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from client.visits import visit
from service.commands.bench_service import memory
from service.commands.options import AsJson
from service.commands.own_server import free_port, server
from service.commands.tables import show

FIRST = 1_000
"""Streams after which memory counts as what a server takes that has seen some."""
LOOKS = 10
"""How often memory is looked at afterwards."""


@dataclass(frozen=True, slots=True)
class Look:
    """Resident memory of the server when so many streams had come and gone."""

    opens: int
    bytes: int
    seconds: float


def churn(
    opens: Annotated[int, typer.Option(min=FIRST, help="Streams altogether.")] = 100_000,
    at_once: Annotated[int, typer.Option(min=1, help="Of them at the same time.")] = 50,
    as_json: AsJson = False,
) -> None:
    """Open and close streams by the thousand; report the server's memory after the first thousand and at the end."""
    port = free_port(0)
    ended: Counter[str] = Counter()
    with server(port) as process:
        looks = measure(port, process.pid, opens, at_once, ended)
    ratio = looks[-1].bytes / looks[0].bytes
    if as_json:
        print(json.dumps({"looks": [asdict(look) for look in looks], "ratio": round(ratio, 4), "ended": ended}))
        return
    table = Table("opened and closed", "memory, MiB", "streams / s", box=None)
    for look in looks:
        table.add_row(f"{look.opens:,}", f"{look.bytes / 2**20:.1f}", f"{look.opens / look.seconds:.0f}")
    ends = ", ".join(f"{count:,} with {code}" for code, count in ended.items())
    show(table, f"Memory at the end is {ratio:.1%} of that after {FIRST:,}; {ends}.")


def measure(port: int, pid: int, opens: int, at_once: int, ended: Counter[str]) -> list[Look]:
    """Let them come and go; look at memory while nobody is there."""
    goals = dict.fromkeys(FIRST + (opens - FIRST) * look // LOOKS for look in range(LOOKS + 1))
    looks: list[Look] = []
    done, began = 0, time.monotonic()
    with Progress(console=Console(stderr=True)) as progress:
        task = progress.add_task("streams", total=opens)
        for goal in goals:
            ended.update(asyncio.run(visit(port, goal - done, at_once)))
            done = goal
            looks.append(Look(done, memory(pid), round(time.monotonic() - began, 1)))
            progress.update(task, completed=done, description=f"{looks[-1].bytes / 2**20:.0f} MiB")
    return looks
