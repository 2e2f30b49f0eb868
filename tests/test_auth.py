"""Nobody gets in who does not belong: keys, scopes, tickets, origins, limits, and the settings behind them."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus

from service.auth import Anyone, Caller, Guard, KeyFileError, Keys, Scope, hash_key, new_key
from service.commands.serve import app as serve_command
from service.errors import Forbidden, TooFast, Unauthorised
from service.protocol import Configure, Ready, parse_server
from service.settings import Settings

KEYS = {name: new_key() for name in ("all", "ears", "admin", "one", "slow")}
FILE = f"""
# everybody who may come in
all    {hash_key(KEYS["all"])}    stream,detect,admin
ears   {hash_key(KEYS["ears"])}   stream
admin  {hash_key(KEYS["admin"])}  admin
one    {hash_key(KEYS["one"])}    stream          sessions=1 speed=2
slow   {hash_key(KEYS["slow"])}   detect          requests=2/hour
"""


@pytest.fixture(scope="module")
def guarded(serving: Callable[..., Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    path = tmp_path_factory.mktemp("keys") / "keys"
    path.write_text(FILE)
    with serving(keys=path, origins=["https://app.example"]) as running:
        yield running


def bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {KEYS.get(name, name)}"}


async def refused(url: str, **more: Any) -> int:
    with pytest.raises(InvalidStatus) as refusal:
        await connect(url, **more)
    assert refusal.value.response.body
    return refusal.value.response.status_code


async def opens(url: str, **more: Any) -> bool:
    async with connect(url, **more) as socket:
        await socket.send(Configure().model_dump_json())
        return isinstance(parse_server(await socket.recv()), Ready)


@pytest.mark.parametrize(
    ("key", "method", "path", "status"),
    [
        (None, "GET", "/v1/models", 401),
        ("wrong", "GET", "/v1/models", 401),
        ("ears", "GET", "/v1/models", 403),
        ("all", "GET", "/v1/models", 200),
        ("all", "GET", "/v1/sessions", 200),
        ("ears", "GET", "/v1/sessions", 403),
        ("admin", "GET", "/v1/sessions", 200),
        ("admin", "POST", "/v1/tickets", 403),
        ("ears", "POST", "/v1/tickets", 200),
        ("ears", "POST", "/v1/detect", 403),
        ("ears", "POST", "/v1/enroll", 403),
        (None, "POST", "/v1/enroll", 401),
        ("ears", "POST", "/v1/reload", 403),
        (None, "GET", "/healthz", 200),
        (None, "GET", "/readyz?probe=1", 200),
        (None, "POST", "/v1/detect?x=1", 401),
    ],
)
async def test_rest_asks_for_the_right_key(guarded: Any, key: str | None, method: str, path: str, status: int) -> None:
    async with httpx.AsyncClient(base_url=guarded.http) as web:
        answer = await web.request(method, path, headers=bearer(key) if key else {})
    assert answer.status_code == status
    assert ("www-authenticate" in answer.headers) == (status == 401)


async def test_streams_ask_for_the_right_key(guarded: Any) -> None:
    assert await refused(guarded.stream) == 401
    assert await refused(guarded.stream, additional_headers=bearer("wrong")) == 401
    assert await refused(guarded.stream, additional_headers=bearer("admin")) == 403
    assert await opens(guarded.stream, additional_headers=bearer("ears"))


async def test_ticket_opens_a_stream_until_it_expires(guarded: Any) -> None:
    async with httpx.AsyncClient(base_url=guarded.http) as web:
        ticket = (await web.post("/v1/tickets", headers=bearer("ears"))).json()["ticket"]
    assert await opens(f"{guarded.stream}?ticket={ticket}")
    assert await refused(f"{guarded.stream}?ticket={ticket[:-4]}AAAA") == 401
    old = Guard(guarded.server.guard._callers, Settings(ticket_secret="x" * 40))
    old._ticket_s = -1
    expired = old.ticket(guarded.server.guard._callers.find(KEYS["ears"]))
    with pytest.raises(Unauthorised):
        old.upgrade({}, expired)
    assert await refused(f"{guarded.stream}?ticket={expired}") == 401


async def test_ticket_of_a_withdrawn_key_is_worthless() -> None:
    guard = Guard(Keys([]), Settings())
    with pytest.raises(Unauthorised, match="withdrawn"):
        guard.upgrade({}, guard.ticket(Caller("gone", "0" * 64, frozenset(Scope))))


def test_keys_of_one_name_have_tickets_and_limits_of_their_own(tmp_path: Path) -> None:
    path = tmp_path / "keys"
    lines = (
        f"x {hash_key(key)} stream requests=2/hour {more}" for key, more in (("small", "sessions=1"), ("large", ""))
    )
    path.write_text("\n".join(lines))
    guard = Guard(Keys.load(path), Settings())
    small, large = ({"authorization": f"Bearer {key}"} for key in ("small", "large"))
    ticket = guard.ticket(guard.request(Scope.STREAM, small))
    assert guard.upgrade({}, ticket).sessions == 1
    with pytest.raises(TooFast):
        guard.request(Scope.STREAM, small)
    assert guard.request(Scope.STREAM, large).sessions is None


def test_all_rates_of_a_key_hold(tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(f"x {hash_key('x')} stream requests=5/hour;2/day")
    guard, key = Guard(Keys.load(tmp_path / "keys"), Settings()), {"authorization": "Bearer x"}
    for _ in range(2):
        guard.request(Scope.STREAM, key)
    with pytest.raises(TooFast, match="5/hour;2/day"):
        guard.request(Scope.STREAM, key)


async def test_pages_of_strangers_open_nothing(guarded: Any) -> None:
    key = bearer("ears")
    assert await refused(guarded.stream, origin="https://evil.example", additional_headers=key) == 403
    assert await refused(guarded.stream, origin="null", additional_headers=key) == 403
    assert await refused(guarded.stream, origin="http://[", additional_headers=key) == 403
    with pytest.raises(Forbidden, match=r"pages of https://x .* at host y; .* DELTASPOT_ORIGINS, .* hand on Host"):
        guarded.server.guard.upgrade({"origin": "https://x", "host": "y"}, None)
    assert await opens(guarded.stream, origin="https://app.example", additional_headers=key)
    assert await opens(guarded.stream, origin=guarded.http, additional_headers=key)


async def test_pages_of_strangers_reload_nothing_and_those_on_the_list_read_answers(guarded: Any, running: Any) -> None:
    listed, strange = {"Origin": "https://app.example"}, {"Origin": "https://evil.example"}
    async with httpx.AsyncClient() as web:
        assert (await web.post(f"{running.http}/v1/reload", headers=strange)).status_code == 403
        own = {"Origin": running.http}
        assert (await web.post(f"{running.http}/v1/detect", headers=own)).status_code == 415
        asked = {"Access-Control-Request-Method": "POST", "Access-Control-Request-Headers": "authorization"}
        for origin, codes, told in ((listed, [200, 200], listed["Origin"]), (strange, [400, 403], None)):
            preflight = await web.options(f"{guarded.http}/v1/enroll", headers=origin | asked)
            answer = await web.post(f"{guarded.http}/v1/tickets", headers=origin | bearer("ears"))
            assert [preflight.status_code, answer.status_code] == codes
            for one in (preflight, answer):
                assert one.headers.get("access-control-allow-origin") == told


def test_without_keys_a_page_at_a_name_is_a_stranger_s() -> None:
    guard = Guard(Anyone(), Settings(origins=["https://words.example"]))
    for host in ("127.0.0.1:8770", "[::1]:8770", "192.0.2.7", "localhost:8770", "words.example"):
        guard.upgrade({"origin": f"http://{host}", "host": host}, None)
        guard.request(Scope.ADMIN, {"host": host})
    for host in ("evil.example:8770", "127.0.0.1.evil.example", "localhost.evil.example"):
        with pytest.raises(Forbidden, match=r"without keys, .* and host .* is one; .* DELTASPOT_ORIGINS"):
            guard.upgrade({"origin": f"http://{host}", "host": host}, None)
        with pytest.raises(Forbidden):
            guard.request(Scope.ADMIN, {"host": host})
        guard.request(Scope.DETECT, {"host": host})
        guard.request(Scope.ADMIN, {"origin": "https://words.example", "host": host})


async def test_name_that_was_led_here_opens_nothing_without_keys(guarded: Any, running: Any) -> None:
    led = {"Host": "evil.example:8770"}
    page = led | {"Origin": "http://evil.example:8770"}
    async with httpx.AsyncClient() as web:
        for method, path, headers in (("GET", "sessions", led), ("POST", "reload", page), ("POST", "detect", page)):
            assert (await web.request(method, f"{running.http}/v1/{path}", headers=headers)).status_code == 403
        assert (await web.get(f"{guarded.http}/v1/sessions", headers=page | bearer("all"))).status_code == 200


async def test_pages_on_the_list_read_that_the_server_made_a_mistake(
    guarded: Any, monkeypatch: pytest.MonkeyPatch, lines: Callable[[], list[dict[str, Any]]]
) -> None:
    monkeypatch.setattr(guarded.server.guard, "ticket", lambda _caller: 1 / 0)
    async with httpx.AsyncClient(headers=bearer("ears") | {"Origin": "https://app.example"}) as web:
        answer = await web.post(f"{guarded.http}/v1/tickets")
    assert (answer.status_code, answer.json()["code"]) == (500, "internal")
    assert answer.headers["access-control-allow-origin"] == "https://app.example"
    (told,) = (line for line in lines() if line["event"] == "a request failed")
    assert told["request_id"] == answer.headers["x-request-id"]
    assert "ZeroDivisionError" in told["exception"]


async def test_key_has_limits_of_its_own(guarded: Any) -> None:
    key = bearer("one")
    async with connect(guarded.stream, additional_headers=key) as socket:
        await socket.send(Configure().model_dump_json())
        ready = parse_server(await socket.recv())
        assert isinstance(ready, Ready)
        assert ready.limits.speed == 2
        assert await refused(guarded.stream, additional_headers=key) == 429
    async with httpx.AsyncClient(base_url=guarded.http, headers=bearer("slow")) as web:
        assert [(await web.get("/v1/models")).status_code for _ in range(3)] == [200, 200, 429]


async def test_keys_are_read_again_and_streams_of_those_that_stay_still_count(
    serving: Callable[..., Any], tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    path.write_text(FILE)
    with serving(keys=path) as running:
        async with (
            httpx.AsyncClient(base_url=running.http, headers=bearer("admin")) as web,
            connect(running.stream, additional_headers=bearer("one")) as socket,
        ):
            await socket.send(Configure().model_dump_json())
            await socket.recv()
            more = f"new {hash_key('later')} stream\nears {hash_key('more')} detect\n"
            path.write_text(FILE.replace("all ", "#").replace("detect          requests", "stream   requests") + more)
            assert (await web.post("/v1/reload")).status_code == 204
            assert await opens(running.stream, additional_headers=bearer("later"))
            assert await refused(running.stream, additional_headers=bearer("all")) == 401
            assert await refused(running.stream, additional_headers=bearer("one")) == 429
            of_one_name = [(await web.get("/v1/models", headers=bearer(key))).status_code for key in ("ears", "more")]
            assert of_one_name == [403, 200]
            assert (await web.get("/v1/models", headers=bearer("slow"))).status_code == 403
            for torn in (b"torn", b"\xff"):
                path.write_bytes(torn)
                assert (await web.post("/v1/reload")).status_code == 422
            assert await opens(running.stream, additional_headers=bearer("later"))
        assert await opens(running.stream, additional_headers=bearer("one"))


async def test_log_names_keys_and_tells_of_everybody_turned_away(guarded: Any, lines: Callable[[], list[Any]]) -> None:
    async with connect(guarded.stream, additional_headers=bearer("ears")) as socket:
        await socket.send(Configure().model_dump_json())
        await socket.send('{"type":"close"}')
        async for _ in socket:
            pass
    async with httpx.AsyncClient(base_url=guarded.http, headers=bearer("all")) as web:
        raw = await web.post("/v1/detect?encoding=s16le", content=bytes(32_000))
        assert raw.status_code == 200
        assert (await web.get("/v1/models", headers=bearer("wrong"))).status_code == 401
    assert await refused(f"{guarded.stream}?ticket=x") == 401
    told = {(line["event"], line.get("caller"), line.get("path")) for line in lines()}
    assert {("session", "ears", "/v1/stream"), ("clip", "all", "/v1/detect")} <= told
    assert {("refused", None, "/v1/models"), ("refused", None, "/v1/stream")} <= told
    assert all(line["peer"] == "127.0.0.1" for line in lines() if line["event"] in {"refused", "session", "clip"})


async def test_proxy_that_is_trusted_says_who_is_behind_it(
    guarded: Any, serving: Callable[..., Any], tmp_path: Path, lines: Callable[[], list[Any]]
) -> None:
    (tmp_path / "keys").write_text(FILE)
    told = {"X-Forwarded-For": "192.0.2.7", "X-Forwarded-Proto": "https"}
    protocols = []
    with serving(keys=tmp_path / "keys", proxies=["192.0.2.0/24"]) as elsewhere:
        for running in (guarded, elsewhere):
            assert await refused(running.stream, additional_headers=told) == 401
            async with httpx.AsyncClient(base_url=running.http, headers=told) as web:
                assert (await web.get("/v1/models")).status_code == 401
                protocols.append((await web.get("/asyncapi.json")).json()["servers"]["here"]["protocol"])
    assert protocols == ["wss", "ws"]
    peers = [line["peer"] for line in lines() if line["event"] == "refused"]
    assert peers == ["192.0.2.7"] * 2 + ["127.0.0.1"] * 2


async def test_refusals_are_counted_by_reason(guarded: Any) -> None:
    value = guarded.server.metrics.registry.get_sample_value
    before = value("deltaspot_refusals_total", {"reason": "unauthorised"})
    await refused(guarded.stream)
    assert value("deltaspot_refusals_total", {"reason": "unauthorised"}) == before + 1


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("name", "a line is NAME SHA256 SCOPES"),
        ("name 12 stream", "no SHA-256"),
        (f"name {'0' * 64} stream,dance", "'dance' is no scope; there are stream, detect, admin"),
        (f"name {'0' * 64} stream colour=red", "unknown option colour; there are sessions, speed, requests"),
        (f"name {'0' * 64} stream sessions", "sessions cannot be used; sessions=10, or another whole number from 1 on"),
        (f"name {'0' * 64} stream sessions=many", "sessions=many cannot be used; sessions=10"),
        (f"name {'0' * 64} stream sessions=0", "sessions=0 cannot be used; sessions=10"),
        (f"name {'0' * 64} stream sessions=-1", "sessions=-1 cannot be used; sessions=10"),
        (f"name {'0' * 64} stream speed=fast", "speed=fast cannot be used; speed=2.5, or another number from 1 on"),
        (f"name {'0' * 64} stream speed=0", "speed=0 cannot be used; speed=2.5"),
        (f"name {'0' * 64} stream speed=-1", "speed=-1 cannot be used; speed=2.5"),
        (f"name {'0' * 64} stream speed=0.9", "speed=0.9 cannot be used; speed=2.5"),
        (f"name {'0' * 64} stream speed=nan", "speed=nan cannot be used; speed=2.5"),
        (f"name {'0' * 64} stream speed=inf", "speed=inf cannot be used; speed=2.5"),
        (f"name {'0' * 64} stream requests=often", "requests=often cannot be used; requests=60/minute can"),
        (f"name {'0' * 64} stream requests=0/minute", "requests=0/minute cannot be used; requests=60/minute can"),
        (f"name {'0' * 64} stream requests=9/minute;0/day", "requests=9/minute;0/day cannot be used"),
    ],
)
def test_bad_line_of_the_file_is_named(tmp_path: Path, line: str, told: str) -> None:
    path = tmp_path / "keys"
    path.write_text(f"# comment\n{line}\n")
    with pytest.raises(KeyFileError, match=f"line 2: .*{told}"):
        Keys.load(path)


def test_scopes_are_these() -> None:
    assert {scope.value for scope in Scope} == {"stream", "detect", "admin"}


def test_every_setting_is_documented() -> None:
    for name, field in Settings.model_fields.items():
        assert field.description, name
        assert field.description.endswith(".") or "{" in field.description, name


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_is_read_and_tested(name: str) -> None:
    here = Path(__file__).parent
    read = [path for path in (here.parent / "service").rglob("*.py") if f"settings.{name}" in path.read_text()]
    assert read
    named = re.compile(rf"(?<!\w)({name}=|\"{name}\"|DELTASPOT_{name.upper()}\b|--{name}\b)")
    assert any(named.search(path.read_text()) for path in here.rglob("test_*.py"))


def test_log_is_for_a_person_or_a_machine_as_the_operator_says(monkeypatch: pytest.MonkeyPatch) -> None:
    for log_format in ("json", "console"):
        monkeypatch.setenv("DELTASPOT_LOG_FORMAT", log_format)
        assert Settings().log_format == log_format
    with pytest.raises(ValueError, match="log_format"):
        Settings(log_format="xml")


def test_command_prints_every_setting() -> None:
    printed = CliRunner().invoke(serve_command, ["--settings"]).output
    assert [line.partition(":")[0] for line in printed.splitlines()] == [
        f"DELTASPOT_{name.upper()}" for name in Settings.model_fields
    ]


def test_settings_come_from_the_environment_and_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DELTASPOT_SESSIONS", "7")
    settings = Settings()
    assert settings.sessions == 7
    with pytest.raises(ValueError, match="frozen"):
        settings.sessions = 8
