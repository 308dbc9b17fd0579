"""LanceDB: tables that are made and opened again, with the right prompts."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from e5onnx import Encoder, InputTypeError, ModelFolderError
from e5onnx.integrations import encoders
from e5onnx.integrations.encoders import all_arguments
from integrations.passages import QUERY, SHORT, TEXTS

lancedb = pytest.importorskip("lancedb")
from lancedb.embeddings import EmbeddingFunctionConfig, get_registry  # noqa: E402
from lancedb.pydantic import LanceModel, Vector  # noqa: E402
from pydantic import ValidationError  # noqa: E402

import e5onnx.integrations.lancedb  # noqa: E402, F401 - registers "e5onnx"


def make_table(folder: Path, function: Any) -> Any:
    class Passage(LanceModel):  # type: ignore[misc]
        id: int
        text: str = function.SourceField()
        vector: Vector(function.ndims()) = function.VectorField()  # type: ignore[valid-type]

    table = lancedb.connect(folder).create_table("texts", schema=Passage)
    table.add([{"id": position, "text": text} for position, text in enumerate(TEXTS[:10])])
    return table


def test_queries_and_documents_get_their_prompts(
    e5_model: Path, query_vector: NDArray[np.float32], document_vectors: NDArray[np.float32]
) -> None:
    function = get_registry().get("e5onnx").create(model=str(e5_model))
    np.testing.assert_array_equal(function.compute_query_embeddings(QUERY), [query_vector])
    np.testing.assert_array_equal(function.compute_source_embeddings(TEXTS), document_vectors)
    np.testing.assert_array_equal(function.compute_source_embeddings(np.array(TEXTS)), document_vectors)
    assert get_registry().get("e5onnx").create(model=str(e5_model))._encoder is function._encoder


def test_a_table_is_opened_again(
    e5_model: Path, tmp_path: Path, query_vector: NDArray[np.float32], document_vectors: NDArray[np.float32]
) -> None:
    make_table(tmp_path, get_registry().get("e5onnx").create(model=str(e5_model), threads=1))
    table = lancedb.connect(tmp_path).open_table("texts")
    assert table.embedding_functions["vector"].function.threads == 1
    table.add([{"id": position, "text": text} for position, text in enumerate(TEXTS[10:], 10)])
    rows = table.to_arrow().sort_by("id").to_pydict()
    np.testing.assert_allclose(rows["vector"], document_vectors, rtol=0, atol=1e-6)
    found = table.search(QUERY).distance_type("cosine").limit(5).to_list()
    scores = document_vectors @ query_vector
    best = np.argsort(-scores, kind="stable")[:5]
    assert [row["id"] for row in found] == best.tolist()
    np.testing.assert_allclose([row["_distance"] for row in found], 1 - scores[best], rtol=0, atol=1e-5)
    assert [row["id"] for row in table.search(QUERY).limit(5).to_list()] == best.tolist()  # l2 ranks the same


def test_vectors_can_be_shorter(
    e5_model: Path,
    tmp_path: Path,
    short_query_vector: NDArray[np.float32],
    short_document_vectors: NDArray[np.float32],
) -> None:
    make_table(tmp_path, get_registry().get("e5onnx").create(model=str(e5_model), **SHORT))
    table = lancedb.connect(tmp_path).open_table("texts")
    table.add([{"id": position, "text": text} for position, text in enumerate(TEXTS[10:], 10)])
    vectors = table.to_arrow().sort_by("id").to_pydict()["vector"]
    np.testing.assert_allclose(vectors, short_document_vectors, rtol=0, atol=1e-6)
    found = table.search(QUERY).distance_type("cosine").limit(5).to_list()
    scores = short_document_vectors @ short_query_vector
    best = np.argsort(-scores, kind="stable")[:5]
    assert [row["id"] for row in found] == best.tolist()
    np.testing.assert_allclose([row["_distance"] for row in found], 1 - scores[best], rtol=0, atol=1e-5)


def test_fields_have_the_encoders_defaults() -> None:
    fields = get_registry().get("e5onnx").model_fields
    assert {name: fields[name].default for name in all_arguments()} == all_arguments()


def test_a_table_notices_that_its_model_changed(
    model_that_changes: Path, sample_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_table(tmp_path / "data", get_registry().get("e5onnx").create(model=str(model_that_changes)))
    monkeypatch.setattr(encoders, "_encoders", {})  # as in another process
    model_that_changes.unlink()
    model_that_changes.symlink_to(sample_model)
    table = lancedb.connect(tmp_path / "data").open_table("texts")
    with pytest.raises(ModelFolderError, match="but the stored vectors have"):
        table.search(QUERY).to_list()
    with pytest.raises(ModelFolderError, match="but the stored vectors have"):
        table.add([{"id": 10, "text": "a text"}])


def test_a_row_without_a_text_is_left_to_lancedb(e5_model: Path, tmp_path: Path) -> None:
    import pyarrow as pa

    function = get_registry().get("e5onnx").create(model=str(e5_model))
    config = EmbeddingFunctionConfig(vector_column="vector", source_column="text", function=function)
    rows = pa.table({"text": pa.array(["a", None, "b"])})
    table = lancedb.connect(tmp_path).create_table("texts", rows, embedding_functions=[config], on_bad_vectors="drop")
    found = table.to_arrow().to_pydict()
    assert found["text"] == ["a", "b"]
    expected = Encoder(e5_model).encode_document(["a", "b"])
    np.testing.assert_allclose(found["vector"], expected, rtol=0, atol=1e-6)


def test_errors_are_not_tried_again(e5_model: Path) -> None:
    function = get_registry().get("e5onnx").create(model=str(e5_model))
    with pytest.raises(InputTypeError, match="at position 1, got int"):
        function.compute_source_embeddings_with_retry(["a text", 3])
    with pytest.raises(InputTypeError, match="at position 0, got int"):
        function.compute_query_embeddings_with_retry([3])
    with pytest.raises(ValidationError, match="precison"):
        get_registry().get("e5onnx").create(model=str(e5_model), precison="int8")
    with pytest.raises(ValidationError, match="truncate_dim"):
        get_registry().get("e5onnx").create(model=str(e5_model), truncate_dim=True)


def test_lancedbs_own_wrapper_takes_our_encoder(
    sample_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sentence_transformer(name: str, device: str, trust_remote_code: bool) -> Encoder:
        return Encoder(name)

    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=sentence_transformer))
    table = make_table(tmp_path, get_registry().get("sentence-transformers").create(name=str(sample_model)))
    expected = Encoder(sample_model).encode(TEXTS[:10])
    np.testing.assert_allclose(table.to_arrow().to_pydict()["vector"], expected, rtol=0, atol=1e-6)
    assert table.search(QUERY).limit(1).to_list()[0]["id"] == 2
