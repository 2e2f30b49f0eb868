"""The tree of errors: every one is drawn, documented, named on the wire and over HTTP."""

from __future__ import annotations

import asyncio
import json
import threading
from pathlib import Path
from typing import Any

import pytest
import structlog
from typer.testing import CliRunner

from service import capture, errors
from service.auth import KeyFileError, Keys, Scope
from service.capture import Opinions
from service.commands.key import app as key_command
from service.errors import HTTP_STATUS, failed
from service.protocol import Checkpoint, CloseCode, Detection, WireError, parse_server


def tree(root: type[WireError]) -> list[type[WireError]]:
    return [root, *(leaf for child in root.__subclasses__() for leaf in tree(child))]


ERRORS = [error for error in tree(WireError) if error.__module__.startswith("service.") and error is not WireError]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_error_is_drawn_documented_and_told(error: type[WireError]) -> None:
    assert error.__doc__
    assert f"── {error.__name__} " in errors.__doc__
    assert str(int(error.code)) in errors.__doc__
    assert 400 <= HTTP_STATUS[error.code] < 600
    told = failed(error("what happened", "where"))
    assert (told.code, told.message, told.field) == (error.code.wire, "what happened", "where")
    assert parse_server(told.model_dump_json()) == told


def test_every_close_code_is_some_errors() -> None:
    assert {error.code for error in ERRORS} == {*CloseCode} - {CloseCode.NORMAL}


HEARD = Detection(
    id=3, keyword="yes", score=0.9, start_s=0.1, end_s=0.2, at_s=0.3, latency_ms=1.0, clip="AAA=",
    checkpoint=Checkpoint(sample=0, token="x"),
)  # fmt: skip


async def test_opinion_is_kept_with_its_clip(tmp_path: Path) -> None:
    opinions = Opinions(tmp_path, "abc")
    opinions.add("claimed", HEARD, correct=False)
    await opinions.written()
    kept: Any = json.loads((tmp_path / "abc-3.json").read_text())
    assert (kept["session"], kept["correct"], kept["keyword"], kept["clip"]) == ("claimed", False, "yes", "AAA=")
    assert "checkpoint" not in kept


async def test_directory_that_cannot_be_written_hurts_no_stream(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as lines:
        opinions = Opinions(tmp_path / "gone", "mine")
        opinions.add("abc", HEARD, correct=True)
        await opinions.written()
    assert [(line["event"], line["session"]) for line in lines] == [("feedback was not kept", "abc")]


async def test_later_opinion_stays_though_its_disk_is_faster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write, later = capture._write, threading.Event()

    def slow_at_first(path: Path, text: str) -> None:
        if '"correct": false' in text:
            later.wait(0.2)
        write(path, text)
        later.set()

    monkeypatch.setattr(capture, "_write", slow_at_first)
    opinions = Opinions(tmp_path, "abc")
    opinions.add("abc", HEARD, correct=False)
    first = opinions._writing
    opinions.add("abc", HEARD, correct=True)
    await asyncio.gather(first, opinions.written())
    assert json.loads((tmp_path / "abc-3.json").read_text())["correct"]


def test_key_command_makes_a_line_that_lets_its_key_in(tmp_path: Path) -> None:
    output = CliRunner().invoke(key_command, ["kitchen", "--scope", "stream"]).output
    key, line = (row.split(maxsplit=1)[1] for row in output.splitlines())
    path = tmp_path / "keys"
    path.write_text(line)
    caller = Keys.load(path).find(key)
    assert (caller.name, caller.scopes) == ("kitchen", {Scope.STREAM})
    assert key not in line


@pytest.mark.parametrize("name", ["alice bob", " ", "#1", "kitchen\t"])
def test_key_command_takes_only_names_that_the_server_can_read(name: str) -> None:
    result = CliRunner().invoke(key_command, [name])
    assert isinstance(result.exception, KeyFileError)
    assert not result.output
