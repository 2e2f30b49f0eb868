"""`deltaspot key`: make an API key; the server is given its hash only."""

from __future__ import annotations

from typing import Annotated

import typer

from service.auth import KeyFileError, Scope, hash_key, new_key, words_of

app = typer.Typer(add_completion=False)


@app.command()
def key(
    name: Annotated[str, typer.Argument(help="Whose it is; appears in logs.")],
    scopes: Annotated[list[Scope] | None, typer.Option("--scope", help="What it is for; repeat for more.")] = None,
) -> None:
    """Make a key. Give it to its owner, and append the line to the file that DELTASPOT_KEYS names.

    Raises:
        KeyFileError: for a name that is no word of a line.
    """
    if words_of(name) != [name]:
        raise KeyFileError(f"a key's name is one word, without #; not {name!r}")
    secret = new_key()
    allowed = ",".join(scope.value for scope in scopes or [Scope.STREAM, Scope.DETECT])
    print(f"key:   {secret}\nline:  {name} {hash_key(secret)} {allowed}")
