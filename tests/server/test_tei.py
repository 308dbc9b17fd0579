"""The API of text-embeddings-inference, with its clients."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import Any

import numpy as np
import pytest
from huggingface_hub import InferenceClient

from e5onnx import Encoder
from helpers import near
from serving import Server
from texts import TEXTS


def test_curl_with_the_shapes_of_text_embeddings_inference(server: Server, encoder: Encoder) -> None:
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")

    def curl(path: str, content: Any) -> Any:
        command = ["curl", "--silent", "--fail-with-body", f"{server.url}{path}", "-d", json.dumps(content)]
        command += ["-H", "content-type: application/json"]
        return json.loads(subprocess.run(command, capture_output=True, check=True).stdout)

    near(curl("/embed", {"inputs": TEXTS[0]}), encoder.encode_document(TEXTS[:1]))
    near(curl("/embed", {"inputs": TEXTS, "prompt_name": "query", "truncate": True}), encoder.encode_query(TEXTS))
    pooled = encoder.encode_document(TEXTS[:2], output_value="pooled_embedding")
    np.testing.assert_allclose(curl("/embed", {"inputs": TEXTS[:2], "normalize": False}), pooled, rtol=1e-5, atol=1e-5)
    sentences = {"source_sentence": TEXTS[0], "sentences": TEXTS[1:4]}
    near(
        curl("/similarity", {"inputs": sentences}),
        encoder.similarity(encoder.encode_query(TEXTS[0]), encoder.encode_query(TEXTS[1:4]))[0],
    )
    tokens = curl("/tokenize", {"inputs": ["hello world"]})[0]
    assert [token["text"] for token in tokens] == ["[CLS]", "hello", "world", "[SEP]"]
    assert [token["special"] for token in tokens] == [True, False, False, True]


def test_hugging_faces_client_finds_its_paths(server: Server, encoder: Encoder) -> None:
    client = InferenceClient(server.url, timeout=60)
    near(client.feature_extraction("a passage"), encoder.encode_document(["a passage"]))
    first, *others = encoder.encode_query(["one", "two", "three"])
    near(client.sentence_similarity("one", ["two", "three"]), encoder.similarity(first, others)[0])
