"""The programs of examples/ run as they stand, and their results are right."""

from __future__ import annotations

import json
import re
import runpy
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from e5onnx import Encoder, Tokenizer, TruncationWarning
from helpers import near
from texts import TEXTS

EXAMPLES = Path(__file__).parents[1] / "examples"
Run = Callable[..., dict[str, Any]]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Run:
    """Run a program in an empty folder; it returns the program's names."""
    monkeypatch.chdir(tmp_path)

    def run(name: str, *arguments: object, as_main: bool = True) -> dict[str, Any]:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        return runpy.run_path(str(EXAMPLES / name), run_name="__main__" if as_main else "example")

    return run


@pytest.fixture(scope="module")
def encoder(sample_model: Path) -> Encoder:
    return Encoder(sample_model)


def test_every_program_is_listed_and_tested() -> None:
    programs = {path.name for path in [*EXAMPLES.glob("*.py"), *EXAMPLES.glob("node/*.js")]}
    listed = re.findall(r"^\| \[(?:node/)?(\S+)\]", (EXAMPLES / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == sorted(programs)
    source = Path(__file__).read_text(encoding="utf-8")
    assert [name for name in programs if f'{name}"' not in source] == []


def test_semantic_search_finds_what_sorting_everything_finds(run: Run, tiny_model: Path) -> None:
    names = run("semantic_search.py", tiny_model)
    passages = names["passages"]
    assert len(set(passages)) == len(passages) == 5000
    encoder = Encoder(tiny_model)
    vectors = encoder.encode_document(passages)
    near(names["vectors"], vectors)
    scores = vectors.astype(np.float64) @ encoder.encode_query("classical music in the capital of Japan")
    near(names["scores"][names["best"]], np.sort(scores)[::-1][:5])


def test_binary_search_ranks_the_nearest_by_bits_with_floats(run: Run, sample_model: Path) -> None:
    names = run("binary_search.py", sample_model)
    vectors, query, candidates = names["vectors"], names["query"], names["candidates"]
    different = ((vectors > 0) != (query > 0)).sum(axis=1)
    np.testing.assert_array_equal(names["different"], different)
    assert different[candidates].max() <= np.delete(different, candidates).min()
    expected = sorted(candidates, key=lambda index: -float(vectors[index] @ query))[:10]
    assert names["found"].tolist() == expected
    assert names["texts"][expected[0]] == "do people keep a wolf as a pet"
    assert names["recall"] >= 0.9


def test_windows_fit_and_overlap_by_half(run: Run, e5_model: Path) -> None:
    windows = run("long_text.py", as_main=False)["windows"]
    tokenizer, prompt = Tokenizer(e5_model), "passage: "
    words = [f"word{number}" for number in range(900)]
    parts = [part.split() for part in windows("\n".join(words), tokenizer, prompt)]
    starts = [words.index(part[0]) for part in parts]
    assert all(words[start : start + len(part)] == part for start, part in zip(starts, parts, strict=True))
    assert (starts[0], parts[-1][-1]) == (0, words[-1])
    sizes = tokenizer.count_tokens((" ".join(part) for part in parts), prompt=prompt)
    assert max(sizes) <= tokenizer.max_tokens == 512
    assert min(sizes[:-1]) > 500
    for start, part, following in zip(starts, parts, starts[1:], strict=False):
        overlap = tokenizer.count_tokens(" ".join(words[following : start + len(part)]), prompt="")
        assert 240 < overlap < 260


def test_long_texts_are_read_to_the_end(run: Run, sample_model: Path, encoder: Encoder) -> None:
    names = run("long_text.py", sample_model)
    parts = names["windows"](names["text"], encoder, "")
    assert len(parts) > 3
    mean = np.sum([encoder.encode(part).astype(np.float64) for part in parts], axis=0)
    near(names["vector"], mean / np.linalg.norm(mean))


def test_windows_of_odd_texts(run: Run, encoder: Encoder) -> None:
    names = run("long_text.py", as_main=False)
    windows, encode_long = names["windows"], names["encode_long"]
    assert windows("", encoder, "") == [""]
    assert windows(" one\ntwo ", encoder, "") == ["one two"]
    near(encode_long("one two", encoder), encoder.encode_document("one two"))
    exact = " ".join(["word"] * 254)  # and two special tokens
    assert windows(exact, encoder, "") == [exact]
    assert len(windows(exact + " more", encoder, "")) == 2
    giant = "-".join(["x"] * 400)
    parts = windows(f"{exact} {giant} end", encoder, "")
    assert giant in parts
    with pytest.warns(TruncationWarning):
        encode_long(f"{exact} {giant} end", encoder)


def test_a_pandas_column_is_filtered_and_ranked(run: Run, sample_model: Path, encoder: Encoder) -> None:
    pytest.importorskip("pandas")
    found = run("pandas_column.py", sample_model)["found"]
    expected = ["waterproof hiking boots", "trainers for running on roads", "woollen socks for cold days"]
    assert sorted(found["description"]) == sorted(expected)
    scores = encoder.similarity(encoder.encode_query("something for my feet"), encoder.encode_document(expected))[0]
    near(found["score"].to_numpy(), np.sort(scores)[::-1])


def test_topics_are_found_with_and_without_labels(run: Run, sample_model: Path, encoder: Encoder) -> None:
    pytest.importorskip("sklearn")
    names = run("scikit_learn_features.py", sample_model)
    lengths = np.linalg.norm(names["features"], axis=1, keepdims=True)
    assert np.abs(lengths - 1).min() > 0.01
    near(names["features"] / lengths, encoder.encode_query(names["texts"]))
    assert names["agreement"] > 0.7
    assert names["accuracy"] > 0.9


def test_duckdb_finds_what_exact_search_finds(run: Run, sample_model: Path, encoder: Encoder) -> None:
    pytest.importorskip("duckdb")
    names = run("duckdb_search.py", sample_model)
    check_books(names, encoder)


@pytest.mark.filterwarnings("ignore")  # of the packages that start the server
def test_pgvector_finds_what_exact_search_finds(
    run: Run, sample_model: Path, encoder: Encoder, tmp_path_factory: pytest.TempPathFactory
) -> None:
    psycopg = pytest.importorskip("psycopg")
    server = pytest.importorskip("pgserver").get_server(tmp_path_factory.mktemp("postgresql"), cleanup_mode="delete")
    try:
        for _ in range(2):  # again, with what it left
            check_books(run("pgvector_search.py", sample_model, server.get_uri()), encoder)
        with psycopg.connect(server.get_uri()) as database:
            (comment,) = database.execute("SELECT obj_description('e5onnx_books'::regclass)").fetchone()
        assert comment == encoder.fingerprint
    finally:
        server.cleanup()


def check_books(names: dict[str, Any], encoder: Encoder) -> None:
    books = [book for book in names["BOOKS"] if book[1] > 1850]
    query = encoder.encode_query("an adventure at sea")
    scores = encoder.similarity(query, encoder.encode_document([plot for _, _, plot in books]))[0]
    best = np.argsort(-scores)[:3]
    assert [title for title, _ in names["found"]] == [books[index][0] for index in best]
    near([score for _, score in names["found"]], scores[best])


@pytest.fixture
def service(sample_model: Path, tmp_path: Path) -> Iterator[str]:
    """The FastAPI program in a process of its own; its URL."""
    pytest.importorskip("fastapi")
    log = tmp_path / "log"
    with log.open("w") as file:
        command = [sys.executable, str(EXAMPLES / "fastapi_service.py"), str(sample_model), "0"]
        process = subprocess.Popen(command, stderr=file)
    try:
        while not (running := re.search(r"running on (http://\S+)", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.05)
        yield running[1]
    finally:
        process.kill()
        process.wait()


def test_fastapi_answers_many_at_once(service: str, encoder: Encoder, run: Run, sample_model: Path) -> None:
    passages = run("fastapi_service.py", sample_model, as_main=False)["PASSAGES"]
    questions = ["how much protein does a woman need", "what makes bread rise", "politicians at a meeting", ""] * 5
    with ThreadPoolExecutor(8) as pool:
        replies = list(
            pool.map(lambda question: httpx.post(f"{service}/search", json={"question": question}), questions)
        )
    vectors = encoder.encode_document(passages)
    for question, reply in zip(questions, replies, strict=True):
        scores = vectors @ encoder.encode_query(question)
        best = np.argsort(-scores)[:3]
        assert [hit["passage"] for hit in reply.json()] == [passages[index] for index in best]
        near([hit["score"] for hit in reply.json()], scores[best])
    refused = httpx.post(f"{service}/search", json={"question": "word " * 400})
    assert (refused.status_code, "has 402 tokens" in refused.json()["detail"]) == (422, True)
    assert httpx.post(f"{service}/search", json={"question": 1}).status_code == 422


LONG = "word " * 600


@pytest.fixture
def expected(e5_model: Path) -> Any:
    """The vectors of all texts as passages, one of which is cut."""
    with pytest.warns(TruncationWarning):
        return Encoder(e5_model).encode_document([*TEXTS, LONG])


def test_plain_onnxruntime_gives_the_same_vectors(
    run: Run, e5_model: Path, expected: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in sys.modules if name.split(".")[0] == "e5onnx"]:
        monkeypatch.setitem(sys.modules, name, None)  # it cannot be imported
    names = run("plain_onnxruntime.py", e5_model)
    near(names["embed"]([*TEXTS, LONG], "document"), expected)


def test_node_gives_the_same_vectors(e5_model: Path, expected: Any) -> None:
    if shutil.which("node") is None:
        pytest.skip("node is not installed")
    if not (EXAMPLES / "node/node_modules").is_dir():
        pytest.skip("onnxruntime-node is not installed (run `npm install --ignore-scripts` in examples/node)")
    command = ["node", str(EXAMPLES / "node/embed.js"), str(e5_model), *TEXTS, LONG]
    ended = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", check=False)
    assert ended.returncode == 0, ended.stderr
    assert ended.stderr.startswith("cut to 512 tokens: word word")
    near(json.loads(ended.stdout), expected)
