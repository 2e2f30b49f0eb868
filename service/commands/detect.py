"""`deltaspot detect`: recordings -> the keywords in them; on a server, or here where the model is installed."""

from __future__ import annotations

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlencode

import typer

from client.errors import ClientError, SourceError
from client.keywords import read_bytes, read_keyword
from client.rest import post
from client.wishes import configured
from service.commands.options import Key, Keywords, Own, Url, read_keywords, server_for
from service.errors import UnsupportedAudio
from service.protocol import Enrolled, KeywordSettings, TooLong, WireError

app = typer.Typer(add_completion=False)

Result = dict[str, Any]
"""As `/v1/detect` answers, and the file's name as `file`."""
Trouble = ClientError | WireError
"""Why a recording could not be judged."""


@app.command()
def detect(
    context: typer.Context,
    files: Annotated[
        list[Path],
        typer.Argument(help="Recordings of any rate and length: WAV, FLAC, OGG (Vorbis or Opus), MP3, AIFF."),
    ],
    url: Url = None,
    key: Key = None,
    point: Annotated[str | None, typer.Option(help="Operating point, such as `dense`.")] = None,
    keywords: Keywords = None,
    enrolled: Own = None,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object per file that was judged.")] = False,
) -> None:
    """Find the keywords in recordings.

    A recording that cannot be judged is named, the others are judged, and the exit status is 2.
    """
    url = server_for(context, url, "--enrolled" if enrolled else None)
    wishes, own = read_keywords(keywords), [read_keyword(path) for path in enrolled or ()]
    asked = {name: value for name, value in (("point", point), ("keywords", keywords)) if value is not None}
    results = remotely(url, files, key, asked) if url else here(files, point, own, wishes)
    if not asyncio.run(_detect(results, named=len(files) > 1, as_json=as_json)):
        raise typer.Exit(2)


async def _detect(results: AsyncIterator[tuple[Path, Result | Trouble]], *, named: bool, as_json: bool) -> bool:
    """Print what was found; return whether every recording could be judged."""
    good = True
    async for file, result in results:
        if isinstance(result, Exception):
            good = False
            print(f"deltaspot: {file}: {str(result).removeprefix(f'{file}: ')}", file=sys.stderr)
        elif as_json:
            print(json.dumps({"file": str(file), **result}, ensure_ascii=False))
        else:
            show(file, result, named=named)
    return good


def show(file: Path, result: Result, *, named: bool) -> None:
    """Print a recording's keywords as a person reads them."""
    if named:
        print(f"{file}:")
    for found in result["detections"]:
        print(f"{found['start_s']:8.2f} s  {found['keyword']:<10} {found['score']:.2f}")
    best, skipped = result["top"][0], result["macs"]["skipped_vs_window"]
    guess = "" if result["detections"] else f"most likely {best['label']} ({best['score']:.2f}); "
    print(
        f"-- {result['seconds']:.1f} s in {result['time_ms']:.0f} ms; "
        f"{guess}{skipped:.1%} of the work against windows skipped"
    )


async def here(
    files: Sequence[Path],
    point: str | None,
    enrolled: Sequence[Enrolled] = (),
    keywords: dict[str, KeywordSettings] | None = None,
) -> AsyncIterator[tuple[Path, Result | Trouble]]:
    """Judge recordings in this process, exactly as a server would: it is one, without a door."""
    from service import clips
    from service.server import Server
    from service.settings import indoors

    wishes = {"point": point, "keywords": keywords, "enrolled": enrolled, "scores": True, "heartbeat_ms": 60_000}
    configure = configured(wishes)
    server = Server(indoors(sessions=2, clip_s=86_400))  # a place is cleared while the next recording begins
    await server.start()
    try:
        for file in files:
            try:
                data = read_bytes(file)
                server.admit()
                yield file, (await clips.judge(server, data, None, configure)).model_dump()
            except (SourceError, TooLong, UnsupportedAudio) as error:
                yield file, error
    finally:
        await server.stop()


async def remotely(
    url: str, files: Sequence[Path], key: str | None, asked: Mapping[str, str]
) -> AsyncIterator[tuple[Path, Result | Trouble]]:
    """Let a server judge recordings, with what is `asked` of it."""
    path = f"/v1/detect?{urlencode(asked)}"
    for file in files:
        try:
            yield file, await asyncio.to_thread(post, url, path, read_bytes(file), key=key)
        except ClientError as error:
            yield file, error
