"""Keywords of one's own: made of recordings on a server, kept in small files, taken along in `configure.enrolled`.

Knows no model: the server judges whether recordings and keywords fit.
"""

from __future__ import annotations

import asyncio
import json
import secrets
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import ValidationError

from client.errors import SourceError
from client.rest import post
from service.protocol import Enrolled, KeywordFile

FORMATS: Final = "deltaspot-keyword-"
"""What the format of a keyword of any version begins with."""


async def enroll(
    url: str, name: str, clips: Sequence[bytes | Path | str], *, key: str | None = None, **wishes: str | float
) -> Enrolled:
    """Make a keyword on a server, from recordings of it; nothing is trained, and the server keeps nothing.

    Args:
        url: the server, as in `client.connection.connect`.
        name: what the keyword is called, in detections.
        clips: 1 to 10 recordings (WAV, FLAC, OGG, MP3), as files or their bytes; each holds the word once.
        key: sent as a bearer token.
        wishes: other fields of `/v1/enroll`: `threshold`, `model`, `point`.

    Raises:
        SourceError: a file cannot be read.
        CannotConnect: there is no server, or it refuses a recording; the message says which, and what to do.
    """
    files = [clip if isinstance(clip, bytes) else read_bytes(Path(clip)) for clip in clips]
    boundary = secrets.token_hex(16)
    body = b"".join(
        [
            *(
                _part(boundary, f'name="{field}"', str(value).encode())
                for field, value in ({"name": name} | wishes).items()
            ),
            *(_part(boundary, f'name="clips"; filename="{number}"', file) for number, file in enumerate(files, 1)),
            f"--{boundary}--\r\n".encode(),
        ]
    )
    kind = f"multipart/form-data; boundary={boundary}"
    return _keyword(url, json.dumps(await asyncio.to_thread(post, url, "/v1/enroll", body, kind, key)))


def read_keyword(path: Path) -> Enrolled:
    """A keyword of one's own.

    Raises:
        SourceError: for a file that is missing, is none, or is another version's.
    """
    try:
        return _keyword(str(path), path.read_bytes())
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}; `deltaspot enroll` makes such files") from None


def write_keyword(keyword: Enrolled, path: Path) -> None:
    """Inverse of `read_keyword`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(KeywordFile(**keyword.model_dump()).model_dump_json() + "\n", encoding="utf-8")


def read_bytes(path: Path) -> bytes:
    """A file's bytes.

    Raises:
        SourceError: if it cannot be read.
    """
    try:
        return path.read_bytes()
    except OSError as error:
        raise SourceError(f"{path}: {error.strerror}") from None


def _keyword(origin: str, text: str | bytes) -> Enrolled:
    try:
        return KeywordFile.model_validate_json(text).keyword
    except ValidationError as error:
        told = {fault["loc"]: fault["input"] for fault in error.errors()}
    if str(told.get(("format",))).startswith(FORMATS):
        raise SourceError(f"{origin}: a keyword of another version of deltaspot; enrol it again from its recordings")
    raise SourceError(f"{origin} is no keyword of `deltaspot enroll`")


def _part(boundary: str, disposition: str, content: bytes) -> bytes:
    """One part of a form (RFC 7578)."""
    return f"--{boundary}\r\nContent-Disposition: form-data; {disposition}\r\n\r\n".encode() + content + b"\r\n"
