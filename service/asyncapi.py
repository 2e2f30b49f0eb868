"""The AsyncAPI 3 document of `/v1/stream`, made from the message classes. Knows nothing that they do not say."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, get_args

from service.protocol import PROTOCOL, ClientMessage, CloseCode, ServerMessage

if TYPE_CHECKING:
    from collections.abc import Iterable

SECURITY: Final = {
    "key": {"type": "http", "scheme": "bearer", "description": "An API key, of a server that has any."},
    "ticket": {"type": "httpApiKey", "in": "query", "name": "ticket", "description": "From `POST /v1/tickets`."},
}
HANDSHAKE: Final = {
    "method": "GET",
    "headers": {
        "type": "object",
        "properties": {"Authorization": {"type": "string", "description": "`Bearer KEY`, of a server that has keys"}},
    },
    "query": {
        "type": "object",
        "properties": {"ticket": {"type": "string", "description": "in the place of a key, for browsers"}},
    },
}
"""What the request for the upgrade may carry."""


def document(host: str = "127.0.0.1:8770", *, secure: bool = False) -> dict[str, Any]:
    """The address of a server -> its document, of plain types, ready for JSON."""
    security = [{"$ref": f"#/components/securitySchemes/{name}"} for name in SECURITY]
    here = {"host": host, "protocol": "wss" if secure else "ws", "security": security}
    return {**_of_every_server(), "servers": {"here": here}}


@lru_cache
def _of_every_server() -> dict[str, Any]:
    client, server = get_args(ClientMessage), get_args(ServerMessage)
    # a client reads on where a later server says more; the other way round, what is unknown is a mistake
    schemas = _schemas(server)
    for schema in schemas.values():
        schema.pop("additionalProperties", None)
    schemas |= _schemas(client)
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
                "bindings": {"ws": HANDSHAKE},
            }
        },
        "operations": {
            "listen": _operation("receive", [*(model.__name__ for model in client), "Audio"]),
            "tell": _operation("send", [model.__name__ for model in server]),
        },
        "components": {"messages": messages, "schemas": schemas, "securitySchemes": SECURITY},
    }


def _schemas(models: Iterable[Any]) -> dict[str, Any]:
    """Schemas of message classes, and of what these have in them, by name."""
    schemas: dict[str, Any] = {}
    for model in models:
        schema = model.model_json_schema(ref_template="#/components/schemas/{model}")
        schemas |= schema.pop("$defs", {})
        schema["required"] = ["type", *schema.get("required", ())]  # with a default in Python, and never left out
        schemas[model.__name__] = schema
    return schemas


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
