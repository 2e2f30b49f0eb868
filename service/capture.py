"""Feedback kept for calibration, in a directory that the operator chose; nothing is written otherwise."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

from models.aside import aside
from service.logs import log

if TYPE_CHECKING:
    from pathlib import Path

    from service.protocol import Detection


class Opinions:
    """Those of one connection, one file each: the detection, its clip if there is one, and whether it was right.

    Files have the connection's own name, which the server gave it: a session's may be claimed by anybody.
    """

    def __init__(self, directory: Path, connection: str) -> None:
        self._directory, self._connection = directory, connection
        self._writing: asyncio.Task[None] | None = None

    def add(self, session: str, detection: Detection, *, correct: bool) -> None:
        """Write one in the background, after those before it: of two on one detection, the later one stays."""
        opinion = {"session": session, "correct": correct, **detection.model_dump(exclude={"checkpoint"})}
        path = self._directory / f"{self._connection}-{detection.id}.json"
        writing = _keep(path, json.dumps(opinion), session, after=self._writing)
        self._writing = asyncio.get_running_loop().create_task(writing)

    async def written(self) -> None:
        """Wait until all are."""
        if self._writing is not None:
            await self._writing


async def _keep(path: Path, text: str, session: str, after: asyncio.Task[None] | None) -> None:
    """A full disk is logged and hurts no stream; half a file does not stay."""
    if after is not None:
        await asyncio.wait([after])
    try:
        await asyncio.to_thread(_write, path, text)
    except OSError as error:
        log.warning("feedback was not kept", session=session, reason=str(error))


def _write(path: Path, text: str) -> None:
    with aside(path) as partial:
        partial.write_text(text, encoding="utf-8")
