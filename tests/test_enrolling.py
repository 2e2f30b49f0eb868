"""Keywords made over REST are those that `deltaspot enroll` makes; what none can be made of is said, and no more."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
import soundfile
from typer.testing import CliRunner

from client.connection import connect
from client.errors import CannotConnect, SourceError, StreamFailed
from client.keywords import enroll, read_keyword, write_keyword
from models.background import Background
from models.enroll import enrol
from models.network import Network
from models.operating import usual_point
from service.commands import enroll as command
from service.enrolled import FILE_BYTES
from service.protocol import Enrolled
from tests.conftest import Running, Serving
from tests.own_words import variants
from tests.talk import wav

BROKEN = "broken"


@pytest.fixture(scope="module")
def shelf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server keeps keywords."""
    return tmp_path_factory.mktemp("shelf")


@pytest.fixture(scope="module")
def teaching(serving: Serving, able: Path, shelf: Path) -> Iterator[Running]:
    with serving(model=able, keywords=shelf, clip_bytes=1 << 20) as one:
        yield one


@pytest.fixture
async def web(teaching: Running) -> AsyncIterator[httpx.AsyncClient]:
    async with httpx.AsyncClient(base_url=teaching.http, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def clips(spoken: np.ndarray) -> list[bytes]:
    return [wav(samples) for samples in variants(spoken, "seven", 3)]


@pytest.fixture(scope="module")
def wanted(network: Network, background: Background, clips: list[bytes]) -> Enrolled:
    """What `models.enroll` makes of the same recordings."""
    named = [(str(i), soundfile.read(io.BytesIO(clip), dtype="int16")[0].astype("f4")) for i, clip in enumerate(clips)]
    made = enrol(network, background, "seven", named, usual_point(network.points))
    return Enrolled(**{name: getattr(made, name) for name in Enrolled.model_fields})


async def test_a_keyword_is_that_of_the_command_line(
    teaching: Running, clips: list[bytes], wanted: Enrolled, tmp_path: Path
) -> None:
    files = [tmp_path / f"{number}.wav" for number in range(3)]
    for file, clip in zip(files, clips, strict=True):
        file.write_bytes(clip)
    assert await enroll(teaching.http, "seven", [files[0], str(files[1]), clips[2]]) == wanted
    out = tmp_path / "seven.json"
    arguments = ["seven", *map(str, files), "--url", teaching.http, "--out", str(out), "--threshold", "0.7"]
    done = await asyncio.to_thread(CliRunner().invoke, command.app, arguments)
    assert done.exit_code == 0, done.output
    assert read_keyword(out) == wanted.model_copy(update={"threshold": 0.7})


async def test_any_rate_will_do(teaching: Running, spoken: np.ndarray, wanted: Enrolled) -> None:
    doubled = [wav(np.repeat(samples, 2), 32_000) for samples in variants(spoken, "seven", 3)]
    keyword = await enroll(teaching.http, "seven", doubled)
    one, other = np.array(keyword.prototype), np.array(wanted.prototype)
    assert np.corrcoef(one, other)[0, 1] > 0.98


LOUD = np.random.default_rng(1).normal(0, 3_000, 16_000)
BAD = [
    ({"name": "seven"}, [], 422, "1 to 10 recordings"),
    ({"name": "seven"}, [wav(np.zeros(16_000))], 422, "recording 1 is silent"),
    ({"name": "seven"}, [wav(LOUD[:1_000])], 422, "recording 1 is too short"),
    ({"name": "seven"}, [wav(np.tile(LOUD, 6))], 422, "recording 1 is too long"),
    ({"name": "seven"}, [wav(LOUD), wav(np.tile(LOUD, 11))], 413, "recording 2: the clip is longer than 10 s"),
    ({"name": "seven"}, [wav(LOUD)] * 11, 422, "at most 10 files"),
    ({"name": "seven"}, [bytes(2 << 20)], 413, "1048576 bytes"),
    ({"name": "seven"}, [wav(LOUD), b"Dear friend"], 415, "recording 2: not an audio file"),
    ({}, [wav(LOUD)], 422, "name: Field required"),
    ({"name": "yes"}, [wav(LOUD)], 422, "choose another name"),
    ({"name": "../seven"}, [wav(LOUD)], 422, "no name for a keyword"),
    ({"name": "seven", "threshold": "2"}, [wav(LOUD)], 422, "threshold"),
    ({"name": "seven", "threshold": "nan"}, [wav(LOUD)], 422, "threshold"),
    ({"name": "seven", "model": "gpt"}, [wav(LOUD)], 422, "no model 'gpt'"),
    ({"name": "seven", "point": "blunt"}, [wav(LOUD)], 422, "the points"),
    ({"name": "seven", "colour": "red"}, [wav(LOUD)], 422, "colour"),
]


@pytest.mark.parametrize(("fields", "files", "status", "said"), BAD, ids=[said for *_, said in BAD])
async def test_what_no_keyword_can_be_made_of_is_said(
    teaching: Running, web: httpx.AsyncClient, fields: dict[str, str], files: list[bytes], status: int, said: str
) -> None:
    parts = [("clips", (f"{number}.wav", file)) for number, file in enumerate(files)]
    answer = await web.post("/v1/enroll", data=fields, files=parts or [("other", (None, ""))])
    assert answer.status_code == status, answer.text
    assert said in answer.json()["message"] or said == "1 to 10 recordings"
    assert teaching.server.engine.places.reserved == 0


@pytest.mark.parametrize("kind", ["application/json", "multipart/form-data", "multipart/form-data; boundary=x"])
async def test_what_is_no_form_is_said(web: httpx.AsyncClient, kind: str) -> None:
    answer = await web.post("/v1/enroll", content=b"--y\r\n\r\nhello", headers={"Content-Type": kind})
    assert answer.status_code == 422
    assert answer.json()["code"] == "bad_message"


async def test_a_server_without_background_says_what_to_do(
    serving: Serving, network: Network, tmp_path: Path, clips: list[bytes]
) -> None:
    from models.checkpoint import save

    save(replace(network.checkpoint, background={}), tmp_path / "bare.safetensors")
    bare = serving(model=tmp_path / "bare.safetensors")
    with bare as running, pytest.raises(CannotConnect, match="deltaspot model background"):
        await enroll(running.http, "seven", clips)


async def test_kept_keywords_are_named_by_streams(teaching: Running, wanted: Enrolled, shelf: Path) -> None:
    write_keyword(wanted, shelf / "seven.json")
    async with connect(teaching.stream, stored=("seven",)) as spotter:
        assert "seven" in spotter.ready.keywords


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nine", "keeps no keyword 'nine'"),
        ("../shelf/seven", "keeps no keyword"),
        ("huge", "keeps no keyword"),
        (BROKEN, "enrol it again"),
        ("stranger", "enrol it again"),
        ("lax", "enrol it again"),
    ],
)
async def test_kept_keywords_are_files_of_this_model_and_nothing_else(
    teaching: Running, wanted: Enrolled, shelf: Path, name: str, said: str
) -> None:
    write_keyword(wanted, shelf / "seven.json")
    (shelf / "huge.json").write_text(" " * (FILE_BYTES + 1))
    (shelf / f"{BROKEN}.json").write_text(json.dumps({"format": "deltaspot-keyword-1"}))
    lax = json.loads((shelf / "seven.json").read_text()) | {"threshold": 7}
    (shelf / "lax.json").write_text(json.dumps(lax))
    write_keyword(wanted.model_copy(update={"name": "stranger", "fingerprint": "0"}), shelf / "stranger.json")
    with pytest.raises(StreamFailed, match=said):
        async with connect(teaching.stream, stored=(name,)):
            pass


async def test_troubles_on_the_way_are_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="No such file"):
        await enroll("127.0.0.1:9", "seven", [tmp_path / "nothing.wav"])
    with pytest.raises(CannotConnect, match="no server answers"):
        await enroll("127.0.0.1:9", "seven", [b"sound"])
    answers = {b"": "went away", b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi": "no deltaspot server"}
    for answer, said in answers.items():

        async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, answer: bytes = answer) -> None:
            await reader.readuntil(b"--\r\n")
            writer.write(answer)
            writer.close()

        async with await asyncio.start_server(speak, "127.0.0.1", 0) as stranger:
            port = stranger.sockets[0].getsockname()[1]
            with pytest.raises(CannotConnect, match=said):
                await enroll(f"127.0.0.1:{port}", "seven", [b"sound"])
