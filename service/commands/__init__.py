"""One module per command of `deltaspot`: each defines `app`, a `typer.Typer`, imported only when it is called."""
