"""Chroma: collections that are made, closed and opened again, with the right prompts and the right space."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from e5onnx import Encoder, InputTypeError, InputValueError
from e5onnx.integrations import encoders
from integrations.passages import QUERY, SHORT, TEXTS

chromadb = pytest.importorskip("chromadb")
from chromadb.utils.embedding_functions import (  # noqa: E402
    SentenceTransformerEmbeddingFunction,
    config_to_embedding_function,
)

from e5onnx.integrations.chroma import E5OnnxEmbeddingFunction  # noqa: E402

IDS = [str(position) for position in range(len(TEXTS))]


def client(folder: Path) -> Any:
    """Open a database as another process would, without what Chroma has in memory."""
    from chromadb.api.client import SharedSystemClient

    SharedSystemClient.clear_system_cache()
    return chromadb.PersistentClient(str(folder))


def test_queries_and_documents_get_their_prompts(
    e5_model: Path, query_vector: NDArray[np.float32], document_vectors: NDArray[np.float32]
) -> None:
    function = E5OnnxEmbeddingFunction(e5_model)
    np.testing.assert_array_equal(function.embed_query([QUERY]), [query_vector])
    np.testing.assert_array_equal(function.embed_query(QUERY), [query_vector])
    np.testing.assert_array_equal(function(TEXTS), document_vectors)
    np.testing.assert_allclose(function(QUERY), document_vectors[2:3], rtol=0, atol=1e-6)
    assert not function.is_legacy()
    copy = config_to_embedding_function({"name": "e5onnx", "config": function.get_config()})
    assert copy.get_config() == function.get_config()
    assert copy._encoder is function._encoder


def test_a_collection_is_opened_again(
    e5_model: Path, tmp_path: Path, query_vector: NDArray[np.float32], document_vectors: NDArray[np.float32]
) -> None:
    made = client(tmp_path).create_collection("texts", embedding_function=E5OnnxEmbeddingFunction(e5_model))
    made.add(ids=IDS[:10], documents=TEXTS[:10])
    opened = client(tmp_path).get_collection("texts")
    opened.add(ids=IDS[10:], documents=TEXTS[10:])
    assert opened.configuration["hnsw"]["space"] == "cosine"
    stored = opened.get(include=["embeddings"])
    order = np.argsort([int(id) for id in stored["ids"]])
    np.testing.assert_allclose(stored["embeddings"][order], document_vectors, rtol=0, atol=1e-6)
    found = opened.query(query_texts=[QUERY], n_results=5)
    scores = document_vectors @ query_vector
    best = np.argsort(-scores, kind="stable")[:5]
    assert found["ids"][0] == [IDS[position] for position in best]
    np.testing.assert_allclose(found["distances"][0], 1 - scores[best], rtol=0, atol=1e-5)


def test_vectors_can_be_shorter(
    e5_model: Path,
    tmp_path: Path,
    short_query_vector: NDArray[np.float32],
    short_document_vectors: NDArray[np.float32],
) -> None:
    function = E5OnnxEmbeddingFunction(e5_model, **SHORT)
    made = client(tmp_path).create_collection("texts", embedding_function=function)
    made.add(ids=IDS, documents=TEXTS)
    opened = client(tmp_path).get_collection("texts")
    stored = opened.get(include=["embeddings"])
    order = np.argsort([int(id) for id in stored["ids"]])
    np.testing.assert_allclose(stored["embeddings"][order], short_document_vectors, rtol=0, atol=1e-6)
    found = opened.query(query_texts=[QUERY], n_results=5)
    scores = short_document_vectors @ short_query_vector
    best = np.argsort(-scores, kind="stable")[:5]
    assert found["ids"][0] == [IDS[position] for position in best]
    np.testing.assert_allclose(found["distances"][0], 1 - scores[best], rtol=0, atol=1e-5)
    with pytest.raises(InputValueError, match="make a new collection"):
        opened.modify(configuration={"embedding_function": E5OnnxEmbeddingFunction(e5_model)})


def test_a_collection_that_knows_fewer_arguments_is_opened(
    e5_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = E5OnnxEmbeddingFunction(e5_model)
    old = {name: value for name, value in function.get_config().items() if name not in SHORT}
    with monkeypatch.context() as patched:
        patched.setattr(E5OnnxEmbeddingFunction, "get_config", lambda self: old)
        client(tmp_path).create_collection("texts", embedding_function=function).add(ids=IDS, documents=TEXTS)
    opened = client(tmp_path).get_collection("texts")
    assert opened.configuration["embedding_function"].get_config() == function.get_config()
    assert opened.query(query_texts=[TEXTS[0]], n_results=1)["ids"] == [["0"]]


def test_an_unknown_argument_is_refused(e5_model: Path) -> None:
    with pytest.raises(InputTypeError, match="no argument 'precison'"):
        E5OnnxEmbeddingFunction(e5_model, precison="int8")  # type: ignore[call-arg]


def test_a_collection_notices_that_its_model_changed(
    model_that_changes: Path, sample_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    function = E5OnnxEmbeddingFunction(model_that_changes)
    made = client(tmp_path / "data").create_collection("texts", embedding_function=function)
    made.add(ids=IDS[:2], documents=TEXTS[:2])
    monkeypatch.setattr(encoders, "_encoders", {})  # as in another process
    model_that_changes.unlink()
    model_that_changes.symlink_to(sample_model)
    opened = client(tmp_path / "data").get_collection("texts")
    with pytest.raises(ValueError, match="but the stored vectors have"):
        opened.query(query_texts=[QUERY])


def test_a_collection_takes_other_arguments_but_not_another_model(
    e5_model: Path, sample_model: Path, tmp_path: Path
) -> None:
    collection = client(tmp_path).create_collection("texts", embedding_function=E5OnnxEmbeddingFunction(e5_model))
    other = E5OnnxEmbeddingFunction(e5_model, threads=1)
    collection.modify(configuration={"embedding_function": other})
    assert client(tmp_path).get_collection("texts").configuration["embedding_function"].get_config()["threads"] == 1
    with pytest.raises(InputValueError, match="make a new collection"):
        collection.modify(configuration={"embedding_function": E5OnnxEmbeddingFunction(sample_model)})


@pytest.mark.parametrize(
    ("normalize", "similarity", "spaces"),
    [(True, "cosine", ["cosine", "ip", "l2"]), (False, "cosine", ["cosine"]), (False, "dot", ["ip"])],
)
def test_the_space_is_that_of_the_model(
    sample_model: Path, normalize: bool, similarity: str, spaces: list[str]
) -> None:
    function = E5OnnxEmbeddingFunction(sample_model)
    function._encoder = SimpleNamespace(  # type: ignore[assignment]
        manifest=SimpleNamespace(normalize=normalize, similarity_fn_name=similarity)
    )
    assert function.supported_spaces() == spaces
    assert function.default_space() == spaces[0]


@pytest.mark.parametrize("arguments", [{"normalize_embeddings": True}, {}])  # by default it passes False
def test_chromas_own_wrapper_takes_our_encoder(
    sample_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: dict[str, bool]
) -> None:
    def sentence_transformer(model_name_or_path: str, device: str) -> Encoder:
        return Encoder(model_name_or_path)

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=sentence_transformer))
    function = SentenceTransformerEmbeddingFunction(str(sample_model), **arguments)
    collection = client(tmp_path).create_collection("texts", embedding_function=function)
    collection.add(ids=IDS, documents=TEXTS)
    expected = Encoder(sample_model).encode(TEXTS)  # the checkpoint normalises by itself
    stored = collection.get(include=["embeddings"])
    order = np.argsort([int(id) for id in stored["ids"]])
    np.testing.assert_allclose(stored["embeddings"][order], expected, rtol=0, atol=1e-6)
    assert collection.query(query_texts=[QUERY], n_results=1)["ids"] == [["2"]]
