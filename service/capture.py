"""Feedback kept for calibration, in a directory that the operator chose; nothing is written otherwise."""

from __future__ import annotations

import asyncio
import json
from contextlib import suppress
from typing import TYPE_CHECKING

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
        await asyncio.to_thread(path.write_text, json.dumps(opinion))
    except OSError as error:
        log.warning("feedback was not kept", session=session, reason=str(error))
        with suppress(OSError):
            path.unlink(missing_ok=True)
