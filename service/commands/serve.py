"""`deltaspot serve`: one server process, from its settings to its exit status."""

from __future__ import annotations

import asyncio
import gc
import json
import math
import os
import resource
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
import uvicorn

from client.address import is_loopback
from models.engines import Engine
from service import logs
from service.app import create_app
from service.errors import UnknownModel
from service.precheck import certificate, check, read_settings, variable
from service.server import Server
from service.settings import Settings
from service.sockets import Door, Socket

if TYPE_CHECKING:
    from types import FrameType

app = typer.Typer(add_completion=False)

SWITCH_S = 0.0001
"""The engine's thread asks for the interpreter this often; the default of 5 ms would add itself to every
batch, several times: numpy lets go of the interpreter in every larger operation and has to get it back."""

GARBAGE = (50_000, 50, 10)
"""When Python looks for cycles: everything stands still meanwhile, and frames and messages make none. A batch makes
many objects that are gone at its end, and must not be the reason."""

OPEN_MAX = 10_240
"""Descriptors of a process on macOS, which says that there is no limit and refuses to be asked for that many."""


class Polite(uvicorn.Server):
    """Drains before it stops, and ends well: the first signal starts that, the second one ends it at once.

    So does the first while the models are not ready: nothing is open yet, and what compiles cannot be interrupted.
    """

    server: Server
    failed = False

    def give_up(self) -> None:
        """End, and say by the exit status that it was no wish: something without which there is no service failed."""
        self.failed = self.should_exit = True

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:  # noqa: ARG002 (uvicorn's own signature)
        """Begin to drain, and uvicorn stops once that is over; or end at once."""
        places = self.server.engine.places
        if places.draining or not self.server.warm:
            self._end()
        places.draining = True
        asyncio.get_running_loop().call_soon_threadsafe(self._drain)

    def _end(self) -> NoReturn:
        """Leave, without waiting for any thread."""
        try:
            logs.log.info("stopped at once", streams=len(self.server.streams))
        finally:  # the signal may have come while a line was being written
            os._exit(self.failed)

    def _drain(self) -> None:
        drained = asyncio.get_running_loop().create_task(self.server.drain())
        drained.add_done_callback(lambda _: setattr(self, "should_exit", True))


def _print_settings(wanted: bool) -> None:
    if wanted:
        for name, field in Settings.model_fields.items():
            default = "" if field.default is None else f" [{shown(field.default)}]"
            print(f"{variable(name)}: {field.description}{default}")
        raise typer.Exit


def shown(default: object) -> str:
    """A default as the environment would have it."""
    return json.dumps(default, default=str) if isinstance(default, list | tuple | dict) else str(default)


@app.command()
def serve(
    host: Annotated[str | None, typer.Option(help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option(help="Port to listen on; 0 takes a free one.")] = None,
    model: Annotated[Path | None, typer.Option(help="Checkpoint to serve; the shipped one if left out.")] = None,
    engine: Annotated[
        Engine | None, typer.Option(help="What runs the networks: our kernels, or torch, for an accelerator.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="Where torch runs: cpu, cuda, or cuda:N.")] = None,
    sessions: Annotated[int | None, typer.Option(help="Streams admitted at most.")] = None,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate chain, PEM.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its key, PEM.")] = None,
    _settings: Annotated[
        bool, typer.Option("--settings", callback=_print_settings, help="Print every setting of the environment.")
    ] = False,
) -> None:
    """Run the server until SIGTERM or its terminal's end; other settings come from the environment, see --settings."""
    given = {"host": host, "port": port, "model": model, "engine": engine, "device": device, "sessions": sessions}
    given |= {"tls_cert": tls_cert, "tls_key": tls_key}
    settings = read_settings({name: value for name, value in given.items() if value is not None})
    pretty = settings.log_format == "console" or (settings.log_format == "auto" and sys.stderr.isatty())
    logs.configure(pretty=pretty)
    check(settings)
    sys.setswitchinterval(SWITCH_S)
    gc.set_threshold(*GARBAGE)
    _allow_many_sockets()
    server = Server(settings)
    say_who_may_come_in(server)
    polite = Polite(uvicorn_config(server))
    polite.server, server.on_failure = server, polite.give_up
    _heed_hangup(polite)
    polite.run()
    if polite.failed:
        raise typer.Exit(1)


def say_who_may_come_in(server: Server) -> None:
    """Write down how many keys there are; that nobody needs one is a warning, unless only this machine gets here."""
    if server.keys is not None:
        logs.log.info("keys are asked for", keys=len(server.keys.callers))
    elif is_loopback(server.settings.host):
        logs.log.info("no keys: everybody on this machine may do everything")
    else:
        logs.log.warning("no keys: everybody who reaches this address may do everything; DELTASPOT_KEYS names a file")


def _heed_hangup(polite: Polite) -> None:
    """Reload at SIGHUP; end at one that comes since the terminal is gone on which the server was started."""
    terminal = os.isatty(0)

    def hung_up(sig: int, frame: FrameType | None) -> None:
        if terminal and not os.isatty(0):
            polite.handle_exit(sig, frame)
        else:
            asyncio.get_running_loop().call_soon_threadsafe(_reload, polite.server)

    signal.signal(signal.SIGHUP, hung_up)


def _reload(server: Server) -> None:
    server.reloading = asyncio.get_running_loop().create_task(server.reload())
    server.reloading.add_done_callback(_reloaded)


def _reloaded(task: asyncio.Task[None]) -> None:
    """Whatever went wrong is in the log; what is wrong with a file is there already."""
    if not task.cancelled() and (error := task.exception()) is not None and not isinstance(error, UnknownModel):
        logs.log.error("nothing was reloaded", exc_info=error)


def _allow_many_sockets() -> None:
    """Ask the system for all the descriptors it would give: a stream is one."""
    _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_MAX if hard == resource.RLIM_INFINITY else hard, hard))


def uvicorn_config(server: Server) -> uvicorn.Config:
    """How uvicorn runs our application: frames are not compressed, and our limits come before its own."""
    settings = server.settings
    config = uvicorn.Config(
        create_app(server),
        host=settings.host,
        port=settings.port,
        http=Door,
        ws=Socket,
        ws_per_message_deflate=False,
        ws_max_size=2 * settings.frame_bytes,
        ws_ping_timeout=None,  # pings keep proxies awake; who is dead is found by `idle_s`, and told so
        log_config=None,
        access_log=False,
        server_header=False,
        forwarded_allow_ips=[str(proxy) for proxy in settings.proxies],
        timeout_keep_alive=math.ceil(settings.configure_s),
        timeout_graceful_shutdown=5,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
    )
    server.on_reload = lambda: _renew_certificate(config, settings)
    return config


def _renew_certificate(config: uvicorn.Config, settings: Settings) -> None:
    """Show the certificate that lies there now, from the next handshake on.

    A context into which it were loaded would still show the old one to many, if the new key is of another kind.
    """
    fresh = certificate(settings)
    if fresh is not None and config.ssl is not None:
        config.ssl.sni_callback = lambda connection, _name, _context: setattr(connection, "context", fresh)
