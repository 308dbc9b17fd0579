"""What schemathesis makes of the OpenAPI document: whatever it sends, an answer that the document describes."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from e5onnx.server.pages import openapi
from serving import Server

_CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


_OPERATIONS = [(method, path) for path, methods in openapi(secured=False)["paths"].items() for method in methods]


@pytest.fixture(scope="session")
def api(server: Server) -> Any:
    return schemathesis.openapi.from_url(f"{server.url}/openapi.json")


@pytest.mark.parametrize(("method", "path"), _OPERATIONS)
@pytest.mark.parametrize("mode", list(schemathesis.GenerationMode))
def test_every_answer_is_described(api: Any, method: str, path: str, mode: schemathesis.GenerationMode) -> None:
    strategy = api[path][method].as_strategy(generation_mode=mode)

    @settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    @given(strategy)
    def call(case: Any) -> None:
        case.call_and_validate(checks=_CHECKS)

    with suppress(Unsatisfiable):  # an operation without parameters cannot be called wrongly
        call()
