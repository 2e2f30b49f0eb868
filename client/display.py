"""Events -> what a person sees in a terminal: a live panel where there is one, plain lines or JSON lines elsewhere.

Knows no connection and no audio device. Times are stream time.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Final, Protocol, Self

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from client.connection import Event, Interrupted
from service.protocol import Closed, Detection, Heartbeat, Ready, Scores, Warned

FLOOR_DB: Final = -60.0
METER: Final = 32
BAR: Final = 14
EIGHTHS: Final = " ▏▎▍▌▋▊▉█"


class Display(Protocol):
    """What `deltaspot listen` shows things on."""

    def level(self, decibels: float) -> None:
        """Loudness of a block that is being sent, dB below full scale."""

    def show(self, event: Event) -> None:
        """Anything that happened."""

    def note(self, text: str) -> None:
        """A sentence about the source."""


def as_dict(event: Event) -> dict[str, object]:
    """An event as it is on the wire, without what only a client needs."""
    if isinstance(event, Interrupted):
        return {"type": "interrupted", **asdict(event)}
    return event.model_dump(mode="json", exclude_none=True, exclude={"checkpoint", "clip"})


def sentence(event: Event) -> str | None:
    """One plain line for an event that matters to a person."""
    match event:
        case Detection():
            return f"{event.start_s:8.2f} s  {event.keyword:<10} {event.score:.2f}"
        case Interrupted():
            return f"-- {event.reason}; trying again in {event.retry_s:.1f} s"
        case Warned():
            return f"-- {event.message}"
        case Closed():
            totals = event.totals
            skipped = f"{totals.macs_skipped_vs_window:.1%} of the work against windows skipped"
            return f"-- {totals.audio_s:.1f} s heard, {totals.detections} detections, {skipped}"
        case _:
            return None


class JsonLines:
    """A JSON object per event, for programs."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def level(self, decibels: float) -> None:
        """Not told."""

    def show(self, event: Event) -> None:
        """One line."""
        self._console.out(json.dumps(as_dict(event), ensure_ascii=False), highlight=False)

    def note(self, text: str) -> None:
        """One line of its own type."""
        self._console.out(json.dumps({"type": "note", "message": text}, ensure_ascii=False), highlight=False)


class PlainLines:
    """A line per detection, for pipes and logs."""

    def __init__(self, console: Console) -> None:
        self._console = console

    def level(self, decibels: float) -> None:
        """Not told."""

    def show(self, event: Event) -> None:
        """One line, if it matters."""
        if line := sentence(event):
            self._console.out(line, highlight=False)

    def note(self, text: str) -> None:
        """One line."""
        self._console.out(f"-- {text}", highlight=False)


class LivePanel:
    """Level, posteriors, work and lag in place; detections scroll away above. Use it in `with`."""

    def __init__(self, console: Console, source: str) -> None:
        self._console, self._source = console, source
        self._level = FLOOR_DB
        self._ready: Ready | None = None
        self._posteriors: dict[str, float] = {}
        self._heartbeat: Heartbeat | None = None
        self._live = Live(console=console, get_renderable=self.panel, refresh_per_second=15, transient=True)

    def __enter__(self) -> Self:
        """Begin to draw."""
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Take the panel away and leave the detections."""
        self._live.stop()

    def level(self, decibels: float) -> None:
        """Rise at once, fall slowly, as meters do."""
        self._level = max(decibels, self._level - 1.5, FLOOR_DB)

    def show(self, event: Event) -> None:
        """Change the panel, or print above it."""
        match event:
            case Ready():
                self._ready = event
                self._posteriors = dict.fromkeys(event.keywords, 0.0)
            case Scores() if self._ready:
                newest = dict(zip(self._ready.labels, event.posteriors[-1], strict=False))
                self._posteriors = {word: newest.get(word, 0.0) for word in self._posteriors}
            case Heartbeat():
                self._heartbeat = event
            case Detection():
                line = Text(f"{event.start_s:8.2f} s  ", style="dim")
                line.append(f"{event.keyword:<10}", style="bold green").append(f" {event.score:.2f}")
                self._console.print(line)
            case _:
                if line_text := sentence(event):
                    self._console.print(Text(line_text, style="yellow"))

    def note(self, text: str) -> None:
        """Print above the panel."""
        self._console.print(Text(f"-- {text}", style="yellow"))

    def panel(self) -> Group:
        """What is drawn fifteen times a second."""
        return Group(self._head(), self._words(), self._work())

    def _head(self) -> Text:
        share = (self._level - FLOOR_DB) / -FLOOR_DB
        style = "red" if self._level > -3 else "cyan"
        head = Text.assemble((bar(share, METER), style), f" {self._level:4.0f} dB  ")
        return head.append(self._source, style="dim")

    def _words(self) -> Table:
        table = Table.grid(padding=(0, 2))
        cells = []
        for word, share in self._posteriors.items():
            hot = "bold green" if share > 0.5 else "dim"
            cells.append(Text.assemble((f"{word:>8} ", hot), (bar(share, BAR), hot)))
        for start in range(0, len(cells), 3):
            table.add_row(*cells[start : start + 3])
        return table

    def _work(self) -> Text:
        beat, ready = self._heartbeat, self._ready
        if beat is None or ready is None:
            return Text("connecting" if ready is None else "listening", style="dim")
        return Text.assemble(
            (f"{beat.macs_skipped_vs_window:.1%}", "bold magenta"),
            " skipped vs window  ",
            (f"{beat.macs_skipped_vs_causal:.1%}", "bold magenta"),
            " vs causal  ",
            (f"lag {beat.lag_ms:.0f} ms  {beat.real_time_factor:.1%} of a core  {ready.point}", "dim"),
        )


def bar(share: float, width: int) -> str:
    """A share of 0 to 1 -> a bar of `width` characters, in eighths."""
    eighths = round(min(max(share, 0.0), 1.0) * width * 8)
    full, part = divmod(eighths, 8)
    return ("█" * full + (EIGHTHS[part] if part else "")).ljust(width, "·")
