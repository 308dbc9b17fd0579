"""LlamaIndex: vectors with the right prompts, in few calls, and arguments that survive."""

from __future__ import annotations

import asyncio
import pickle
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from e5onnx import Encoder, InputValueError
from integrations.passages import QUERY, SHORT, TEXTS

pytest.importorskip("llama_index.core")
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.ingestion import IngestionPipeline
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.storage.kvstore import SimpleKVStore
from pydantic import ValidationError

from e5onnx.integrations.encoders import all_arguments
from e5onnx.integrations.llama_index import E5OnnxEmbedding


def test_queries_and_texts_get_their_prompts(
    e5_model: Path, query_vector: NDArray[np.float32], document_vectors: NDArray[np.float32]
) -> None:
    embedding = E5OnnxEmbedding(model_name=str(e5_model))
    np.testing.assert_array_equal(embedding.get_query_embedding(QUERY), query_vector)
    np.testing.assert_allclose(embedding.get_text_embedding(QUERY), document_vectors[2], rtol=0, atol=1e-6)
    np.testing.assert_array_equal(embedding.get_text_embedding_batch(TEXTS), document_vectors)
    np.testing.assert_array_equal(asyncio.run(embedding.aget_query_embedding(QUERY)), query_vector)
    np.testing.assert_array_equal(
        asyncio.run(embedding.aget_text_embedding(QUERY)), embedding.get_text_embedding(QUERY)
    )
    np.testing.assert_array_equal(asyncio.run(embedding.aget_text_embedding_batch(TEXTS)), document_vectors)
    assert embedding.get_text_embedding_batch([]) == []


def test_vectors_can_be_shorter(
    e5_model: Path, short_query_vector: NDArray[np.float32], short_document_vectors: NDArray[np.float32]
) -> None:
    embedding = E5OnnxEmbedding(model_name=str(e5_model), **SHORT)
    copy = E5OnnxEmbedding.from_dict(embedding.to_dict())
    np.testing.assert_array_equal(copy.get_query_embedding(QUERY), short_query_vector)
    np.testing.assert_array_equal(copy.get_text_embedding_batch(TEXTS), short_document_vectors)


@pytest.mark.parametrize("embed", ["get_text_embedding_batch", "aget_text_embedding_batch"])
def test_a_batch_is_one_call_of_the_encoder(tiny_model: Path, monkeypatch: pytest.MonkeyPatch, embed: str) -> None:
    embedding = E5OnnxEmbedding(model_name=str(tiny_model))
    calls: list[int] = []
    encode = Encoder.encode_document

    def counted(self: Encoder, texts: list[str]) -> NDArray[np.float32]:
        calls.append(len(texts))
        return encode(self, texts)

    monkeypatch.setattr(Encoder, "encode_document", counted)
    found = getattr(embedding, embed)(["a text"] * 2050)
    assert len(asyncio.run(found) if embed.startswith("a") else found) == 2050
    assert calls == [2048, 2]


def test_an_index_ranks_as_the_vectors_do(
    e5_model: Path, query_vector: NDArray[np.float32], document_vectors: NDArray[np.float32]
) -> None:
    documents = [Document(text=text) for text in TEXTS]
    index = VectorStoreIndex.from_documents(documents, embed_model=E5OnnxEmbedding(model_name=str(e5_model)))
    found = index.as_retriever(similarity_top_k=5).retrieve(QUERY)
    kept = [position for position, text in enumerate(TEXTS) if text]
    scores = (document_vectors @ query_vector)[kept]
    best = np.argsort(-scores, kind="stable")[:5]
    assert [node.text.strip() for node in found] == [TEXTS[kept[position]].strip() for position in best]


def test_a_pipeline_embeds_nodes(e5_model: Path) -> None:
    embedding = E5OnnxEmbedding(model_name=str(e5_model))
    nodes = IngestionPipeline(transformations=[SentenceSplitter(), embedding]).run(documents=[Document(text=TEXTS[0])])
    np.testing.assert_array_equal([nodes[0].embedding], embedding.get_text_embedding_batch([TEXTS[0]]))


def test_arguments_survive_serialisation(sample_model: Path) -> None:
    embedding = E5OnnxEmbedding(model_name=str(sample_model), precision="int8", threads=1)
    for copy in (
        E5OnnxEmbedding.from_dict(embedding.to_dict()),
        E5OnnxEmbedding.from_json(embedding.to_json()),
        pickle.loads(pickle.dumps(embedding)),
    ):
        assert copy.to_dict() == embedding.to_dict()
        assert copy._encoder is embedding._encoder
        assert copy._encoder.precision == "int8"
    old = {name: value for name, value in embedding.to_dict().items() if name not in SHORT}
    assert E5OnnxEmbedding.from_dict(old).to_dict() == embedding.to_dict()


def test_fields_have_the_encoders_defaults() -> None:
    fields = E5OnnxEmbedding.model_fields
    assert {name: fields[name].default for name in all_arguments()} == all_arguments()


def test_a_mistyped_argument_is_refused(sample_model: Path) -> None:
    with pytest.raises(ValidationError, match="truncate_dim"):
        E5OnnxEmbedding(model_name=str(sample_model), truncate_dim=True)
    with pytest.raises(ValidationError, match="precison"):
        E5OnnxEmbedding(model_name=str(sample_model), precison="int8")


def test_a_cache_by_text_is_refused_where_roles_differ(sample_model: Path, e5_model: Path) -> None:
    with pytest.raises(InputValueError, match="embeddings_cache holds one vector per text"):
        E5OnnxEmbedding(model_name=str(e5_model), embeddings_cache=SimpleKVStore())
    cached = E5OnnxEmbedding(model_name=str(sample_model), embeddings_cache=SimpleKVStore())
    assert cached.get_query_embedding(QUERY) == cached.get_text_embedding(QUERY)
