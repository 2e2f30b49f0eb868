"""The `deltaspot` command: a table of commands, each imported only when it is asked for.

`deltaspot listen` must start on a client's installation, without numba, FastAPI or torch; so this module knows
names and one line of help for each, and nothing else. A command's module defines `app`, a `typer.Typer`.
"""

from __future__ import annotations

import importlib
import sys
from importlib.metadata import version
from io import TextIOWrapper
from typing import Annotated, Any, Final

import typer
from typer.core import TyperCommand, TyperGroup

COMMANDS: Final = {
    "demo": "Start a server, stream the sample recording through it and show what was heard and skipped.",
    "listen": "Stream a microphone, a file or standard input to a server and print detections.",
    "detect": "Find the keywords in recordings.",
    "serve": "Run the server: WebSocket, REST, metrics and the browser page.",
    "key": "Make an API key and its line for the server's file of keys.",
    "enroll": "Make a keyword of your own from a few recordings.",
    "scan": "Find keywords in thousands of recordings; resumable.",
    "bench": "Measure kernels and the service on this machine.",
    "model": "Describe, import, calibrate and export checkpoints.",
    "evaluate": "Judge a checkpoint on clips and on streams.",
    "train": "Train a checkpoint from recordings.",
}
"""Name of each command, which is its module in `service.commands`, and its line of help."""

EXTRAS: Final = {
    "ai_edge_litert": "litert",
    "fastapi": "server",
    "hibari": "speech",
    "jwt": "server",
    "limits": "server",
    "llvmlite": "server",
    "matplotlib": "train",
    "numba": "server",
    "numpy": "server",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "opentelemetry": "otel",
    "PIL": "train",
    "prometheus_client": "server",
    "pyarrow": "scan",
    "pydantic_settings": "server",
    "ray": "ray",
    "safetensors": "server",
    "soundfile": "server",
    "soxr": "server",
    "starlette": "server",
    "structlog": "server",
    "torch": "train",
    "uvicorn": "server",
    "uvloop": "server",
}
"""Which extra brings a module that the base installation lacks."""

OURS: Final = frozenset({"service", "models", "client"})


class LazyGroup(TyperGroup):
    """Group whose commands are stubs until one of them is called."""

    def __init__(self, **attributes: Any) -> None:  # noqa: ANN401 (typer hands through whatever it knows)
        super().__init__(**attributes)
        self.commands = {name: TyperCommand(name, help=text) for name, text in COMMANDS.items()}

    def resolve_command(self, ctx: Any, args: list[str]) -> Any:  # noqa: ANN401 (click's own types moved between versions)
        """Put the command itself in the place of its stub."""
        name, _stub, rest = super().resolve_command(ctx, args)
        return name, load(str(name)), rest


def load(name: str) -> Any:  # noqa: ANN401 (click's own types moved between versions)
    """Import the module of command `name` and return its command."""
    module = importlib.import_module(f"service.commands.{name}")
    command = typer.main.get_command(module.app)
    command.name = name
    _say_to_users(command)
    return command


def _say_to_users(command: Any) -> None:  # noqa: ANN401 (click's own types moved between versions)
    """Cut from the help of a command, and of those below it, what its docstring says to programmers."""
    command.help = (command.help or "").partition("\n\nRaises:")[0]
    for below in getattr(command, "commands", {}).values():
        _say_to_users(below)


app = typer.Typer(
    name="deltaspot",
    cls=LazyGroup,
    no_args_is_help=True,
    help="Streaming keyword spotting that computes only what changed.",
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"deltaspot {version('deltaspot')}")
        raise typer.Exit


@app.callback()
def _root(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Streaming keyword spotting that computes only what changed."""


def explain(error: Exception) -> str | None:
    """One line for an error that the user can act on; None for one that is our mistake and deserves its traceback."""
    if isinstance(error, ModuleNotFoundError):
        extra = EXTRAS.get((error.name or "").partition(".")[0])
        return extra and f'{error.name} is not installed; in the checkout, pip install -e ".[{extra}]" brings it'
    drawn = type(error).__module__.partition(".")[0] in OURS
    return str(error) if drawn or isinstance(error, OSError) else None


def main() -> None:
    """Run the command line. Errors that we draw ourselves, and the system's, become one line and exit status 2."""
    if isinstance(sys.stdout, TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # names of files may be no text; JSON has such escapes
    try:
        typer.main.get_command(app).main(prog_name="deltaspot")
    except Exception as error:
        line = explain(error)
        if line is None:
            raise
        print(f"deltaspot: {line}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
