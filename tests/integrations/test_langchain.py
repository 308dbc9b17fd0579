"""LangChain: its own tests, and vectors with the right prompts."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from e5onnx import InputTypeError
from integrations.passages import QUERY, SHORT, TEXTS

pytest.importorskip("langchain_core")
unit_tests = pytest.importorskip("langchain_tests.unit_tests")
integration_tests = pytest.importorskip("langchain_tests.integration_tests")
from langchain_core.vectorstores import InMemoryVectorStore  # noqa: E402

from e5onnx.integrations.langchain import E5OnnxEmbeddings  # noqa: E402


class _Ours:
    """What LangChain's tests ask for."""

    @pytest.fixture(autouse=True)
    def _model(self, e5_model: Path) -> None:
        self.path = e5_model

    @property
    def embeddings_class(self) -> type[E5OnnxEmbeddings]:
        return E5OnnxEmbeddings

    @property
    def embedding_model_params(self) -> dict[str, Any]:
        return {"model": self.path}


class TestUnit(_Ours, unit_tests.EmbeddingsUnitTests):  # type: ignore[misc, name-defined]
    pass


class TestIntegration(_Ours, integration_tests.EmbeddingsIntegrationTests):  # type: ignore[misc, name-defined]
    pass


def test_queries_and_documents_get_their_prompts(
    e5_model: Path, query_vector: NDArray[np.float32], document_vectors: NDArray[np.float32]
) -> None:
    embeddings = E5OnnxEmbeddings(e5_model)
    np.testing.assert_array_equal(embeddings.embed_query(QUERY), query_vector)
    np.testing.assert_array_equal(embeddings.embed_documents(TEXTS), document_vectors)
    np.testing.assert_array_equal(asyncio.run(embeddings.aembed_query(QUERY)), query_vector)
    np.testing.assert_array_equal(asyncio.run(embeddings.aembed_documents(TEXTS)), document_vectors)
    assert embeddings.embed_documents([]) == []
    assert E5OnnxEmbeddings(e5_model).encoder is embeddings.encoder


def test_vectors_can_be_shorter(
    e5_model: Path, short_query_vector: NDArray[np.float32], short_document_vectors: NDArray[np.float32]
) -> None:
    embeddings = E5OnnxEmbeddings(e5_model, **SHORT)
    np.testing.assert_array_equal(embeddings.embed_query(QUERY), short_query_vector)
    np.testing.assert_array_equal(embeddings.embed_documents(TEXTS), short_document_vectors)


@pytest.mark.parametrize("argument", ["precison", "fingerprint"])
def test_an_unknown_argument_is_refused(e5_model: Path, argument: str) -> None:
    with pytest.raises(InputTypeError, match=f"no argument '{argument}'"):
        E5OnnxEmbeddings(e5_model, **{argument: "int8"})  # type: ignore[arg-type]


def test_a_query_is_one_text_and_documents_are_several(e5_model: Path) -> None:
    embeddings = E5OnnxEmbeddings(e5_model)
    with pytest.raises(InputTypeError, match="a query must be a str, got list"):
        embeddings.embed_query(["two", "queries"])  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match="documents must be a list of str"):
        embeddings.embed_documents("a text")  # type: ignore[arg-type]


def test_a_vector_store_ranks_as_the_vectors_do(
    e5_model: Path, query_vector: NDArray[np.float32], document_vectors: NDArray[np.float32]
) -> None:
    store = InMemoryVectorStore.from_texts(TEXTS, E5OnnxEmbeddings(e5_model))
    found = store.similarity_search_with_score(QUERY, k=5)
    scores = document_vectors @ query_vector
    best = np.argsort(-scores, kind="stable")[:5]
    assert [document.page_content for document, _ in found] == [TEXTS[position] for position in best]
    np.testing.assert_allclose([score for _, score in found], scores[best], rtol=0, atol=1e-6)
