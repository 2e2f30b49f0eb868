"""What options that several commands have mean. Knows no command."""

from __future__ import annotations

from typing import Annotated

import typer

from service.protocol import KeywordSettings

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
        BadParameter: for a threshold that is none, and where a word is missing.
    """
    if text is None:
        return None
    wishes = {}
    for part in text.split(","):
        word, equals, number = map(str.strip, part.partition("="))
        try:
            wishes[word] = KeywordSettings(threshold=float(number) if equals else None)
        except ValueError:
            raise typer.BadParameter(f"--keywords: a threshold is a number from 0 to 1, not {number!r}") from None
        if not word:
            raise typer.BadParameter(f"--keywords takes words between commas, such as yes=0.3,no; not {text!r}")
    return wishes


def server_for(context: typer.Context, url: str | None, here_only: str | None) -> str | None:
    """The server to ask; an option that works `here_only` goes before a server that only the environment names.

    Raises:
        BadParameter: if --url itself was given beside it.
    """
    if not (url and here_only):
        return url
    source = context.get_parameter_source("url")
    if source is not None and source.name == "COMMANDLINE":  # the type itself moved between versions
        raise typer.BadParameter(f"{here_only} works here: leave out --url, and the model runs on this machine")
    return None
