"""Errors: what a client is told, and what is logged."""

from __future__ import annotations

import logging
from typing import Any

import httpx
import pytest

from e5onnx import ModelFolderError
from e5onnx.errors import QueueFullError
from e5onnx.server.app import Service
from serving import answers


@pytest.mark.parametrize("error", [MemoryError("secret"), KeyError("secret"), ModelFolderError("cannot: 'secret'")])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed"])
def test_a_defect_is_a_500_that_is_counted_and_quotes_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, path: str
) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(service.encoder.tokenizer, "tokenize", fail)
    with caplog.at_level(logging.INFO, "e5onnx.server"):
        (reply,) = answers(service, (path, {"input": "a"} if path.startswith("/v1") else {"inputs": "a"}))
    assert reply.status_code == 500
    content = reply.json()
    assert content["error_type"] == "Backend" if path == "/embed" else content["error"]["type"] == "server_error"
    page = service.metrics.page().decode()
    assert f'e5onnx_requests_total{{path="{path}",status="500"}} 1.0' in page
    assert "e5onnx_requests_in_flight 0.0" in page
    messages: list[Any] = [record.msg for record in caplog.records]
    failed, request = messages
    assert (failed["event"], failed["error"]) == ("failure", type(error).__name__)
    assert (request["event"], request["status"], request["id"]) == ("request", 500, failed["id"])
    assert "secret" not in caplog.text
    assert "secret" not in reply.text


def test_what_fails_outside_all_routes_is_a_500_too(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def fails(*_: Any) -> None:
        raise ValueError("secret")

    monkeypatch.setattr("e5onnx.server.middleware.KeyMiddleware.__call__", fails)
    (reply,) = answers(service, ("/health", None))
    assert (reply.status_code, reply.json()["error"]["type"]) == (500, "server_error")
    assert "secret" not in reply.text


@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed", "/similarity"])
def test_a_full_queue_says_when_to_come_again(service: Service, monkeypatch: pytest.MonkeyPatch, path: str) -> None:
    async def full(*_: Any, **__: Any) -> None:
        raise QueueFullError(3, 4000, 7)

    monkeypatch.setattr(service.scheduler, "embed", full)
    sentences = {"source_sentence": "a", "sentences": ["b"]}
    contents = {"/v1/embeddings": {"input": "a"}, "/embed": {"inputs": "a"}, "/similarity": {"inputs": sentences}}
    (reply,) = answers(service, (path, contents[path]))
    assert (reply.status_code, reply.headers["retry-after"]) == (429, "7")
    assert "3 requests with 4,000 tokens are waiting already; try again in 7 s" in reply.text


@pytest.mark.parametrize("path", ["/v1/models/", "/"])
def test_a_long_path_is_not_sent_back(http: httpx.Client, path: str) -> None:
    reply = http.get(path + "a" * 60_000)
    assert (reply.status_code, len(reply.content) < 500) == (404, True)
