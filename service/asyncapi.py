"""The AsyncAPI 3 document of `/v1/stream`, made from the message classes. Knows nothing that they do not say."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, get_args

from service.protocol import PROTOCOL, ClientMessage, CloseCode, ServerMessage


@lru_cache
def document() -> dict[str, Any]:
    """-> a document of plain types, ready for JSON."""
    client, server = get_args(ClientMessage), get_args(ServerMessage)
    schemas: dict[str, Any] = {}
    for model in dict.fromkeys((*client, *server)):
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schemas[model.__name__] = schema
    messages = {model.__name__: _message(model) for model in dict.fromkeys((*client, *server))}
    messages["Audio"] = {
        "name": "audio",
        "summary": "Samples as `configure` describes them, in binary frames of any length.",
        "contentType": "application/octet-stream",
        "payload": {"type": "string", "format": "binary"},
    }
    return {
        "asyncapi": "3.0.0",
        "info": {"title": "deltaspot", "version": str(PROTOCOL), "description": _about()},
        "channels": {
            "stream": {
                "address": "/v1/stream",
                "messages": {name: {"$ref": f"#/components/messages/{name}"} for name in messages},
                "bindings": {"ws": {"method": "GET"}},
            }
        },
        "operations": {
            "listen": _operation("receive", [*(model.__name__ for model in client), "Audio"]),
            "tell": _operation("send", [model.__name__ for model in server]),
        },
        "components": {"messages": messages, "schemas": schemas},
    }


def _message(model: Any) -> dict[str, Any]:  # noqa: ANN401 (a message class)
    return {
        "name": model.model_fields["type"].default,
        "summary": model.__doc__,
        "contentType": "application/json",
        "payload": {"$ref": f"#/components/schemas/{model.__name__}"},
    }


def _operation(action: str, names: list[str]) -> dict[str, Any]:
    messages = [{"$ref": f"#/channels/stream/messages/{name}"} for name in names]
    return {"action": action, "channel": {"$ref": "#/channels/stream"}, "messages": messages}


def _about() -> str:
    """Close codes have no place of their own in AsyncAPI."""
    rows = [f"| {int(code)} | `{code.wire}` | {code.description} |" for code in CloseCode]
    return "\n".join(["Close codes:", "", "| code | reason | meaning |", "|---|---|---|", *rows])
