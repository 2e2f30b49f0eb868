"""The sample says what its table says, and the demo succeeds only if that is heard."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile

from models.config import KEYWORDS
from service.commands import demo
from service.commands.own_server import answers, free_port

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "service.cli", "demo", "--port", "0"]


def test_sample_holds_every_keyword_once_and_other_words():
    said = [word.text for word in demo.script()]
    assert sorted(word for word in said if word in KEYWORDS) == sorted(KEYWORDS)
    assert len(said) > len(KEYWORDS)


def test_sample_is_loud_where_its_table_says_so():
    samples, rate = soundfile.read(demo.SAMPLE / "commands.flac")
    words = demo.script()
    between = zip(
        [0.0, *(word.end_s for word in words)], [*(word.start_s for word in words), len(samples) / rate], strict=True
    )

    def power(start_s, end_s):
        return np.mean(samples[round(start_s * rate) : round(end_s * rate)] ** 2)

    pauses = max(power(*pause) for pause in between)
    assert min(power(word.start_s, word.end_s) for word in words) > 10 * pauses


def test_sample_is_not_made_anew_by_a_question():
    command = [sys.executable, str(demo.SAMPLE / "make_sample.py"), "--help"]
    done = subprocess.run(command, env={"PATH": ""}, capture_output=True, text=True, check=True)
    assert "commands.flac" in done.stdout


def test_a_taken_port_is_replaced():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert free_port(port) not in {port, 0}


@pytest.mark.system
def test_demo_hears_the_sample_wherever_the_environment_has_servers_and_proxies():
    nobody = "http://127.0.0.1:9"
    environment = {"DELTASPOT_KEYS": "none", "DELTASPOT_TLS_CERT": "none", "http_proxy": nobody, "https_proxy": nobody}
    done = subprocess.run(
        [*COMMAND, "--once", "--speed", "5"],
        cwd=ROOT,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Multiplications skipped" in done.stdout


@pytest.mark.system
def test_demo_fails_on_silence(tmp_path, monkeypatch):
    shutil.copy(demo.SAMPLE / "commands.tsv", tmp_path)
    soundfile.write(tmp_path / "commands.flac", np.zeros(3 * 16_000), 16_000)
    monkeypatch.setattr(demo, "SAMPLE", tmp_path)
    with pytest.raises(demo.DemoError, match="yes, no, up, down, left, right, on, off, stop, go"):
        demo.demo(once=True, speed=50, port=0)


@pytest.mark.system
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_server_of_a_demo_ends_with_it(number):
    with subprocess.Popen([*COMMAND, "--speed", "50"], cwd=ROOT, stdout=subprocess.PIPE, text=True) as running:
        url = next(line for line in running.stdout if "stays up" in line).split()[5]
        assert answers(url)
        running.send_signal(number)
        assert running.wait(60) == 128 + number
    assert not answers(url)
