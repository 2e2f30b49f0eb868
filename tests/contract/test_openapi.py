"""REST keeps what its own OpenAPI document promises, whatever is sent."""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis.specs.openapi.checks import positive_data_acceptance

pytestmark = pytest.mark.system

OPERATIONS = [
    ("post", "/v1/detect"),
    ("post", "/v1/enroll"),
    ("get", "/v1/models"),
    ("get", "/v1/sessions"),
    ("post", "/v1/tickets"),
    ("get", "/healthz"),
    ("get", "/readyz"),
]
SLOW = ("post", "/v1/reload")  # seconds for each call; see tests/test_rest.py


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_answers_are_as_documented(running: Any, method: str, path: str) -> None:
    operation = schemathesis.openapi.from_url(f"{running.http}/openapi.json")[path][method]

    @settings(max_examples=15, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(case=operation.as_strategy())
    def answered(case: Any) -> None:
        case.call_and_validate(timeout=60, excluded_checks=[positive_data_acceptance])  # bytes are seldom a recording

    answered()


def test_every_path_is_documented_and_tried(running: Any) -> None:
    paths = running.app.openapi()["paths"]
    assert {(method, path) for path, methods in paths.items() for method in methods} == {*OPERATIONS, SLOW}
    assert all(operation["description"] for methods in paths.values() for operation in methods.values())


def test_keys_and_parameters_are_documented(running: Any) -> None:
    made = running.app.openapi()
    (scheme,) = made["components"]["securitySchemes"]
    for path, methods in made["paths"].items():
        for operation in methods.values():
            assert operation.get("security") == ([{scheme: []}, {}] if path.startswith("/v1/") else None)
            assert all(parameter["description"] for parameter in operation.get("parameters", ()))
    assert made["components"]["securitySchemes"][scheme]["scheme"] == "bearer"
