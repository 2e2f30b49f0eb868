"""What options that several commands have mean. Knows no command."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from service.protocol import BadMessage, KeywordSettings, parse_keywords

Keywords = Annotated[
    str | None,
    typer.Option(
        metavar="WORDS",
        help="Words to detect, and a threshold where another than the model's shall hold, such as yes=0.3,no; "
        "all of the model if left out.",
    ),
]


def read_keywords(text: str | None) -> dict[str, KeywordSettings] | None:
    """What `Keywords` has -> `configure.keywords`.

    Raises:
        BadParameter: for a threshold that is none, where a word is missing, and for too many.
    """
    try:
        return None if text is None else parse_keywords(text)
    except BadMessage as error:
        raise typer.BadParameter(f"--keywords: {error}") from None


def rising(bounds: tuple[float, float]) -> tuple[float, float]:
    """A range, as it is.

    Raises:
        BadParameter: for one that ends before it begins, or nowhere.
    """
    if not -math.inf < bounds[0] <= bounds[1] < math.inf:
        raise typer.BadParameter("name the lower number first, then the higher one")
    return bounds


def data_option(text: str = "Folder of recordings and archives.") -> Any:  # noqa: ANN401 (as typer has it)
    """`--data` of every command, which the environment may name once and for all; `text` is its help."""
    return typer.Option("--data", envvar="DELTASPOT_DATA", help=text)


Model = Annotated[Path | None, typer.Option(help="Checkpoint; the shipped one if left out.")]
Point = Annotated[str | None, typer.Option(help="Operating point; `shipped`, or `dense` where there is no other.")]
Data = Annotated[Path, data_option()]
Cache = Annotated[Path | None, typer.Option(help="Folder for the data as pixels; not kept if left out.")]
Seed = Annotated[int, typer.Option(help="Equal seeds give equal streams.")]
Snr = Annotated[tuple[float, float], typer.Option(help="Signal-to-noise ratio from, to, dB.", callback=rising)]
Url = Annotated[str | None, typer.Option(envvar="DELTASPOT_URL", help="A server; the model runs here if left out.")]
Key = Annotated[str | None, typer.Option(envvar="DELTASPOT_KEY", help="API key, if the server wants one.")]
Own = Annotated[list[Path] | None, typer.Option(help="Keyword of `deltaspot enroll`; may be given repeatedly.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option was named, and not only its variable of the environment."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"  # the type itself moved between versions


def server_for(context: typer.Context, url: str | None, here_only: str | None) -> str | None:
    """The server to ask; an option that works `here_only` goes before a server that only the environment names.

    Raises:
        BadParameter: if --url itself was given beside it.
    """
    if not (url and here_only):
        return url
    if is_given(context, "url"):
        raise typer.BadParameter(f"{here_only} works here: leave out --url, and the model runs on this machine")
    return None
