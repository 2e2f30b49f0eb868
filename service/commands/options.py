"""What options that several commands have mean. Knows no command."""

from __future__ import annotations

import typer


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
