"""`deltaspot detect`: recordings -> the keywords in them; on a server, or here where the model is installed."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from client.keywords import read_bytes, read_keyword
from client.rest import post
from service.protocol import Enrolled

app = typer.Typer(add_completion=False)

Result = dict[str, Any]
"""As `/v1/detect` answers, and the file's name as `file`."""


@app.command()
def detect(
    files: Annotated[list[Path], typer.Argument(help="Recordings: WAV, FLAC, OGG, MP3, of any rate and length.")],
    url: Annotated[
        str | None, typer.Option(envvar="DELTASPOT_URL", help="A server; the model runs here if left out.")
    ] = None,
    key: Annotated[str | None, typer.Option(envvar="DELTASPOT_KEY", help="API key, if the server wants one.")] = None,
    point: Annotated[str | None, typer.Option(help="Operating point, such as `dense`.")] = None,
    enrolled: Annotated[
        list[Path] | None, typer.Option(help="Keyword of `deltaspot enroll`, without --url; may be given repeatedly.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per file.")] = False,
) -> None:
    """Find the keywords in recordings.

    Raises:
        BadParameter: if keywords of one's own are to be found on a server, which clips do not bring along.
    """
    if url and enrolled:
        raise typer.BadParameter("--enrolled works here or in `listen`, not with --url")
    words = [read_keyword(path) for path in enrolled or ()]
    asyncio.run(_detect(remotely(url, files, key, point) if url else here(files, point, words), files, as_json=as_json))


async def _detect(results: AsyncIterator[tuple[Path, Result]], files: Sequence[Path], *, as_json: bool) -> None:
    async for file, result in results:
        if as_json:
            print(json.dumps({"file": str(file), **result}, ensure_ascii=False))
        else:
            show(file, result, named=len(files) > 1)


def show(file: Path, result: Result, *, named: bool) -> None:
    """Print a recording's keywords as a person reads them."""
    if named:
        print(f"{file}:")
    for found in result["detections"]:
        print(f"{found['start_s']:8.2f} s  {found['keyword']:<10} {found['score']:.2f}")
    best, skipped = result["top"][0], result["macs"]["skipped_vs_window"]
    print(
        f"-- {result['seconds']:.1f} s in {result['time_ms']:.0f} ms; "
        f"most likely {best['label']} ({best['score']:.2f}); {skipped:.1%} of the work against windows skipped"
    )


async def here(
    files: Sequence[Path], point: str | None, enrolled: Sequence[Enrolled] = ()
) -> AsyncIterator[tuple[Path, Result]]:
    """Judge recordings in this process, exactly as a server would: it is one, without a door."""
    from service import clips
    from service.protocol import Configure
    from service.server import Server
    from service.settings import Settings

    server = Server(Settings(sessions=2, clip_s=86_400))  # a place is cleared while the next recording begins
    await server.start()
    configure = Configure(point=point, scores=True, heartbeat_ms=60_000, enrolled=tuple(enrolled))
    try:
        for file in files:
            data = read_bytes(file)
            server.admit()
            yield file, (await clips.judge(server, data, None, configure)).model_dump()
    finally:
        await server.stop()


async def remotely(
    url: str, files: Sequence[Path], key: str | None, point: str | None
) -> AsyncIterator[tuple[Path, Result]]:
    """Let a server judge recordings.

    Raises:
        CannotConnect: there is none, or it refuses one; the message says why.
    """
    for file in files:
        path = f"/v1/detect?{urlencode({'point': point})}" if point else "/v1/detect"
        yield file, await asyncio.to_thread(post, url, path, read_bytes(file), key=key)
