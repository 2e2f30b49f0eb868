"""The code in README.md and client/README.md is run as it stands there, against a server on a real socket."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import soundfile

from models.checkpoint import load_checkpoint
from service.commands.demo import SAMPLE
from service.protocol import parse_client
from tests.conftest import Running
from tests.test_javascript import node

ROOT = Path(__file__).resolve().parent.parent
DOCUMENTS = {name: (ROOT / name).read_text() for name in ("README.md", "client/README.md")}


def blocks(language: str) -> list[pytest.param]:
    """Code blocks of the documents in a language."""
    found = [(name, re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)) for name, text in DOCUMENTS.items()]
    return [pytest.param(code, id=f"{name} {number}") for name, codes in found for number, code in enumerate(codes)]


@pytest.mark.parametrize("code", blocks("python"))
def test_example_prints_what_was_heard(code: str, running: Running) -> None:
    code = code.replace("127.0.0.1:8770", f"127.0.0.1:{running.port}")
    code = code.replace('commands.flac")', 'commands.flac", speed=0)')  # nobody listens along
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "yes" in done.stdout


def test_curl_of_the_readme_runs(running: Running) -> None:
    (call,) = re.findall(r"^\$ (curl .*)", DOCUMENTS["README.md"], re.MULTILINE)
    call = call.replace("127.0.0.1:8770", f"127.0.0.1:{running.port}")
    done = subprocess.run(shlex.split(call), cwd=ROOT, capture_output=True, check=True)
    assert "yes" in {found["keyword"] for found in json.loads(done.stdout)["detections"]}


def test_thresholds_are_those_of_the_model_that_comes_along() -> None:
    known = [rule["threshold"] for rule in load_checkpoint().calibration["keywords"].values()]
    (told,) = re.findall(r"thresholds of ([\d.]+) to\s([\d.]+) for the model", DOCUMENTS["client/README.md"])
    assert told == (f"{min(known):.2f}", f"{max(known):.2f}")


@pytest.mark.parametrize("code", blocks("js"))
def test_example_in_javascript_says_what_was_heard(code: str, running: Running) -> None:
    samples, _ = soundfile.read(SAMPLE / "commands.flac", dtype="int16")
    code = code.replace("127.0.0.1:8770", f"127.0.0.1:{running.port}")
    code = code.replace("int16Samples", "Int16Array.from(int16Samples)").replace("console.log(", "heard.push(")
    head = "const heard = [];\n"
    heard = node(head + code + "console.log(JSON.stringify(heard));", int16Samples=samples[:32_000].tolist())
    assert heard[0] == "yes"


@pytest.mark.parametrize("code", blocks("json"))
def test_messages_are_those_of_the_protocol(code: str) -> None:
    for line in code.splitlines():
        parse_client(line)
