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
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e5onnx import Encoder, ModelFolderError
from e5onnx.errors import QueueFullError
from e5onnx.server import tokenization
from e5onnx.server.app import Service
from e5onnx.server.options import ServerOptions
from e5onnx.server.scheduler import Run
from e5onnx.server.tokenization import Tokenization


@pytest.fixture
def service(tiny_model: Path) -> Iterator[Service]:
    service = Service(Encoder(tiny_model, threads=1), ServerOptions(request_timeout=0.5, max_body=200_000))
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
    def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(service.encoder.tokenizer, "tokenize", fail)
    with caplog.at_level(logging.INFO, "e5onnx.server"):
        (reply,) = answers(service, (path, {"input": "a"} if path.startswith("/v1") else {"inputs": "a"}))
    assert reply.status_code == 500
    assert (
        reply.json()["error_type"] == "Backend" if path == "/embed" else reply.json()["error"]["type"] == "server_error"
    )
    page = service.metrics.page().decode()
    assert f'e5onnx_requests_total{{path="{path}",status="500"}} 1.0' in page
    assert "e5onnx_requests_in_flight 0.0" in page
    messages: list[Any] = [record.msg for record in caplog.records]
    failed, request = messages
    assert (failed["event"], failed["error"]) == ("failure", type(error).__name__)
    assert (request["event"], request["status"], request["id"]) == ("request", 500, failed["id"])
    assert "secret" not in caplog.text
    assert "secret" not in reply.text


def test_what_fails_outside_all_routes_is_a_500_too(service: Service) -> None:
    async def fails(*_: Any) -> None:
        raise ValueError("secret")

    connections: Any = service.app()
    connections.app.app.app.app = fails

    async def get() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(connections), base_url="http://e5") as client:
            return await client.get("/health")

    reply = asyncio.run(get())
    assert (reply.status_code, reply.json()["error"]["type"]) == (500, "server_error")
    assert "secret" not in reply.text


def test_tokenising_counts_against_the_timeout(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "_PIECE_CHARACTERS", 1000)
    begun = []
    ended = threading.Event()
    tokenize = service.encoder.tokenizer.tokenize

    def slow(texts: Sequence[str], prompt: str, *, start: int) -> Any:
        begun.append(len(texts))
        ended.wait(1)
        return tokenize(texts, prompt, start=start)

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
        Service(encoder, ServerOptions())


def test_bodies_in_memory_are_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    large = ("/v1/embeddings", {"input": ["word " * 300] * 120})  # 180,000 bytes
    statuses = [reply.status_code for reply in answers(service, *[large] * 20)]
    assert 429 in statuses
    assert set(statuses) <= {200, 429, 503}
    for _ in range(3):  # they are forgotten with their replies
        assert answers(service, large)[0].status_code in (200, 503)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_worker_that_died_turns_health_red(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    async def get(path: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(service.app()), base_url="http://e5") as client:
            return await client.get(path)

    def fail(run: Run) -> None:
        raise ValueError("a defect")

    assert asyncio.run(get("/ping")).status_code == 200
    monkeypatch.setattr(service.metrics, "observe", fail)
    answers(service, ("/embed", {"inputs": "a"}))
    (worker,) = service.scheduler._threads
    worker.join(60)
    for path in ("/ping", "/health"):
        reply = asyncio.run(get(path))
        assert (reply.status_code, reply.json()) == (503, {"status": "failed"})


def test_runs_are_counted_with_their_padding(tiny_model: Path) -> None:
    service = Service(Encoder(tiny_model, threads=1), ServerOptions())
    assert answers(service, ("/embed", {"inputs": ["a", "a b c"]}))[0].status_code == 200  # 3 and 5 tokens
    service.close()
    page = service.metrics.page().decode()
    for line in (
        "texts_total 2",
        "tokens_total 8",
        "padding_tokens_total 2",
        "run_seconds_count 1",
        "batch_texts_sum 2",
    ):
        assert f"\ne5onnx_{line}.0\n" in page
    assert "\ne5onnx_batch_tokens_sum 8.0\n" in page
    assert "\ne5onnx_queue_seconds_count 1.0\n" in page


def test_vectors_have_the_length_that_was_asked_for(tiny_model: Path) -> None:
    encoder = Encoder(tiny_model, threads=1)
    assert not encoder.manifest.normalize
    service = Service(encoder, ServerOptions())
    texts = ["one", "a second text"]
    *embed, v1 = answers(
        service,
        *(("/embed", {"inputs": texts, "normalize": normalize}) for normalize in (None, True, False)),
        ("/v1/embeddings", {"input": texts}),  # as the checkpoint has them
    )
    vectors = [reply.json() for reply in embed] + [[item["embedding"] for item in v1.json()["data"]]]
    for found, normalized in zip(vectors, (True, True, False, False), strict=True):
        expected = encoder.encode(texts, normalize_embeddings=normalized)
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)
    service.close()


@pytest.mark.parametrize(
    ("path", "key"), [("/v1/embeddings", "input"), ("/embed", "inputs"), ("/tokenize", "inputs"), ("/", "inputs")]
)
def test_a_text_that_cannot_be_divided_is_refused(tiny_model: Path, path: str, key: str) -> None:
    service = Service(Encoder(tiny_model, threads=1), ServerOptions(max_characters=2**21))
    texts = ["word " * 12_000, "word " * 12_000, "a" * 1_200_000]
    (reply,) = answers(service, (path, {key: texts, "truncate": "warn" if path[1:2] == "v" else True}))
    if path == "/tokenize":
        assert reply.status_code == 422  # it has no "truncate"
        (reply,) = answers(service, (path, {key: texts}))
    assert reply.status_code == 413
    assert "1,200,0" in reply.text
    assert "characters, more than 1,048,576 of them in one stretch" in reply.text
    if path != "/tokenize":
        assert "the text at position 2 cannot be tokenised" in reply.text
    service.close()


@given(
    texts=st.lists(st.text(max_size=30), max_size=40),
    size=st.integers(1, 60),
    each=st.integers(0, 9),
)
def test_pieces_are_all_there_and_in_order(texts: list[str], size: int, each: int) -> None:
    checked: list[str] = []

    async def run(tokenize: Callable[[Sequence[str], int], list[str]]) -> list[str]:
        in_pieces = Tokenization()
        try:
            return await in_pieces.run(texts, tokenize, checked.extend)
        finally:
            in_pieces.close()

    calls: list[int] = []
    threads: set[threading.Thread] = set()

    def tokenize(piece: Sequence[str], start: int) -> list[str]:
        assert texts[start : start + len(piece)] == list(piece)
        calls.append(sum(len(text) + each for text in piece[:-1]))
        threads.add(threading.current_thread())
        return [text.upper() for text in piece]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tokenization, "_PIECE_CHARACTERS", size)
        patch.setattr(tokenization, "_TEXT_CHARACTERS", each)
        assert asyncio.run(run(tokenize)) == checked == [text.upper() for text in texts]
    assert all(cost < size for cost in calls)
    assert threading.current_thread() not in threads  # which has the event loop


def test_tokens_that_are_sent_are_bounded(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    def tokenized(*numbers: int) -> list[int]:
        requests = [("/tokenize", {"inputs": ["a " * 20] * number}) for number in numbers]
        return [reply.status_code for reply in answers(service, *requests)]

    (reply,) = answers(service, ("/tokenize", {"inputs": ["a " * 20] * 10}))
    size = len(reply.content)  # and a bracket or a comma beside every item
    monkeypatch.setattr("e5onnx.server.app._MOST_TOKEN_BYTES", size - 11)
    assert tokenized(10) == [200]
    assert tokenized(11) == [413]
    assert tokenized(10) == [200]
