"""The other REST door's work: a form with recordings of a word in, a keyword out. Nothing of it is kept here.

The answer is what `deltaspot enroll` writes, and what `configure.enrolled` takes, less its `format`.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from starlette.datastructures import UploadFile
from starlette.formparsers import MultiPartException, MultiPartParser

from models.background import Background, NoBackground
from models.enroll import MOST_RECORDINGS, EnrolError, enrol
from service.audio import Array, clip_blocks
from service.errors import UnsupportedAudio
from service.protocol import BadMessage, Configure, KeywordFile, Share, TooLong

if TYPE_CHECKING:
    from starlette.datastructures import Headers

    from service.server import Server

CLIP_S: Final = 10.0
"""Longest recording that is decoded at all, s; what is shorter and still too long is told with its number."""


class Form(BaseModel):
    """The fields of the form, beside its files."""

    model_config = ConfigDict(extra="forbid")

    name: str = Field(min_length=1, max_length=32, description="what the keyword is called, in detections")
    threshold: Share = Field(0.5, description="smoothed score that counts as a hit, 0 to 1")
    model: str | None = Field(None, max_length=64, description="one of `/v1/models`; the default if left out")
    point: str | None = Field(None, max_length=32, description="operating point that streams will be judged at")


def form_schema() -> dict[str, Any]:
    """How OpenAPI says what the form holds."""
    schema = Form.model_json_schema()
    clips = {"type": "array", "items": {"type": "string", "format": "binary"}, "maxItems": MOST_RECORDINGS}
    clips |= {"description": "recordings in each of which the word is said once", "minItems": 1}
    schema["properties"]["clips"] = clips
    return schema | {"required": ["name", "clips"]}


async def make_keyword(server: Server, headers: Headers, body: bytes) -> KeywordFile:
    """Make a keyword of what a form holds.

    Raises:
        BadMessage: a form or recordings that no keyword can be made of; the message says which and what to do.
        UnsupportedAudio: a file that is no audio.
        TooLong: a recording beyond `CLIP_S`.
        UnknownModel: no such model or operating point.
    """
    form, files = await read_form(headers, body)
    hosted = server.engine.find(form.model)
    point = hosted.spec.point(Configure(point=form.point))

    def work() -> KeywordFile:
        background = Background.of(hosted.network.checkpoint)
        clips = [(name := f"recording {number}", _samples(name, file)) for number, file in enumerate(files, 1)]
        keyword = enrol(hosted.network, background, form.name, clips, point, form.threshold)
        return KeywordFile(**asdict(keyword))

    try:
        async with server.decoding:
            return await asyncio.to_thread(work)
    except (EnrolError, NoBackground) as error:
        raise BadMessage(str(error)) from None


async def read_form(headers: Headers, body: bytes) -> tuple[Form, list[bytes]]:
    """A multipart body -> its fields and its files.

    Raises:
        BadMessage: naming the field at fault.
    """

    async def whole() -> AsyncGenerator[bytes, None]:
        yield body

    try:
        parser = MultiPartParser(headers, whole(), max_files=MOST_RECORDINGS, max_fields=len(Form.model_fields))
        parts = await parser.parse()
    except (MultiPartException, KeyError) as error:
        raise BadMessage(f"this is no form with at most {MOST_RECORDINGS} files: {error}") from None
    try:
        items = parts.multi_items()
        files = [await item.read() for _, item in items if isinstance(item, UploadFile)]
        fields = {name: item for name, item in items if isinstance(item, str)}
        form = Form.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        field = ".".join(map(str, first["loc"]))
        raise BadMessage(f"{field}: {first['msg']}", field) from None
    finally:
        await parts.close()
    return form, files


def _samples(name: str, file: bytes) -> Array:
    try:
        blocks = list(clip_blocks(file, CLIP_S))
    except (UnsupportedAudio, TooLong) as error:
        raise type(error)(f"{name}: {error.message}") from None
    return np.concatenate(blocks) if blocks else np.zeros(0, np.float32)
