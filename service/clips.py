"""The REST door's work: one recording in, its keywords out. A clip is a stream with an empty past, pushed fast.

Networks that know no streams (service/windows.py) judge it window by window instead.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from pydantic import AfterValidator, BaseModel, Field

from models.config import SILENCE
from service.audio import SAMPLE_RATE, Array, Decoder, Recording, clip_blocks
from service.engine import clock
from service.errors import UnsupportedAudio
from service.protocol import BadMessage, Configure, Detection, Encoding, Scores, TooLong
from service.stream import Stream
from service.windows import HOP, ClipModel, Windows

if TYPE_CHECKING:
    from service.server import Server

BLOCK_BYTES = 1 << 16
DECODE_S = 30.0
"""Wall time that decoding one clip may take, all blocks together; the longest that is allowed needs a few seconds."""


Rounded = Annotated[float, AfterValidator(lambda value: round(value, 4))]
"""What is behind the fourth digit nobody has heard."""


class Found(BaseModel):
    """One keyword in a clip."""

    keyword: str
    score: Rounded = Field(
        description="smoothed posterior at which the word was decided, 0 to 1: a little above its threshold, so that "
        "scores of different words cannot be compared"
    )
    start_s: Rounded
    end_s: Rounded


class LabelScore(BaseModel):
    """One of the model's labels."""

    label: str
    score: Rounded = Field(description="of a clip up to 1 s: the final posterior; else the highest average")


class Work(BaseModel):
    """Multiply-accumulates of the clip."""

    done: int
    skipped_vs_window: Rounded = Field(description="share saved against recomputing a whole window at every token")
    skipped_vs_causal: Rounded = Field(description="share saved against dense arithmetic on new tokens only")


class ClipResult(BaseModel):
    """What was heard in a clip."""

    model: str
    seconds: float = Field(description="length of the audio, s")
    detections: list[Found]
    top: list[LabelScore] = Field(description="all labels, most likely first")
    macs: Work
    time_ms: Rounded = Field(description="time on the server, ms")


async def judge(server: Server, data: bytes, raw: Encoding | None, configure: Configure) -> ClipResult:
    """Judge a recording.

    Args:
        server: where; a place must have been reserved, and is free again afterwards.
        data: a whole file, or bare samples if `raw` says how they are written.
        raw: encoding of bare samples; their rate and channels stand in `configure`.
        configure: the model, the operating point and the keywords; with scores.

    Raises:
        WireError: no audio, too long, or a configuration that makes no sense.
    """
    began, limit = clock(), server.settings.clip_s
    blocks = within(DECODE_S, raw_blocks(data, raw, configure, limit) if raw else clip_blocks(data, limit))
    if (model := server.clip_models.get(configure.model or "")) is not None:
        try:
            if configure.keywords is not None:
                raise BadMessage(f"{model.name!r} judges all of its keywords, at one threshold", "keywords")
            return await _judge_windows(model, blocks, configure.point, server.decoding, began)
        finally:
            server.engine.places.cancel()
    try:
        stream = Stream(server.engine, configure, server.limits, server.settings, server.metrics, "clip")
    except Exception:
        server.engine.places.cancel()
        raise
    try:
        heard = await _push(stream, blocks, server.decoding)
        return _result(stream, heard, (clock() - began) * 1000)
    finally:
        stream.close()


def raw_blocks(data: bytes, encoding: Encoding, configure: Configure, max_seconds: float) -> Iterator[Array]:
    """Bare samples -> blocks of 16 kHz samples.

    Raises:
        TooLong: there are more than `max_seconds` of them.
        UnsupportedAudio: they are no finite numbers.
    """
    decoder = Decoder(encoding, configure.channels, configure.sample_rate)
    for begin in range(0, len(data), BLOCK_BYTES):
        yield decoder.feed(data[begin : begin + BLOCK_BYTES])
        if decoder.samples > max_seconds * configure.sample_rate:
            raise TooLong(f"the clip is longer than {max_seconds:g} s")
    yield decoder.flush()


def within(seconds: float, blocks: Iterator[Array]) -> Iterator[Array]:
    """The same blocks, while making them has taken at most so much wall time in all.

    Raises:
        TooLong: it has taken longer.
    """
    began, spent = clock(), 0.0
    for block in blocks:
        spent += clock() - began
        if spent > seconds:
            raise TooLong(f"decoding the clip took more than {seconds:g} s")
        yield block
        began = clock()


@dataclass
class Heard:
    """Everything that was said of a clip."""

    recording: Recording
    detections: list[Detection] = field(default_factory=list)
    posteriors: list[list[float]] = field(default_factory=list)

    def take(self, stream: Stream) -> None:
        """Empty the stream's outbox."""
        messages, stream.outbox = stream.outbox, []
        self.detections += [m for m in messages if isinstance(m, Detection)]
        self.posteriors += [row for m in messages if isinstance(m, Scores) for row in m.posteriors]


async def _push(stream: Stream, blocks: Iterator[Array], decoding: asyncio.Semaphore) -> Heard:
    """All blocks through the stream; decoding happens in a thread, a block at a time."""
    heard = Heard(Recording(blocks))
    rest = iter(heard.recording)
    async with decoding:
        first = await asyncio.to_thread(next, rest, None)
    if first is None:
        raise UnsupportedAudio("the clip holds no audio")
    await stream.samples(first)
    heard.take(stream)
    async with decoding:
        async for block in _unhurried(rest):
            await stream.samples(block)
            heard.take(stream)
    stream.slot.submit(stream.session.end())
    await stream.drained()
    heard.take(stream)
    if stream.error is not None:
        raise stream.error
    return heard


async def _unhurried(blocks: Iterator[Array]) -> AsyncIterator[Array]:
    """Blocks made in a thread."""
    while (block := await asyncio.to_thread(next, blocks, None)) is not None:
        yield block


def _result(stream: Stream, heard: Heard, time_ms: float) -> ClipResult:
    """What is told of a clip."""
    macs, posteriors, recording = stream.vitals.macs, np.array(heard.posteriors), heard.recording
    config = stream.hosted.spec.config
    short, second = recording.samples <= SAMPLE_RATE, config.tokens_over(SAMPLE_RATE)
    smooth = stream.session.detector.window
    best = posteriors[second - 1] if short else _highest(posteriors, config.labels, smooth)
    return ClipResult(
        model=stream.hosted.name,
        seconds=recording.seconds,
        detections=[
            Found(
                keyword=detection.keyword,
                score=detection.score,
                start_s=recording.place(detection.start_s),
                end_s=recording.place(detection.end_s),
            )
            for detection in heard.detections
        ],
        top=_top(stream.session.spec.labels, best),
        macs=Work(
            done=macs.total,
            skipped_vs_window=macs.skipped_vs_window,
            skipped_vs_causal=macs.skipped_vs_causal,
        ),
        time_ms=time_ms,
    )


def _highest(posteriors: Array, labels: Sequence[str], window: int) -> Array:
    """The highest of each label's moving averages (N, K); of silence, which nearly every recording has, the lowest."""
    averages = sliding_window_view(posteriors, window, axis=0).mean(axis=-1)
    highest: Array = averages.max(axis=0)
    highest[labels.index(SILENCE)] = averages[:, labels.index(SILENCE)].min()
    return highest


def _top(labels: Sequence[str], scores: Array) -> list[LabelScore]:
    """Labels with their scores (K,), most likely first."""
    pairs = zip(labels, scores.tolist(), strict=True)
    return [LabelScore(label=label, score=score) for label, score in sorted(pairs, key=lambda pair: -pair[1])]


async def _judge_windows(
    model: ClipModel, blocks: Iterator[Array], point: str | None, decoding: asyncio.Semaphore, began: float
) -> ClipResult:
    """All blocks through a network without a past; reading and judging happen in a thread, a block at a time."""
    detector, windows = model.detector(point), Windows(model.network)
    async with decoding:
        rows = [await asyncio.to_thread(windows.feed, block) async for block in _unhurried(blocks)]
        if not windows.samples:
            raise UnsupportedAudio("the clip holds no audio")
        rows.append(await asyncio.to_thread(windows.flush))
    posteriors, seconds = np.concatenate(rows), windows.samples / SAMPLE_RATE
    return ClipResult(
        model=model.name,
        seconds=seconds,
        detections=[
            Found(
                keyword=hit.keyword,
                score=hit.score,
                start_s=hit.token * HOP / SAMPLE_RATE,
                end_s=min(seconds, (hit.token * HOP + model.network.config.clip_samples) / SAMPLE_RATE),
            )
            for hit in detector.feed(posteriors)
        ],
        top=_top(model.labels, _highest(posteriors, model.labels, 1)),
        macs=Work(
            done=windows.judged * sum(model.network.config.macs().values()),
            skipped_vs_window=0,
            skipped_vs_causal=0,
        ),
        time_ms=(clock() - began) * 1000,
    )
