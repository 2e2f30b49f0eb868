"""One module per command of `deltaspot`; each defines `app`, a `typer.Typer`, and is imported only when it is asked for."""
