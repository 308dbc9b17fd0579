"""Tokenisation: pieces, the threads they run on, and texts that cannot be divided."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from e5onnx import Encoder
from e5onnx.server import tokenization
from e5onnx.server.app import Service
from e5onnx.server.options import ServerOptions
from e5onnx.server.tokenization import Tokenization
from serving import answers


def test_tokenisation_counts_against_the_timeout(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tokenization, "_PIECE_CHARACTERS", 1000)
    monkeypatch.setattr(service, "options", ServerOptions(request_timeout=0.1))
    begun = []
    ended = threading.Event()
    tokenize = service.encoder.tokenizer.tokenize

    def slow(texts: Sequence[str], prompt: str, *, start: int) -> Any:
        begun.append(len(texts))
        ended.wait(60)
        return tokenize(texts, prompt, start=start)

    monkeypatch.setattr(service.encoder.tokenizer, "tokenize", slow)
    (reply,) = answers(service, ("/v1/embeddings", {"input": ["word " * 200] * 30}))
    ended.set()
    assert reply.status_code == 503
    assert reply.headers["retry-after"] == "1"
    assert len(begun) < 30  # the rest is not begun


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
