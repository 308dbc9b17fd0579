"""Which prompt a text gets, against sentence-transformers: where the two agree, and each case where they do not."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer

from e5onnx import Encoder, InputValueError
from e5onnx.manifest import MANIFEST
from e5onnx.model_folder import ModelFolder
from helpers import near

E5 = {"query": "query: ", "document": "passage: "}
"""A checkpoint's own prompts."""
SAME: list[tuple[dict[str, str], str | None, str, dict[str, str]]] = [
    # prompts, default, method, arguments
    ({}, None, "encode", {}),
    ({}, None, "encode_query", {}),
    ({}, None, "encode_document", {}),
    ({}, None, "encode", {"prompt_name": "query"}),
    ({}, None, "encode", {"prompt_name": "document"}),
    ({}, None, "encode", {"prompt": "a"}),
    ({"query": "", "document": ""}, None, "encode", {"prompt_name": "query"}),
    ({"query": "", "document": ""}, "document", "encode", {}),
    (E5, None, "encode", {}),
    (E5, "query", "encode", {}),
    (E5, "query", "encode", {"prompt": ""}),
    (E5, "query", "encode", {"prompt_name": "document"}),
    (E5, "document", "encode_query", {}),
    (E5, None, "encode_document", {}),
    (E5, None, "encode_query", {"prompt": "a"}),
    (E5, None, "encode_query", {"prompt_name": "document"}),
    ({"query": "a"}, None, "encode_query", {}),
    ({"query": "a", "other": "o "}, "other", "encode_document", {}),
    ({"other": "o "}, "other", "encode_query", {}),
    ({"other": "o "}, "other", "encode", {}),
    ({"other": "o "}, None, "encode", {"prompt_name": "other"}),
]
TEXTS = ["apple", "a", "", "note: as given", "query:without a space"]
Load = Callable[[dict[str, str], str | None], tuple[Encoder, SentenceTransformer]]


@pytest.fixture
def load(tiny_model: Path, tiny_checkpoint: Path, tmp_path: Path) -> Load:
    """What loads the tiny model with given prompts, here and in sentence-transformers."""

    def load(prompts: dict[str, str], default: str | None) -> tuple[Encoder, SentenceTransformer]:
        folder = shutil.copytree(tiny_model, tmp_path / "model")
        manifest = replace(ModelFolder.open(folder).manifest, prompts=prompts, default_prompt_name=default)
        (folder / MANIFEST).write_text(manifest.to_json())
        peer = SentenceTransformer(
            str(tiny_checkpoint),
            prompts=dict(prompts),
            default_prompt_name=default,
            device="cpu",
            local_files_only=True,
        )
        return Encoder(folder), peer

    return load


def vectors(model: Any, method: str, texts: list[str], arguments: dict[str, str]) -> Any:
    return getattr(model, method)(texts, normalize_embeddings=True, **arguments)


@pytest.mark.filterwarnings("ignore::e5onnx.MissingPromptWarning")
@pytest.mark.parametrize(("prompts", "default", "method", "arguments"), SAME)
def test_prompts_are_those_of_sentence_transformers(
    load: Load, prompts: dict[str, str], default: str | None, method: str, arguments: dict[str, str]
) -> None:
    encoder, peer = load(prompts, default)
    found, expected = (vectors(model, method, TEXTS, arguments) for model in (encoder, peer))
    near(found, expected)


def test_a_prompt_in_the_form_of_e5_is_not_repeated(load: Load) -> None:
    """Here sentence-transformers repeats it."""
    encoder, peer = load(E5, None)
    found = encoder.encode_query(["query: apple"])
    near(found, encoder.encode_query(["apple"]), 1e-6)
    repeated = vectors(peer, "encode_query", ["query: apple"], {})
    assert np.abs(encoder.encode(["query: query: apple"], normalize_embeddings=True) - repeated).max() < 1e-5
    assert np.abs(vectors(encoder, "encode_query", ["query: apple"], {}) - repeated).max() > 1e-3


def test_documents_get_the_prompt_that_the_checkpoint_calls_passage(load: Load) -> None:
    """Here sentence-transformers takes its own empty prompt "document", and by name, too."""
    prompts = {"query": "query: ", "passage": "passage: "}
    encoder, peer = load(prompts, None)
    found = vectors(encoder, "encode_document", ["apple"], {})
    near(found, vectors(peer, "encode", ["passage: apple"], {}))
    bare = vectors(peer, "encode", ["apple"], {})
    np.testing.assert_array_equal(vectors(peer, "encode_document", ["apple"], {}), bare)
    np.testing.assert_array_equal(vectors(peer, "encode", ["apple"], {"prompt_name": "document"}), bare)
    with pytest.raises(InputValueError, match="no prompt named 'document'; it has 'query', 'passage'"):
        encoder.encode(["apple"], prompt_name="document")
