"""The OpenAPI document: it describes whatever the server answers, and promises nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import suppress
from typing import Any

import httpx
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

from e5onnx import Encoder, __version__
from e5onnx.errors import QueueFullError
from e5onnx.server import tei
from e5onnx.server.app import Service
from e5onnx.server.options import ServerOptions
from e5onnx.server.pages import PAGES, openapi
from e5onnx.tokenizer import Token
from serving import Server, answers

_CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]
_DOCUMENT = openapi(secured=False)
_SCHEMAS = _DOCUMENT["components"]["schemas"]
_OPERATIONS = [(method, path) for path, methods in _DOCUMENT["paths"].items() for method in methods]
_SENTENCES = {"source_sentence": "a", "sentences": ["b"]}
_REQUESTS: dict[str, tuple[str, dict[str, Any]]] = {
    "/v1/embeddings": ("EmbeddingsRequest", {"input": "a"}),
    "/embed": ("EmbedRequest", {"inputs": "a"}),
    "/similarity": ("SimilarityRequest", {"inputs": _SENTENCES}),
    "/tokenize": ("TokenizeRequest", {"inputs": "a"}),
    "/": ("EmbedRequest", {"inputs": "a"}),
}
"""Path -> the schema of its requests, and a request."""


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


def test_it_names_the_version_the_keys_and_every_route(service: Service) -> None:
    assert _DOCUMENT["info"]["version"] == __version__
    assert "security" not in _DOCUMENT
    assert openapi(secured=True)["security"] == [{"key": []}]
    routes = {(route.path.replace(":path", ""), *(route.methods or set()) - {"HEAD"}) for route in service.routes()}
    files = {(path, "GET") for path in (*PAGES, "/openapi.json")}
    assert {(path, method.upper()) for method, path in _OPERATIONS} == routes - files
    assert set(_SCHEMAS["Token"]["properties"]) == set(Token._fields)
    assert set(_SCHEMAS["TeiError"]["properties"]["error_type"]["enum"]) == {"Validation", *tei._ERROR_TYPES.values()}


@pytest.mark.parametrize("path", _REQUESTS)
def test_requests_may_have_the_keys_and_values_that_it_lists(service: Service, path: str) -> None:
    """Every value of an enumeration is accepted, and the message about an unknown key names the same keys."""
    schema, content = _REQUESTS[path]
    properties = _SCHEMAS[schema]["properties"]
    (reply,) = answers(service, (path, content | {"unknown": 1}))
    error = reply.json()["error"]
    message = error if isinstance(error, str) else error["message"]
    assert message == f"unknown key 'unknown'; known are {', '.join(properties)}"
    for name, described in properties.items():
        values = _SCHEMAS.get(described.get("$ref", "").rpartition("/")[2], described).get("enum", [])
        replies = answers(service, *((path, content | {name: value}) for value in values))
        assert all(reply.status_code == 200 for reply in replies)
        assert not values or answers(service, (path, content | {name: "other"}))[0].status_code in (400, 422)


@pytest.mark.parametrize("path", _REQUESTS)
def test_every_error_that_it_lists_can_happen(
    tiny_encoder: Encoder, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    service = Service(tiny_encoder, ServerOptions(api_keys=["key"], max_texts=1, body_timeout=0.1, request_timeout=0.1))
    _, content = _REQUESTS[path]
    (key,) = content
    json_type, bearer = {"content-type": "application/json"}, {"authorization": "Bearer key"}

    async def stalled() -> AsyncIterator[bytes]:
        yield b"{"
        await asyncio.sleep(60)

    async def fails(error: Exception | None) -> None:
        if error:
            raise error
        await asyncio.sleep(60)

    async def run() -> set[int]:
        transport = httpx.ASGITransport(service.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=bearer) as client:
            several = ["a", "b"] if path != "/similarity" else _SENTENCES | {"sentences": ["b", "c"]}
            replies = [
                await client.post(path, json=content, headers={"authorization": "none"}),
                await client.post(path, content=b"{", headers=json_type),
                await client.post(path, content=stalled(), headers=json_type),
                await client.post(path, content=b"{}"),
                await client.post(path, json=content | {"model": "other"}),
                await client.post(path, json={key: []}),
                await client.post(path, json={key: several}),
            ]
            for error in (QueueFullError(1, 1, 1), MemoryError(), None):
                monkeypatch.setattr(service._tokenization, "run", lambda *_, error=error: fails(error))
                replies.append(await client.post(path, json=content))
            return {reply.status_code for reply in replies}

    assert asyncio.run(run()) == {int(status) for status in _DOCUMENT["paths"][path]["post"]["responses"]} - {200}
    service.close()
