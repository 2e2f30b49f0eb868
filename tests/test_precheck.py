"""A server that cannot work does not start: one line says which setting is wrong, and what to do."""

from __future__ import annotations

import json
import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from models.checkpoint import CheckpointError
from service.cli import explain
from service.commands.serve import _allow_many_sockets, say_who_may_come_in
from service.precheck import SettingError, check, read_settings
from service.server import Server
from service.settings import Settings

ROOT = Path(__file__).resolve().parent.parent

ENVIRONMENT = {
    "DELTASPOT_PORT": ("abc", "DELTASPOT_PORT: Input should be a valid integer"),
    "DELTASPOT_LOG_FORMAT": ("plain", "'auto', 'json' or 'console'"),
    "DELTASPOT_ORIGINS": ("http://x", "DELTASPOT_ORIGINS must be JSON"),
    "DELTASPOT_PROXIES": ('["10.0.0.1/8"]', "DELTASPOT_PROXIES: value is not a valid IPv4 or IPv6 network"),
    "DELTASPOT_STREAM_S": ("inf", "DELTASPOT_STREAM_S: Input should be a finite number"),
    "DELTASPOT_METHODS": ('["foo"]', "DELTASPOT_METHODS: "),
    "DELTASPOT_MODEL": (__file__, "test_precheck.py"),
    "DELTASPOT_MODELS": ('{"more": "/nonexistent"}', "DELTASPOT_MODELS, 'more': "),
    "DELTASPOT_KEYWORDS": ("/proc/x", "DELTASPOT_KEYWORDS: /proc/x cannot be made: "),
    "DELTASPOT_CAPTURE": ("/proc/x", "DELTASPOT_CAPTURE: /proc/x cannot be made: "),
    "DELTASPOT_TLS_KEY": ("key.pem", "no use without DELTASPOT_TLS_CERT"),
    "DELTASPOT_TLS_CERT": ("/nonexistent.pem", "DELTASPOT_TLS_CERT: there is no file /nonexistent.pem"),
    "DELTASPOT_KEYS": ("/nonexistent.txt", "DELTASPOT_KEYS: /nonexistent.txt cannot be read: No such file"),
    "DELTASPOT_KYES": ("keys.txt", "DELTASPOT_KYES is no setting; DELTASPOT_KEYS is one"),
}


@pytest.mark.parametrize("name", ENVIRONMENT)
def test_wrong_setting_is_named_before_the_start(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value, told = ENVIRONMENT[name]
    monkeypatch.setenv("DELTASPOT_PORT", "0")
    monkeypatch.setenv(name, value)
    with pytest.raises((SettingError, CheckpointError)) as wrong:
        check(read_settings({}))
    assert told in str(explain(wrong.value))


def test_server_with_a_wrong_setting_says_so_in_one_line_and_does_not_start() -> None:
    command = [sys.executable, "-m", "service.cli", "serve"]
    environment = {**os.environ, "DELTASPOT_PORT": "0", "DELTASPOT_MODEL": str(Path(__file__))}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("deltaspot: ")
    assert done.stderr.count("\n") == 1
    assert Path(__file__).name in done.stderr


def test_every_variable_that_somebody_else_reads_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    files = [ROOT / name for name in listed.split("\0") if name and ROOT / name != Path(__file__)]
    text = "".join(path.read_bytes().decode(errors="ignore") for path in files if path.is_file())
    names = set(re.findall(r"\bDELTASPOT_[A-Z_]*[A-Z]\b", text))
    assert {"DELTASPOT_KEYS", "DELTASPOT_KEY", "DELTASPOT_REQUIRE_SHARED"} < names
    for name in names:
        monkeypatch.setenv(name, "")
    assert read_settings({}) == Settings()


def test_setting_that_is_like_no_other_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("deltaspot_x", "1")
    monkeypatch.setenv("DELTASPOT_SESSION", "1")
    with pytest.raises(SettingError, match="DELTASPOT_SESSION is no .*; deltaspot_x is no .*--settings"):
        read_settings({})


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"otlp_endpoint": "collector:4318"}, "DELTASPOT_OTLP_ENDPOINT: .* not 'collector:4318'"),
        ({"ticket_secret": "é" * 15}, "DELTASPOT_TICKET_SECRET needs 32 bytes"),
        ({"models": {"default": __file__}}, "DELTASPOT_MODELS: 'default' is the name of .* DELTASPOT_MODEL"),
        *(
            ({"origins": ["https://app.example.org", origin]}, f"DELTASPOT_ORIGINS: .* not '{re.escape(origin)}'")
            for origin in ("https://a/", "https://A", "https://*.a", "https://a:443", "*", "null", "a")
        ),
    ],
)
def test_setting_that_would_be_found_out_later_is_found_before_the_start(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(SettingError, match=told):
        check(Settings(port=0, **wrong))
    origins = ["https://app.example.org", "http://localhost:3000", "http://[::1]:443", "chrome-extension://abc"]
    check(Settings(port=0, otlp_endpoint="https://collector:4318/v1/traces", ticket_secret="x" * 32, origins=origins))


def test_line_of_keys_that_cannot_be_read_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("name\n")
    with pytest.raises(SettingError, match=r"DELTASPOT_KEYS: .*keys, line 1: a line is NAME SHA256 SCOPES"):
        check(Settings(port=0, keys=tmp_path / "keys"))


@pytest.mark.parametrize(
    ("host", "keys", "told"),
    [
        ("192.0.2.1", None, ("warning", "no keys: everybody who reaches this address")),
        ("deltaspot.example.org", None, ("warning", "no keys: everybody who reaches this address")),
        ("127.0.0.1", None, ("info", "no keys: everybody on this machine")),
        ("::1", None, ("info", "no keys: everybody on this machine")),
        ("192.0.2.1", "keys", ("info", "keys are asked for")),
    ],
)
def test_log_says_who_may_come_in(
    tmp_path: Path, lines: Callable[[], list[dict[str, Any]]], host: str, keys: str | None, told: tuple[str, str]
) -> None:
    (tmp_path / "keys").write_text(f"a {'0' * 64} stream\nb {'1' * 64} stream\n")
    say_who_may_come_in(Server(Settings(host=host, keys=tmp_path / keys if keys else None)))
    (line,) = lines()
    assert line["level"] == told[0]
    assert line["event"].startswith(told[1])
    assert line.get("keys") == (2 if keys else None)


@pytest.mark.parametrize(("most", "asked"), [(4_096, 4_096), (resource.RLIM_INFINITY, 10_240)])
def test_as_many_sockets_are_asked_for_as_the_system_gives(
    monkeypatch: pytest.MonkeyPatch, most: int, asked: int
) -> None:
    limits = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, most))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    _allow_many_sockets()
    assert limits == [(asked, most)]


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


@pytest.mark.parametrize("name", ["capture", "keywords"])
def test_folder_that_is_not_there_yet_is_made(tmp_path: Path, name: str) -> None:
    check(Settings(**{"port": 0, name: tmp_path / "far" / "away"}))
    assert (tmp_path / "far" / "away").is_dir()


def test_default_that_is_shown_can_be_given(monkeypatch: pytest.MonkeyPatch) -> None:
    command = [sys.executable, "-m", "service.cli", "serve", "--settings"]
    lines = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout.splitlines()
    shown = next(line for line in lines if line.startswith("DELTASPOT_METHODS")).rpartition(" [[")[2].removesuffix("]")
    monkeypatch.setenv("DELTASPOT_METHODS", "[" + shown)
    assert list(read_settings({}).methods) == json.loads("[" + shown)
