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


async def keep(directory: Path, session: str, detection: Detection, *, correct: bool) -> None:
    """Write one file for one opinion: the detection, its clip if the stream asked for clips, and whether it was right.

    A full disk is logged and hurts no stream; half a file does not stay.
    """
    opinion = {"session": session, "correct": correct, **detection.model_dump(exclude={"checkpoint"})}
    path = directory / f"{session}-{detection.id}.json"
    try:
        await asyncio.to_thread(_write, path, json.dumps(opinion))
    except OSError as error:
        log.warning("feedback was not kept", session=session, reason=str(error))


def _write(path: Path, text: str) -> None:
    with aside(path) as partial:
        partial.write_text(text, encoding="utf-8")
