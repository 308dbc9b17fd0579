"""The application without a socket: what fails inside it, and long texts beside short ones."""

from __future__ import annotations

import asyncio
import logging
import shutil
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e5onnx import Encoder, ModelFolderError
from e5onnx.openai_api import Limits
from e5onnx.server import tokenizing
from e5onnx.server.app import Service, Settings
from e5onnx.server.tokenizing import Tokenizing
from e5onnx.server.turns import QueueFullError


@pytest.fixture
def service(tiny_model: Path) -> Iterator[Service]:
    service = Service(Encoder(tiny_model, threads=1), Settings(request_timeout=0.5, max_body=200_000, limits=Limits()))
    yield service
    service.close()


def answers(service: Service, *requests: tuple[str, Any]) -> list[httpx.Response]:
    """Send requests at the same time, without a socket."""

    async def run() -> list[httpx.Response]:
        transport = httpx.ASGITransport(service.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://e5") as client:
            return await asyncio.gather(*(client.post(path, json=content) for path, content in requests))

    return asyncio.run(run())


@pytest.mark.parametrize("error", [MemoryError("secret"), KeyError("secret"), ModelFolderError("cannot: 'secret'")])
@pytest.mark.parametrize("path", ["/v1/embeddings", "/embed"])
def test_a_defect_is_a_500_that_is_counted_and_quotes_nothing(
    service: Service, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, error: Exception, path: str
) -> None:
    def fail(*_: Any) -> None:
        raise error

    monkeypatch.setattr(service.encoder.tokenizer, "tokenize", fail)
    with caplog.at_level(logging.INFO, "e5onnx.server"):
        (reply,) = answers(service, (path, {"input": "a"} if path.startswith("/v1") else {"inputs": "a"}))
    assert reply.status_code == 500
    assert (
        reply.json()["error_type"] == "Backend" if path == "/embed" else reply.json()["error"]["type"] == "server_error"
    )
    assert f'e5onnx_requests_total{{path="{path}",status="500"}} 1.0' in service.metrics.page().decode()
    messages: list[Any] = [record.msg for record in caplog.records]
    failed, request = messages
    assert (failed["event"], failed["error"]) == ("failure", type(error).__name__)
    assert (request["event"], request["status"], request["id"]) == ("request", 500, failed["id"])
    assert "secret" not in caplog.text
    assert "secret" not in reply.text


def test_what_fails_outside_all_routes_is_a_500_too(service: Service) -> None:
    async def fails(*_: Any) -> None:
        raise ValueError("secret")

    front: Any = service.app()
    front._app._app = fails

    async def get() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(front), base_url="http://e5") as client:
            return await client.get("/health")

    reply = asyncio.run(get())
    assert (reply.status_code, reply.json()["error"]["type"]) == (500, "server_error")
    assert "secret" not in reply.text


def test_tokenising_counts_against_the_timeout(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenizing, "_PIECE_CHARACTERS", 1000)
    begun = []
    ended = threading.Event()
    tokenize = service.encoder.tokenizer.tokenize

    def slow(texts: Sequence[str], prompt: str) -> Any:
        begun.append(len(texts))
        ended.wait(1)
        return tokenize(texts, prompt)

    monkeypatch.setattr(service.encoder.tokenizer, "tokenize", slow)
    (reply,) = answers(service, ("/v1/embeddings", {"input": ["word " * 200] * 30}))
    ended.set()
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "1"
    assert len(begun) < 30  # the rest is not begun


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


def test_a_model_that_was_replaced_while_it_is_loaded_is_not_served(
    tiny_model: Path, sample_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    encoder = Encoder(folder, threads=2)
    shutil.rmtree(folder)
    shutil.copytree(sample_model, folder)
    with pytest.raises(ModelFolderError, match="model was replaced by another model while the server was loading it"):
        Service(encoder, Settings())


def test_bodies_in_memory_are_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    large = ("/v1/embeddings", {"input": ["word " * 300] * 120})  # 180,000 bytes
    statuses = [reply.status_code for reply in answers(service, *[large] * 20)]
    assert 429 in statuses
    assert set(statuses) <= {200, 429, 503}
    for _ in range(3):  # they are forgotten with their replies
        assert answers(service, large)[0].status_code in (200, 503)


@given(texts=st.lists(st.text(max_size=30), max_size=40), size=st.integers(1, 60), inline=st.integers(0, 60))
def test_pieces_are_all_there_and_in_order(texts: list[str], size: int, inline: int) -> None:
    async def run(tokenize: Callable[[Sequence[str]], list[str]]) -> list[str]:
        in_pieces = Tokenizing()
        try:
            return await in_pieces.run(texts, tokenize)
        finally:
            in_pieces.close()

    calls: list[int] = []

    def tokenize(piece: Sequence[str]) -> list[str]:
        calls.append(sum(map(len, piece[:-1])))
        return [text.upper() for text in piece]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenizing, "_PIECE_CHARACTERS", size)
        patch.setattr(tokenizing, "_INLINE_CHARACTERS", inline)
        assert asyncio.run(run(tokenize)) == [text.upper() for text in texts]
    if sum(map(len, texts)) > inline:
        assert all(characters < size for characters in calls)
