"""Haystack: embedders with the right prompts, in pipelines that are written to YAML and loaded."""

from __future__ import annotations

import asyncio
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from e5onnx import InputTypeError, InputValueError
from integrations.passages import QUERY, SHORT, TEXTS

pytest.importorskip("haystack")
from haystack import Document, Pipeline
from haystack.components.retrievers import InMemoryEmbeddingRetriever
from haystack.components.writers import DocumentWriter
from haystack.core.errors import DeserializationError
from haystack.document_stores.in_memory import InMemoryDocumentStore

from haystack_integrations.components.embedders.e5onnx import (
    E5OnnxDocumentEmbedder,
    E5OnnxTextEmbedder,
)


def documents() -> list[Document]:
    return [Document(id=str(position), content=text) for position, text in enumerate(TEXTS)]


def test_queries_and_documents_get_their_prompts(
    e5_model: Path, query_vector: NDArray[np.float32], document_vectors: NDArray[np.float32]
) -> None:
    text, document = E5OnnxTextEmbedder(e5_model), E5OnnxDocumentEmbedder(e5_model)
    given = documents()
    for found in (text.run(QUERY), asyncio.run(text.run_async(QUERY))):
        np.testing.assert_array_equal(found["embedding"], query_vector)
    for found in (document.run(given), asyncio.run(document.run_async(given))):
        assert [each.id for each in found["documents"]] == [each.id for each in given]
        np.testing.assert_array_equal([each.embedding for each in found["documents"]], document_vectors)
    assert all(each.embedding is None for each in given)
    assert document.run([]) == {"documents": []}
    assert text.warm_up() is document.warm_up()


def test_vectors_can_be_shorter(
    e5_model: Path, short_query_vector: NDArray[np.float32], short_document_vectors: NDArray[np.float32]
) -> None:
    pipeline = Pipeline()
    pipeline.add_component("query", E5OnnxTextEmbedder(e5_model, **SHORT))
    pipeline.add_component("documents", E5OnnxDocumentEmbedder(e5_model, **SHORT))
    found = Pipeline.loads(pipeline.dumps()).run({"query": {"text": QUERY}, "documents": {"documents": documents()}})
    np.testing.assert_array_equal(found["query"]["embedding"], short_query_vector)
    vectors = [each.embedding for each in found["documents"]["documents"]]
    np.testing.assert_array_equal(vectors, short_document_vectors)


def test_fields_of_the_metadata_come_first(e5_model: Path) -> None:
    embedder = E5OnnxDocumentEmbedder(e5_model, meta_fields_to_embed=["title", "year"], embedding_separator=" ")
    given = Document(content="46 grams.", meta={"title": "Protein", "year": None, "page": 3})
    (found,) = embedder.run([given])["documents"]
    expected = embedder.warm_up().encode("passage: Protein 46 grams.")
    np.testing.assert_array_equal(found.embedding, expected)


def test_what_has_no_text_is_refused(e5_model: Path) -> None:
    embedder = E5OnnxDocumentEmbedder(e5_model)
    with pytest.raises(InputValueError, match="the document picture has no text"):
        embedder.run([Document(content="a text"), Document(id="picture")])
    with pytest.raises(InputTypeError, match="expected a list of Documents, got str"):
        embedder.run("a text")
    with pytest.raises(InputTypeError, match="a query must be a str, got list"):
        E5OnnxTextEmbedder(e5_model).run(["a text"])


def test_a_pipeline_survives_yaml(
    e5_model: Path, query_vector: NDArray[np.float32], document_vectors: NDArray[np.float32]
) -> None:
    store = InMemoryDocumentStore(embedding_similarity_function="cosine")
    writing = Pipeline()
    writing.add_component("embedder", E5OnnxDocumentEmbedder(e5_model, meta_fields_to_embed=["title"]))
    writing.add_component("writer", DocumentWriter(store))
    writing.connect("embedder.documents", "writer.documents")
    loaded = Pipeline.loads(writing.dumps())
    assert loaded.to_dict() == writing.to_dict()
    writing.run({"embedder": {"documents": documents()}})

    asking = Pipeline()
    asking.add_component("embedder", E5OnnxTextEmbedder(e5_model))
    asking = Pipeline.loads(asking.dumps())
    asking.add_component("retriever", InMemoryEmbeddingRetriever(store, top_k=5))
    asking.connect("embedder.embedding", "retriever.query_embedding")
    scores = document_vectors @ query_vector
    best = [str(position) for position in np.argsort(-scores, kind="stable")[:5]]
    question = {"embedder": {"text": QUERY}}
    for found in (asking.run(question), asyncio.run(asking.run_async(question))):
        assert [each.id for each in found["retriever"]["documents"]] == best


def test_arguments_survive_serialisation(sample_model: Path) -> None:
    embedder = E5OnnxTextEmbedder(sample_model, precision="int8", threads=1)
    copy = E5OnnxTextEmbedder.from_dict(embedder.to_dict())
    assert copy.to_dict() == embedder.to_dict()
    assert copy.warm_up().precision == "int8"
    old = embedder.to_dict()
    for name in SHORT:
        del old["init_parameters"][name]
    assert E5OnnxTextEmbedder.from_dict(old).to_dict() == embedder.to_dict()
    assert embedder.to_dict()["type"] == "haystack_integrations.components.embedders.e5onnx.E5OnnxTextEmbedder"


@pytest.mark.parametrize("embedder", [E5OnnxTextEmbedder, E5OnnxDocumentEmbedder])
def test_an_unknown_argument_is_refused(sample_model: Path, embedder: type[E5OnnxTextEmbedder]) -> None:
    with pytest.raises(InputTypeError, match="no argument 'precison'"):
        embedder(sample_model, precison="int8")  # type: ignore[call-arg]
    pipeline = Pipeline()
    pipeline.add_component("embedder", embedder(sample_model))
    with pytest.raises(DeserializationError, match="no argument 'precison'"):
        Pipeline.loads(pipeline.dumps().replace("precision:", "precison:"))
