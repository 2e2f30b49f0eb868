"""A server of a command's own, in another process. Knows only how to start one, and whether it answers."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, NoReturn

from service.settings import handed_on

if TYPE_CHECKING:
    from types import FrameType

START_S = 300.0
"""Compiling the kernels for the first time on a slow machine takes minutes; later starts take seconds."""
DIRECT: Final = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks without the proxy that the environment may name."""


class NoServer(Exception):
    """It did not start."""


def free_port(wanted: int) -> int:
    """`wanted` if nobody listens there, else any free port."""
    for port in (wanted, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise NoServer("no port is free on 127.0.0.1")


def answers(url: str) -> bool:
    """Whether a GET of `url` is answered with success."""
    try:
        with DIRECT.open(url, timeout=5) as response:
            return bool(response.status == 200)
    except OSError:
        return False


@contextmanager
def server(port: int, *options: str, **settings: str) -> Iterator[subprocess.Popen[bytes]]:
    """`deltaspot serve` in a process of its own, ready; it is stopped on the way out, at SIGTERM and SIGHUP, too.

    Args:
        port: where it listens, on 127.0.0.1.
        options: of the command.
        settings: of the server, by name; those of the environment do not hold, see `service.settings.handed_on`.

    Raises:
        NoServer: if it ends before it is ready, or takes too long; its log is in the message.
    """
    with _ended_by_signals(), tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "service.cli", "serve", "--host", "127.0.0.1", "--port", str(port), *options]
        process = subprocess.Popen(  # noqa: S603 (our own command)
            command, env=handed_on(**settings), stdout=log, stderr=subprocess.STDOUT
        )
        try:
            deadline = time.monotonic() + START_S
            while not answers(f"http://127.0.0.1:{port}/readyz"):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise NoServer(f"the server did not start; it said:\n{log.read().decode(errors='replace')}")
                time.sleep(0.2)
            yield process
        finally:
            process.terminate()
            process.wait()


@contextmanager
def _ended_by_signals() -> Iterator[None]:
    """Let SIGTERM and SIGHUP, where they would end the process at once, end it by an exception, as Ctrl-C does."""

    def leave(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    deadly = [number for number in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(number) is signal.SIG_DFL]
    for number in deadly:
        signal.signal(number, leave)
    try:
        yield
    finally:
        for number in deadly:
            signal.signal(number, signal.SIG_DFL)
