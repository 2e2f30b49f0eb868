"""Log lines as a log collector would read them, and request ids over a real socket."""

import io
import logging
import socket
import threading
import warnings
from contextlib import contextmanager

import httpx
import pytest
import uvicorn
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect

from service import layers, logs


def test_a_line_is_an_object(lines):
    logs.log.info("session", session="s1", outcome="normal", audio_s=1.5)
    (line,) = lines()
    assert line.pop("time").endswith("Z")
    own = {"session": "s1", "outcome": "normal", "audio_s": 1.5}
    assert line == {"event": "session", "level": "info", "logger": "deltaspot", **own}


def test_lines_of_libraries_have_the_same_form(lines):
    logging.getLogger("uvicorn.error").warning("%s is odd", "this", extra={"port": 80})
    (line,) = lines()
    assert (line["event"], line["level"], line["logger"], line["port"]) == (
        "this is odd",
        "warning",
        "uvicorn.error",
        80,
    )


def test_lines_hold_no_colours_for_a_terminal(lines):
    logging.getLogger("uvicorn.error").info("started", extra={"color_message": "\x1b[36mstarted\x1b[0m"})
    (line,) = lines()
    assert "color_message" not in line


def test_warnings_are_lines(lines):
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.warn("this is old", DeprecationWarning, stacklevel=1)
    (line,) = lines()
    assert (line["level"], line["logger"]) == ("warning", "py.warnings")
    assert "this is old" in line["event"]


def test_less_severe_lines_are_not_written(lines):
    logs.log.debug("whisper")
    assert lines() == []


def test_audio_never_reaches_a_line(lines):
    logs.log.warning("odd chunk", payload=b"\x01secret", view=memoryview(b"abc"))
    (line,) = lines()
    assert (line["payload"], line["view"]) == ("<7 bytes>", "<3 bytes>")


@pytest.mark.usefixtures("lines")
def test_nothing_that_a_stranger_sent_reaches_a_terminal_as_it_is():
    stream = io.StringIO()
    logs.configure(pretty=True, stream=stream)
    logs.log.error("refused", field="\x1b]0;x\a\nforged", exc_info=ValueError("\x1b]0;y"))
    told = stream.getvalue()
    assert r"\x1b]0;x\x07\nforged" in told
    assert "\x1b]0" not in told
    assert "\nValueError: \\x1b]0;y" in told


def test_an_exception_is_told_with_its_traceback(lines):
    try:
        int("seven")
    except ValueError:
        logs.log.exception("step failed")
    assert "ValueError: invalid literal" in lines()[0]["exception"]


@pytest.mark.parametrize(
    ("brought", "kept"),
    [(b"abc-1.2_3", True), (b"", False), (b"a" * 65, False), (b'x"} injected', False), (b"caf\xe9", False)],
)
def test_request_id_is_kept_only_if_harmless(brought, kept):
    name = layers.request_id([(b"x-request-id", brought)])
    assert (name == brought.decode("latin-1")) is kept
    assert layers.ACCEPTABLE.fullmatch(name.encode())


@contextmanager
def served(app):
    """An application on a real socket; its address."""
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", log_config=None, ws="websockets-sansio")
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join(10)
        listener.close()


def test_request_ids_over_a_socket(lines):
    async def hello(_scope, _receive, send):
        logs.log.info("hello")
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body"})

    with served(layers.RequestIds(hello)) as address:
        mine = httpx.get(f"http://{address}/", headers={"X-Request-ID": "mine"})
        new = httpx.get(f"http://{address}/")
    said = [line["request_id"] for line in lines() if line["event"] == "hello"]
    assert mine.headers["x-request-id"] == "mine"
    assert said == ["mine", new.headers["x-request-id"]]


def test_a_refused_upgrade_is_named_and_no_error_in_the_log(lines):
    async def refuse(_scope, receive, send):
        await receive()
        await send({"type": "websocket.http.response.start", "status": 503, "headers": []})
        await send({"type": "websocket.http.response.body", "body": b"full"})

    with served(layers.RequestIds(refuse)) as address, pytest.raises(InvalidStatus) as refused:
        connect(f"ws://{address}/", additional_headers={"X-Request-ID": "mine"})
    assert refused.value.response.headers["X-Request-ID"] == "mine"
    assert not [line for line in lines() if line["level"] != "info" or "WebSocket" in line["event"]]


@pytest.mark.parametrize(
    ("module", "level", "message", "kept"),
    [
        ("websockets/server.py", logging.INFO, "connection open", False),
        ("uvicorn/protocols/websockets/websockets_sansio_impl.py", logging.INFO, '%s - "WebSocket %s" 403', False),
        ("websockets/server.py", logging.ERROR, "opening handshake failed", True),
        ("uvicorn/server.py", logging.INFO, "Started server process [%d]", True),
    ],
)
def test_no_line_for_every_connection(module, level, message, kept):
    record = logging.LogRecord("uvicorn.error", level, f"/site-packages/{module}", 1, message, (), None)
    assert logs.not_chatter(record) is kept
