"""The wire format: every message there and back, nothing unknown let in, every code documented."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import protocol
from service.asyncapi import document
from service.protocol import (
    BadMessage,
    Checkpoint,
    ClientMessage,
    Close,
    CloseCode,
    Closed,
    Configure,
    Detection,
    Enrolled,
    Failed,
    Feedback,
    Flush,
    Heartbeat,
    Keepalive,
    KeywordSettings,
    Limits,
    Marker,
    Ready,
    Reset,
    Resume,
    Scores,
    ServerMessage,
    TooLong,
    Totals,
    Warned,
    WarningCode,
    encode,
    parse_client,
    parse_server,
)

CLIENT, SERVER = get_args(ClientMessage), get_args(ServerMessage)
HERE = Checkpoint(sample=480, token="dG9rZW4=")
PARTS = {"checkpoint", "limits", "totals"}
"""Fields of a server's messages that are objects."""
WORK = {"macs_done": 5, "macs_skipped_vs_window": 0.9, "macs_skipped_vs_causal": -0.1}
EXAMPLES: list[Any] = [
    Configure(keywords={"yes": KeywordSettings(threshold=0.5, enabled=False)}, resume=Resume(token="x", sample=7)),
    Configure(enrolled=(Enrolled(name="hey", fingerprint="f", recordings=3, prototype=(0.5,), weights=(0.1, 0.2)),)),
    Marker(id=1),
    Marker(id="one"),
    Flush(),
    Reset(),
    Keepalive(),
    Feedback(detection=0, correct=True),
    Close(),
    Ready(
        session="s", model="m", fingerprint="f", labels=("yes",), keywords={"yes": KeywordSettings()}, point="dense",
        points=("dense",), hop_samples=480, replay_samples=9,
        limits=Limits(frame_bytes=1, stream_s=1.0, idle_s=1.0, speed=1.0),
    ),
    Detection(
        id=0, keyword="yes", score=0.9, start_s=0.1, end_s=0.2, at_s=0.3, latency_ms=1.5, checkpoint=HERE, clip="AAA="
    ),
    Scores(at_s=1.0, hop_s=0.03, posteriors=[[0.5, 0.5]], work=[0.1]),
    Heartbeat(at_s=1.0, lag_ms=0.0, real_time_factor=0.01, delta_scale=1.0, cache_bytes=9, checkpoint=HERE, **WORK),
    Warned(code=WarningCode.LAGGING, message="slow"),
    Failed(code=CloseCode.IDLE.wire, message="too quiet", field="x"),
    Closed(reason="normal", totals=Totals(audio_s=1.0, samples=9, chunks=1, tokens=3, detections=0, **WORK)),
]  # fmt: skip


def test_there_is_an_example_of_every_message() -> None:
    assert {type(example) for example in EXAMPLES} == {*CLIENT, *SERVER}


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_message_survives_the_wire(message: Any) -> None:
    text = message.model_dump_json(exclude_none=True)
    if isinstance(message, CLIENT):
        assert parse_client(text) == message
    if isinstance(message, SERVER):
        assert parse_server(text) == message


@pytest.mark.parametrize("message", EXAMPLES, ids=lambda m: type(m).__name__)
def test_unknown_field_is_refused_by_servers_and_ignored_by_clients(message: Any) -> None:
    plain = json.loads(message.model_dump_json(exclude_none=True))
    text = json.dumps({**plain, "colour": "red"})
    if isinstance(message, CLIENT):
        with pytest.raises(BadMessage, match="colour") as refused:
            parse_client(text)
        assert refused.value.field == "colour"
    if isinstance(message, SERVER):
        within = {name: part | {"colour": "red"} for name, part in plain.items() if name in PARTS}
        assert parse_server(json.dumps({**plain, **within, "colour": "red"})) == message


@pytest.mark.parametrize(
    ("text", "field"),
    [
        ('{"type":"configure","sample_rate":7}', "sample_rate"),
        ('{"type":"configure","sample_rate":16000.5}', "sample_rate"),
        ('{"type":"configure","sample_rate":"16000"}', "sample_rate"),
        ('{"type":"configure","encoding":"mp3"}', "encoding"),
        ('{"type":"configure","protocol":2}', "protocol"),
        ('{"type":"configure","coarsest":NaN}', "coarsest"),
        ('{"type":"configure","keywords":{"yes":{"threshold":1.5}}}', "keywords.yes.threshold"),
        ('{"type":"feedback","detection":-1,"correct":true}', "detection"),
        ('{"type":"marker","id":-1}', "id"),
        ('{"type":"marker","id":null}', "id"),
        (f'{{"type":"marker","id":"{"x" * 65}"}}', "id"),
        ('{"type":"nonsense"}', "type"),
        ('{"no":"type"}', "type"),
        ("[]", None),
        ("{", None),
        ("\ud800", None),
        ("[" * 10_000, None),
    ],
)
def test_bad_message_is_named(text: str, field: str | None) -> None:
    with pytest.raises(BadMessage) as refused:
        parse_client(text)
    assert refused.value.field == field
    assert text[:50] not in refused.value.message or len(text) < 3


def test_name_of_a_marker_that_is_too_long_is_told_what_it_may_be() -> None:
    with pytest.raises(BadMessage, match="at most 64 characters"):
        parse_client(f'{{"type":"marker","id":"{"x" * 65}"}}')


@pytest.mark.parametrize(
    ("numbers", "field"), [({"prototype": [0, 1e308]}, "prototype.1"), ({"weights": [-1e7]}, "weights.0")]
)
def test_keyword_with_numbers_beyond_all_reckoning_is_refused(numbers: dict[str, Any], field: str) -> None:
    keyword = {"name": "hey", "fingerprint": "f", "recordings": 3, "prototype": [], "weights": [], **numbers}
    with pytest.raises(BadMessage) as refused:
        parse_client(json.dumps({"type": "configure", "enrolled": [keyword]}))
    assert (refused.value.code, refused.value.field) == (CloseCode.BAD_MESSAGE, f"enrolled.0.{field}")


@given(st.text() | st.binary())
def test_no_text_breaks_the_parser(text: str | bytes) -> None:
    """It is named as no message, unless it is one: texts of ours are among those tried."""
    with suppress(BadMessage):
        assert parse_client(text).type == json.loads(text)["type"]


def test_endless_text_is_not_parsed() -> None:
    with pytest.raises(TooLong, match=str(protocol.MAX_TEXT_BYTES)):
        parse_client('{"type":"marker","id":"' + "x" * protocol.MAX_TEXT_BYTES)


def test_message_of_a_later_version_is_ignored_by_clients() -> None:
    assert parse_server('{"type":"horoscope","mood":"good"}') is None
    assert parse_server('{"type":"warning","code":"eclipse","message":"it is dark"}') is None


def test_clients_read_of_methods_that_they_do_not_know() -> None:
    ready = next(message for message in EXAMPLES if isinstance(message, Ready))
    later = ready.model_copy(update={"methods": {"dense": "dense", "dream": "dreamt"}})
    assert parse_server(encode(later)) == later


def test_codes_say_what_they_mean() -> None:
    assert len({code.description for code in CloseCode}) == len(CloseCode)
    assert len({code.description for code in WarningCode}) == len(WarningCode)
    assert all(1000 <= code < 5000 and code.wire.islower() for code in CloseCode)
    assert {code for code in CloseCode if code.retry} == {
        CloseCode.QUEUE_FULL, CloseCode.SHARE_SPENT, CloseCode.INTERNAL, CloseCode.CAPACITY, CloseCode.DRAINING,
    }  # fmt: skip


def test_asyncapi_names_every_message_code_and_field() -> None:
    made = document()
    assert made["asyncapi"].startswith("3.")
    for model in {*CLIENT, *SERVER}:
        schema = made["components"]["schemas"][model.__name__]
        assert schema["properties"].keys() == model.model_fields.keys()
        assert made["components"]["messages"][model.__name__]["summary"]
    assert all(f"| {int(code)} | `{code.wire}` |" in made["info"]["description"] for code in CloseCode)
    handshake = made["channels"]["stream"]["bindings"]["ws"]
    assert {*handshake["headers"]["properties"], *handshake["query"]["properties"]} == {"Authorization", "ticket"}
    assert made["servers"]["here"]["security"]
    references = set(_references(made))
    assert references
    for reference in references:
        node: Any = made
        for part in reference.removeprefix("#/").split("/"):
            node = node[part]


def test_asyncapi_lets_clients_read_on_where_a_later_server_says_more() -> None:
    schemas = document()["components"]["schemas"]
    strict = {name for name, schema in schemas.items() if schema.get("additionalProperties") is False}
    assert {kind.__name__ for kind in CLIENT} <= strict
    assert not {kind.__name__ for kind in set(SERVER) - set(CLIENT)} & strict


def test_asyncapi_says_that_a_message_has_a_type() -> None:
    made = document()["components"]
    names = [name for name, message in made["messages"].items() if message["contentType"] == "application/json"]
    assert len(names) == len({*CLIENT, *SERVER})
    assert all("type" in made["schemas"][name].get("required", []) for name in names)


def test_asyncapi_says_where_the_server_is() -> None:
    plain, secure = document("h:1")["servers"]["here"], document("h:2", secure=True)["servers"]["here"]
    assert (plain["protocol"], plain["host"]) == ("ws", "h:1")
    assert (secure["protocol"], secure["host"]) == ("wss", "h:2")


def _references(node: Any) -> Any:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from _references(value)
    elif isinstance(node, list):
        for value in node:
            yield from _references(value)


@pytest.mark.parametrize("code", WarningCode)
def test_every_warning_is_given_and_tested(code: WarningCode) -> None:
    here, name = Path(__file__).parent, f"WarningCode.{code.name}"
    assert any(name in path.read_text() for path in (here.parent / "service").rglob("*.py"))
    assert any(name in path.read_text() for path in here.rglob("test_*.py"))
