"""Takes the README's pictures of the page and the terminal: `python -m tests.screenshots`. No test in here.

A server, a Chromium in which a person chose the sample recording, and `deltaspot listen` on the same; all real.
"""

from __future__ import annotations

import asyncio
import io
from pathlib import Path

from rich.console import Console

from client.connection import connect
from client.display import LivePanel
from client.sources import AudioFile
from service.commands.demo import SAMPLE
from service.commands.listen import follow
from service.commands.own_server import free_port, server
from tests.browser import browser

PICTURES = Path(__file__).with_name("pictures")
RECORDING = SAMPLE / "commands.flac"
JUDGED = "/words?\\.$/.test(document.getElementById('status').textContent)"

VIEWS = {
    "page-dark": {"width": 1180, "height": 1050, "scheme": "dark"},
    "page-light": {"width": 1180, "height": 1050, "scheme": "light"},
    "page-phone": {"width": 390, "height": 844, "scheme": "light", "scale": 2},
}


async def page(port: int, name: str, view: dict[str, object]) -> None:
    """The page when the sample has been judged."""
    async with browser() as tab:
        await tab.open(f"http://127.0.0.1:{port}/", **view)
        await tab.choose("#file", RECORDING)
        await tab.until(JUDGED, 180)
        await tab.run("new Promise(requestAnimationFrame)")
        (PICTURES / f"{name}.png").write_bytes(await tab.picture())


def terminal(port: int) -> None:
    """What `deltaspot listen` shows when the sample is over."""
    console = Console(file=io.StringIO(), record=True, force_terminal=True, width=92)
    spotter = connect(f"127.0.0.1:{port}", scores=True)
    panel = LivePanel(Console(file=io.StringIO()), f"commands.flac → {spotter.url}")
    panel._console = console
    asyncio.run(follow(spotter, AudioFile(RECORDING), panel, []))
    console.print()
    console.print(panel.panel())
    console.save_svg(str(PICTURES / "terminal.svg"), title="deltaspot listen commands.flac")


def main() -> None:
    """All of them."""
    PICTURES.mkdir(exist_ok=True)
    port = free_port(0)
    with server(port):
        for name, view in VIEWS.items():
            asyncio.run(page(port, name, view))
        terminal(port)


if __name__ == "__main__":
    main()
