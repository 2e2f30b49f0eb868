"""What `pip install deltaspot` brings, with no extra: a wheel of this tree, alone in a fresh environment."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import venv
from pathlib import Path

import pytest

from service.cli import COMMANDS
from service.commands.demo import SAMPLE, script

pytestmark = pytest.mark.system

ROOT = Path(__file__).resolve().parent.parent.parent
LIMIT_BYTES = 60e6
HEAVY = {"numpy", "numba", "llvmlite", "torch", "scipy", "soundfile", "soxr", "fastapi"}
CALLS = {name: ["--help"] for name in COMMANDS} | {
    "bench": ["service", "--sessions", "1"],
    "demo": ["--once"],
    "detect": [str(SAMPLE / "commands.flac")],
    "enroll": ["seven", str(SAMPLE / "commands.flac")],
    "scan": [str(SAMPLE), "--out", "table"],
}
"""A call of each command, to see what it lacks: some can explain themselves all the same."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The environment's folder of programs. Its pip stays outside, so that it is not weighed."""
    folder = tmp_path_factory.mktemp("base")
    build = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    subprocess.run(build, cwd=ROOT, capture_output=True, check=True)
    (wheel,) = folder.glob("*.whl")
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv" / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "install", "--quiet", "--disable-pip-version-check"]
    command = [*pip, "--constraint", str(ROOT / ".ci" / "constraints.txt"), str(wheel)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return python.parent


def run(installed: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """A program of the environment, away from the checkout, which would be importable from within."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "DELTASPOT"))}
    command = [installed / words[0], *words[1:]]
    return subprocess.run(command, cwd=installed, env=environment, capture_output=True, text=True, check=False)


def test_it_is_small(installed):
    (packages,) = (installed.parent / "lib").glob("*/site-packages")
    sizes = {
        entry.name: sum(path.stat().st_size for path in (entry.rglob("*") if entry.is_dir() else [entry]))
        for entry in packages.iterdir()
    }
    assert not HEAVY & sizes.keys()
    assert sum(sizes.values()) < LIMIT_BYTES, sorted(sizes.items(), key=lambda pair: -pair[1])[:5]


def test_connecting_imports_what_it_needs_and_no_more(installed):
    code = "import sys, client.connection, client.microphone, client.sources; print(*sys.modules)"
    modules = {name.split(".")[0] for name in run(installed, "python", "-c", code).stdout.split()}
    assert {"websockets", "pydantic", "miniaudio"} <= modules
    assert not modules & {*HEAVY, "models", "rich", "typer", "sounddevice"}


def test_sample_is_streamed_and_heard(installed, running):
    url = f"127.0.0.1:{running.port}"
    done = run(installed, "deltaspot", "listen", str(SAMPLE / "commands.flac"), "--speed", "0", "--json", "--url", url)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    heard = {event["keyword"] for event in events if event["type"] == "detection"}
    assert len(heard) >= 4
    assert heard <= {word.text for word in script()}


def test_recording_is_judged_by_a_server(installed, running):
    done = run(installed, "deltaspot", "detect", str(SAMPLE / "commands.flac"), "--json", "--url", running.http)
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["detections"]) >= 4


@pytest.mark.parametrize("name", ["listen", "detect", "enroll"])
def test_clients_explain_themselves(installed, name):
    assert "Usage: deltaspot" in run(installed, "deltaspot", name, "--help").stdout


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - {"listen"}))
def test_what_needs_the_model_says_what_to_install(installed, name):
    done = run(installed, "deltaspot", name, *CALLS[name])
    assert done.returncode == 2
    assert 'pip install -e ".[server]"' in done.stderr
    assert "Traceback" not in done.stderr
