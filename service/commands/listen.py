"""`deltaspot listen`: a microphone, a file or a pipe -> detections as they come."""

from __future__ import annotations

import asyncio
import base64
import re
import shlex
import shutil
import signal
import sys
import wave
from asyncio.subprocess import DEVNULL
from collections.abc import AsyncIterable, AsyncIterator, Callable
from contextlib import AsyncExitStack, nullcontext
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.console import Console

from client.address import stream_url
from client.connection import Spotter, connect
from client.display import Display, JsonLines, LivePanel, PlainLines
from client.errors import SourceError
from client.handshake import NotNow
from client.sources import RATES, SAMPLE_RATE, AudioFile, Pipe, Source, level_db
from service.commands.options import Key, Keywords, Own, read_keywords
from service.protocol import Detection

app = typer.Typer(add_completion=False)

SERVER: Final = "ws://127.0.0.1:8770"
PREROLL_MS: Final = 300
RETRY_S: Final = 90.0
"""Time in which a server must be there, s: the first start of one takes up to a minute."""
STDERR: Final = 2
PLACE: Final = re.compile(r"\{(\w+)\}")
PLACES: Final = {"keyword": "", "score": ".3f", "start_s": ".2f", "end_s": ".2f"}
"""What a command may be told of a detection, and how it is written."""


@app.command()
def listen(
    source: Annotated[str, typer.Argument(help="A file, `mic`, or `-` for raw s16le mono samples on standard input.")],
    url: Annotated[str, typer.Option(envvar="DELTASPOT_URL", help="The server.")] = SERVER,
    key: Key = None,
    keywords: Keywords = None,
    enrolled: Own = None,
    point: Annotated[str | None, typer.Option(help="Operating point, such as `dense`.")] = None,
    speed: Annotated[
        float, typer.Option(min=0, help="A file's pace, times real time; 0: as fast as it is taken.")
    ] = 1.0,
    device: Annotated[
        str | None,
        typer.Option(help="Microphone, by number or part of its name; see `deltaspot listen mic --devices`."),
    ] = None,
    devices: Annotated[bool, typer.Option("--devices", help="List microphones and stop.")] = False,
    rate: Annotated[int, typer.Option(min=RATES[0], max=RATES[1], help="Rate of standard input, Hz.")] = SAMPLE_RATE,
    retry: Annotated[
        float,
        typer.Option(
            min=0, metavar="SECONDS", help="How long to wait for a server that is not there, or not any more; or `inf`."
        ),
    ] = RETRY_S,
    on_detect: Annotated[
        str | None,
        typer.Option(
            metavar="CMD",
            help="Run this at each detection, without a shell; {keyword} {score} {start_s} {end_s} are filled in.",
        ),
    ] = None,
    save_clips: Annotated[Path | None, typer.Option(metavar="DIR", help="Save the sound of each detection.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per event.")] = False,
) -> None:
    """Stream a microphone, a file or standard input to a server and print detections as they come."""
    if devices:
        from client.microphone import devices as listed

        print("\n".join(listed()) or "no microphone is to be seen")
        return
    actions: list[Callable[[Detection], None]] = []
    if on_detect is not None:
        actions.append(Runner(on_detect, STDERR if as_json else None))
    if save_clips:
        actions.append(Saver(save_clips))
    console = Console(highlight=False)
    live = console.is_terminal and not as_json
    panel = LivePanel(console, f"{source} → {stream_url(url)}") if live else nullcontext()
    display: Display = panel if isinstance(panel, LivePanel) else (JsonLines if as_json else PlainLines)(console)
    sound = opened(source, speed, device, rate, display)
    spotter = connect(
        url,
        sample_rate=sound.rate,
        keywords=read_keywords(keywords),
        enrolled=enrolled or (),
        key=key,
        retry_s=retry,
        point=point,
        scores=live or as_json,
        preroll_ms=PREROLL_MS if save_clips else 0,
    )
    if live:  # the panel hides the cursor, and must get to show it again
        signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))
    with panel:
        try:
            asyncio.run(follow(spotter, sound, display, actions, retry))
        except KeyboardInterrupt:
            display.note("stopped")


def opened(source: str, speed: float, device: str | None, rate: int, display: Display) -> Source:
    """The audio that `listen` is about."""
    if source == "-":
        if sys.stdin is None:
            raise SourceError("standard input is closed")
        return Pipe(sys.stdin.buffer, rate)
    if source == "mic":
        from client.microphone import Microphone

        return Microphone(int(device) if device and device.isdigit() else device, display.note)
    return AudioFile(source, speed)


async def follow(
    spotter: Spotter,
    source: AsyncIterable[bytes],
    display: Display,
    actions: list[Callable[[Detection], None]],
    retry_s: float = RETRY_S,
) -> None:
    """Wait for the server, send all of `source`, show every event, act on detections."""

    async def metered() -> AsyncIterator[bytes]:
        async for block in source:
            display.level(level_db(block))
            yield block

    await begin(spotter, display, retry_s)
    async with AsyncExitStack() as stack:
        stack.push_async_exit(spotter)
        spotter.play(metered())
        async for event in spotter:
            display.show(event)
            if isinstance(event, Detection):
                for act in actions:
                    act(event)
    for act in actions:
        if isinstance(act, Runner):
            await act.ended()


async def begin(spotter: Spotter, display: Display, retry_s: float) -> None:
    """Open the stream; a server that is not there, has no room, or is not ready yet, is asked again for `retry_s`.

    Raises:
        CannotConnect: as `Spotter` does, and if that has taken too long.
    """
    clock, told = asyncio.get_running_loop().time, ""
    until = clock() + retry_s
    while True:
        try:
            await spotter.__aenter__()  # left by the caller
        except NotNow as error:
            if clock() + error.retry_after > until:
                raise
            if str(error) != told:
                told = str(error)
                display.note(f"{told}; trying again")
            await asyncio.sleep(error.retry_after)
        else:
            return


class Runner:
    """Runs a command at each detection: split into arguments once, filled in afterwards, so that no shell reads it."""

    def __init__(self, command: str, stdout: int | None = None) -> None:
        """Split `command` as a shell would; what it prints goes to the descriptor `stdout`, or to our own.

        Raises:
            BadParameter: for a command that cannot run, whatever is detected.
        """
        try:
            self._arguments = shlex.split(command)
        except ValueError as error:
            raise typer.BadParameter(f"--on-detect: {error} in {command!r}") from None
        if strange := set(PLACE.findall(command)) - set(PLACES):
            known = " ".join(f"{{{name}}}" for name in PLACES)
            raise typer.BadParameter(f"--on-detect fills in {known}, and knows no {{{min(strange)}}}")
        program = self._arguments[0] if self._arguments else ""
        if not PLACE.search(program) and shutil.which(program) is None:
            raise typer.BadParameter(f"--on-detect: there is no command {program!r}")
        self._stdout, self._failed = stdout, False
        self._running: set[asyncio.Task[None]] = set()

    def __call__(self, detection: Detection) -> None:
        """Start it, and do not wait."""
        task = asyncio.create_task(self._run(self.filled(detection)))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def ended(self) -> None:
        """Wait for those that still run."""
        await asyncio.gather(*self._running)

    def filled(self, detection: Detection) -> list[str]:
        """The arguments for a detection."""
        values = {name: f"{getattr(detection, name):{form}}" for name, form in PLACES.items()}
        return [PLACE.sub(lambda m: values[m[1]], argument) for argument in self._arguments]

    async def _run(self, arguments: list[str]) -> None:
        try:
            process = await asyncio.create_subprocess_exec(*arguments, stdin=DEVNULL, stdout=self._stdout)
            status = await process.wait()
            trouble = f"{arguments[0]} ended with status {status}" if status else ""
        except (OSError, ValueError) as error:  # no such program, or a word that can be no argument
            trouble = str(error)
        if trouble and not self._failed:
            self._failed = True
            print(f"deltaspot: --on-detect: {trouble}; what follows is not told again", file=sys.stderr)


class Saver:
    """Writes the sound of each detection as a WAV file, from a little before the word to the decision."""

    def __init__(self, folder: Path) -> None:
        """Write into `folder`, which is made if it is not there."""
        folder.mkdir(parents=True, exist_ok=True)
        self._folder = folder

    def __call__(self, detection: Detection) -> None:
        """Write one file; its name has the time and the word."""
        word = re.sub(r"\W", "_", detection.keyword)  # a server's word is no path
        path = self._folder / f"{detection.start_s:09.2f}-{word}.wav"
        with wave.open(str(path), "wb") as file:
            file.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
            file.writeframes(base64.b64decode(detection.clip or ""))
