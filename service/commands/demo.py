"""`deltaspot demo`: a server of its own, the sample recording through a real WebSocket, what was heard and skipped."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from client.connection import connect
from client.display import LivePanel, PlainLines
from client.sources import AudioFile
from models.config import KEYWORDS
from service.commands.listen import follow
from service.commands.own_server import free_port, server
from service.protocol import Detection, Totals

SAMPLE = Path(str(files("client"))) / "samples"
LATE_S = 0.6
"""A word counts as heard if its detection is decided before this much audio has followed it."""

app = typer.Typer(add_completion=False)


class DemoError(Exception):
    """The server did not stay, or heard something else."""


@dataclass(frozen=True, slots=True)
class Word:
    """A word of the sample, and when it is said, in seconds."""

    start_s: float
    end_s: float
    text: str


def script() -> list[Word]:
    """What is said in the sample."""
    rows = (line.split("\t") for line in (SAMPLE / "commands.tsv").read_text().splitlines())
    return [Word(float(start), float(end), word) for start, end, word in rows]


def heard(word: Word, detections: list[Detection]) -> list[str]:
    """Keywords detected while `word` was said, or just after."""
    return [d.keyword for d in detections if word.start_s < d.at_s <= word.end_s + LATE_S]


def stream(port: int, speed: float, console: Console) -> tuple[list[Detection], Totals]:
    """Stream the sample, showing detections as they come; return them and the stream in numbers.

    Raises:
        DemoError: if the server ended the stream before all of it was judged.
    """
    recording = AudioFile(SAMPLE / "commands.flac", speed)
    detections: list[Detection] = []
    live = console.is_terminal
    spotter = connect(f"127.0.0.1:{port}", sample_rate=recording.rate, scores=live)
    with LivePanel(console, "commands.flac") if live else nullcontext(PlainLines(console)) as display:
        asyncio.run(follow(spotter, recording, display, [detections.append]))
    if spotter.totals is None:
        raise DemoError("the server ended the stream early")
    return detections, spotter.totals


def report(detections: list[Detection]) -> Table:
    """What was said beside what was heard."""
    table = Table("said", "from", "to", "heard", box=None, padding=(0, 2))
    for word in script():
        words = heard(word, detections)
        style = "green" if words == expected(word) else "red"
        table.add_row(
            word.text, f"{word.start_s:.2f} s", f"{word.end_s:.2f} s", f"[{style}]{', '.join(words) or '-'}[/]"
        )
    return table


def work(totals: Totals) -> str:
    """One sentence on the work that was not done."""
    window, causal = totals.macs_skipped_vs_window, totals.macs_skipped_vs_causal
    return (
        f"Multiplications skipped: [bold magenta]{window:.1%}[/] of those that judge the newest second anew at every "
        f"token, [bold magenta]{causal:.1%}[/] of those of a cache without delta gates."
    )


def expected(word: Word) -> list[str]:
    """What should be heard of a word of the sample: itself if it is a keyword, else nothing."""
    return [word.text] if word.text in KEYWORDS else []


@app.command()
def demo(
    once: Annotated[
        bool,
        typer.Option("--once", help="Stop afterwards; succeed only if exactly the keywords were heard."),
    ] = False,
    speed: Annotated[float, typer.Option(help="Times real time at which the sample is streamed.", min=0.1)] = 1.0,
    port: Annotated[int, typer.Option(help="Port of the server; a free one if it is taken.")] = 8770,
) -> None:
    """Start a server, stream the sample recording through it and show what was heard and skipped."""
    console = Console(highlight=False)
    port = free_port(port)
    with ExitStack() as stack:
        with console.status("Starting the server; the very first start compiles its kernels, which takes a while"):
            process = stack.enter_context(server(port))
        detections, totals = stream(port, speed, console)
        console.print(report(detections), work(totals), sep="\n")
        if not once:
            console.print(f"The server stays up at http://127.0.0.1:{port}/ until Ctrl-C.")
            with suppress(KeyboardInterrupt):
                process.wait()
            return
    wrong = [word.text for word in script() if heard(word, detections) != expected(word)]
    if wrong or len(detections) != len(KEYWORDS):
        raise DemoError(f"not heard as they should be: {', '.join(wrong) or 'something between the words'}")
