"""A server that cannot work does not start: one line says which setting is wrong, and what to do."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from service.precheck import SettingError, check, read_settings
from service.settings import Settings

ENVIRONMENT = {
    "DELTASPOT_PORT": ("abc", "DELTASPOT_PORT: Input should be a valid integer"),
    "DELTASPOT_LOG_FORMAT": ("plain", "'auto', 'json' or 'console'"),
    "DELTASPOT_ORIGINS": ("http://x", "DELTASPOT_ORIGINS must be JSON"),
    "DELTASPOT_METHODS": ('["foo"]', "DELTASPOT_METHODS: "),
    "DELTASPOT_MODELS": ('{"more": "/nonexistent"}', "DELTASPOT_MODELS, 'more': "),
    "DELTASPOT_KEYWORDS": ("/nonexistent", "there is no folder /nonexistent"),
    "DELTASPOT_CAPTURE": ("/proc/x", "/proc/x"),
    "DELTASPOT_TLS_KEY": ("key.pem", "no use without DELTASPOT_TLS_CERT"),
    "DELTASPOT_TLS_CERT": ("/nonexistent.pem", "DELTASPOT_TLS_CERT: there is no file /nonexistent.pem"),
    "DELTASPOT_KEYS": ("/nonexistent.txt", "/nonexistent.txt"),
}


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_server_with_a_wrong_setting_says_so_in_one_line_and_does_not_start(name: str) -> None:
    value, told = ENVIRONMENT[name]
    command = [sys.executable, "-m", "service.cli", "serve"]
    environment = {**os.environ, "DELTASPOT_PORT": "0", name: value}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("deltaspot: ")
    assert done.stderr.count("\n") == 1
    assert told in done.stderr


def test_text_in_the_place_of_a_certificate_is_named(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    with pytest.raises(SettingError, match=r"cert\.pem: no certificate with its key, in PEM"):
        check(Settings(port=0, tls_cert=tmp_path / "cert.pem"))


@pytest.mark.parametrize("name", ["port", "wyoming_port"])
def test_port_that_is_taken_is_named(name: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(SettingError, match=rf"127\.0\.0\.1, port {port} \(Address already in use\)"):
            check(Settings(**{"port": 0, name: port}))


def test_host_may_be_a_name_and_must_be_one_of_this_machine() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    check(Settings(host="localhost", port=port))
    with pytest.raises(SettingError, match=r"cannot listen on no\.such\.host\.invalid"):
        check(Settings(host="no.such.host.invalid", port=port))


def test_doors_with_one_port_are_refused() -> None:
    with pytest.raises(SettingError, match="two doors need two ports"):
        check(Settings(port=47_011, wyoming_port=47_011))


def test_folder_for_captures_is_made(tmp_path: Path) -> None:
    check(Settings(port=0, capture=tmp_path / "far" / "away"))
    assert (tmp_path / "far" / "away").is_dir()


def test_default_that_is_shown_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "service.cli", "serve", "--settings"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
    shown = next(line for line in lines if line.startswith("DELTASPOT_METHODS")).rpartition(" [[")[2].removesuffix("]")
    monkeypatch.setenv("DELTASPOT_METHODS", "[" + shown)
    assert list(read_settings({}).methods) == json.loads("[" + shown)
