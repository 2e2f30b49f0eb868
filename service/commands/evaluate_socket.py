"""`deltaspot evaluate socket`: single words in noise, at the pace of a microphone, through a real WebSocket."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Final

import numpy as np
import typer
from rich.console import Console

from client.connection import connect
from models.bounds import binomial_bounds
from models.checkpoint import load_checkpoint
from models.data import DataError
from models.evaluate_sets import Material
from models.features import Array
from models.streams import SAMPLE_RATE, Plan, Stream, build
from service.commands.material import read_material
from service.commands.options import AsJson, Data, Snr
from service.commands.own_server import free_port, server
from service.protocol import Detection

ONE_WORD: Final = Plan(minutes=3 / 60, scene_s=3.0, gap_s=(1.0, 1.6), unknown_share=0.0, words=1)
AT_ONCE: Final = 50
"""Streams open at the same time."""
CHUNK_SAMPLES: Final = SAMPLE_RATE // 10


@dataclass(frozen=True, slots=True)
class Answer:
    """What the server said to one recording: keywords, in order."""

    said: str
    heard: tuple[str, ...]


def socket(
    data: Data,
    url: Annotated[str | None, typer.Option(help="A running server; one is started if left out.")] = None,
    model: Annotated[Path | None, typer.Option(help="Checkpoint for the server that is started.")] = None,
    count: Annotated[int, typer.Option(min=1, help="How many words.")] = 200,
    snr: Snr = (0.0, 20.0),
    seed: Annotated[int, typer.Option(help="Equal seeds give equal recordings.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Stream single keywords in noise; report how often they are detected exactly once, and nothing else is."""
    keywords = load_checkpoint(model).config.keywords
    recordings = single_words(read_material(data), keywords, count, snr, seed)
    with ExitStack() as stack:
        if url is None:
            port = free_port(0)
            stack.enter_context(server(port, *(["--model", str(model)] if model else [])))
            url = f"127.0.0.1:{port}"
        answers = asyncio.run(listen_to_all(url, recordings))
    report = judge(answers)
    if as_json:
        print(json.dumps(report))
    else:
        Console().print_json(data=report)


def single_words(
    material: Material, keywords: Sequence[str], count: int, snr: tuple[float, float], seed: int
) -> list[Stream]:
    """`count` keyword clips, drawn without putting back, each at a random place of three seconds of noise.

    Raises:
        DataError: where nobody says a keyword.
    """
    plan = replace(ONE_WORD, snr_db=snr)
    spoken = [clip for clip in material.clips if clip.word in keywords]
    if not spoken:
        raise DataError("no keyword is said by a validation speaker in --data, as in WORD/SPEAKER_nohash_TAKE.wav")
    chosen = np.random.default_rng(seed).permutation(len(spoken))[:count]
    return [build([spoken[i]], material.noise, plan, keywords, seed + n) for n, i in enumerate(chosen.tolist())]


async def listen_to_all(url: str, recordings: Sequence[Stream]) -> list[Answer]:
    """Stream every recording at real-time pace, some at the same time."""
    room = asyncio.Semaphore(AT_ONCE)

    async def one(recording: Stream) -> Answer:
        async with room:
            return await listen_to(url, recording)

    return list(await asyncio.gather(*map(one, recordings)))


async def listen_to(url: str, recording: Stream) -> Answer:
    """Stream one recording as a microphone would."""
    async with connect(url) as spotter:
        spotter.play(paced(recording.samples))
        heard = [event.keyword async for event in spotter if isinstance(event, Detection)]
    return Answer(recording.utterances[0].word, tuple(heard))


async def paced(samples: Array) -> AsyncIterator[bytes]:
    """Samples (S,) of int16 values as s16le chunks of 100 ms, each when a microphone would have it."""
    clock = asyncio.get_running_loop().time
    began = clock()
    for start in range(0, len(samples), CHUNK_SAMPLES):
        chunk = samples[start : start + CHUNK_SAMPLES]
        await asyncio.sleep(began + (start + len(chunk)) / SAMPLE_RATE - clock())
        yield chunk.astype("<i2").tobytes()


def judge(answers: Sequence[Answer]) -> dict[str, Any]:
    """How often exactly the word was heard, and what else happened."""
    right = sum(answer.heard == (answer.said,) for answer in answers)
    return {
        "words": len(answers),
        "exactly_one_right": right,
        "share": right / len(answers),
        "share_bounds": binomial_bounds(right, len(answers)),
        "nothing": sum(not answer.heard for answer in answers),
        "wrong_only": sum(bool(answer.heard) and answer.said not in answer.heard for answer in answers),
        "right_and_more": sum(answer.said in answer.heard and len(answer.heard) > 1 for answer in answers),
    }
