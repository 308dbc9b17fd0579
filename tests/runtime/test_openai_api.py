"""Requests and replies of the embeddings API as data: what is taken, what is refused, and in which words."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from e5onnx import Encoder, openai_api
from e5onnx.errors import RequestError
from e5onnx.openai_api import EmbeddingsRequest, Limits, parse_json, shortest_floats
from helpers import near

_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda values: st.lists(values, max_size=3) | st.dictionaries(st.text(), values, max_size=3),
    max_leaves=8,
)
_KEYS = st.sampled_from(openai_api._KEYS)


_NOT_DIMENSIONS: list[Any] = [0, -1, 385, 10**50, 1.5, float("inf"), True, "256", []]
"""Values of `dimensions` that a model of 384 refuses whatever it was trained for."""


@pytest.fixture(scope="module")
def encoder(e5_model: Path) -> Encoder:
    return Encoder(e5_model)


def read(**content: Any) -> EmbeddingsRequest:
    return EmbeddingsRequest.from_json(
        content, models=["e5", "also"], dimension=384, limits=Limits(texts=3, characters=100)
    )


@pytest.mark.parametrize(
    ("input_type", "role"),
    [
        (None, "document"),
        ("query", "query"),
        ("search_query", "query"),
        ("classification", "query"),
        ("clustering", "query"),
        ("document", "document"),
        ("search_document", "document"),
        ("raw", "raw"),
    ],
)
def test_input_types_are_roles(input_type: str | None, role: str) -> None:
    assert read(input="a text", input_type=input_type).role == role


def test_a_text_and_a_list_are_taken_with_openais_other_keys() -> None:
    assert read(input="a text").texts == ["a text"]
    request = read(input=["", "b"], model="e5", encoding_format="base64", dimensions=384, user="someone")
    assert (request.texts, request.base64, request.truncate) == (["", "b"], True, "warn")
    assert (request.dimensions, request.output_dtype) == (None, "float")
    assert [read(input="a", model=name).model for name in (None, "e5", "also")] == ["e5", "e5", "also"]


@pytest.mark.parametrize(
    ("content", "message", "param", "status"),
    [
        ([], "must be a JSON object.*got a list", None, 400),
        ({}, "'input' is missing", "input", 400),
        ({"input": 1}, "must be a text or a list of texts, got a number", "input", 400),
        ({"input": {}}, "got an object", "input", 400),
        ({"input": []}, "empty list", "input", 400),
        ({"input": [1, 2]}, "token ids.*send the texts.*check_embedding_ctx_length=False", "input", 400),
        ({"input": [[1, 2]]}, "token ids.*send the texts", "input", 400),
        ({"input": [1] * 3000}, "token ids.*send the texts", "input", 400),  # not 413, which means several requests
        ({"input": [["a"]]}, "expected a str at position 0, got list", "input", 400),
        ({"input": [True]}, "expected a str at position 0, got bool", "input", 400),
        ({"input": ["a", None]}, "expected a str at position 1, got NoneType", "input", 400),
        ({"input": ["a", "\ud800"]}, r"position 1 holds the lone surrogate U\+D800", "input", 400),
        ({"input": ["a"] * 4}, "has 4 texts, the limit is 3", "input", 413),
        ({"input": ["a", "b" * 101]}, "position 1 has 101 characters, the limit is 100", "input", 413),
        ({"input": "a", "model": "gpt"}, "there is no model 'gpt' here; this is 'e5' or 'also'", "model", 404),
        ({"input": "a", "model": 1}, "'model' must be a string", "model", 400),
        ({"input": "a", "dimensions": 256}, "not known .* for 256: .*--force-dimensions", "dimensions", 400),
        *(
            ({"input": "a", "dimensions": wrong}, "must be a whole number from 1 to 384, got ", "dimensions", 400)
            for wrong in _NOT_DIMENSIONS
        ),
        ({"input": "a", "output_dtype": "bits"}, "one of float, binary, ubinary, got 'bits'", "output_dtype", 400),
        ({"input": "a", "output_dtype": "int8"}, "needs ranges.*ask for float", "output_dtype", 400),
        ({"input": "a", "output_dtype": "uint8"}, "needs ranges.*quantize_embeddings", "output_dtype", 400),
        (
            {"input": "a", "output_dtype": "binary", "encoding_format": "base64"},
            '"encoding_format": "float"',
            "encoding_format",
            400,
        ),
        ({"input": "a", "encoding_format": "hex"}, "must be one of float, base64, got 'hex'", "encoding_format", 400),
        ({"input": "a", "input_type": ["query"]}, "'input_type' must be one of query, ", "input_type", 400),
        ({"input": "a", "truncate": True}, "'truncate' must be one of warn, error", "truncate", 400),
        ({"input": "a", "inputs": "a"}, "unknown key 'inputs'; known are input, ", "inputs", 400),
    ],
)
def test_what_is_wrong_is_named(content: Any, message: str, param: str | None, status: int) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        EmbeddingsRequest.from_json(
            content, models=["e5", "also"], dimension=384, limits=Limits(texts=3, characters=100)
        )
    assert caught.value.status == status
    error = caught.value.body()["error"]
    assert (error["message"], error["type"], error["param"]) == (str(caught.value), "invalid_request_error", param)


def test_limits_are_reached_before_they_are_exceeded() -> None:
    limits = Limits(texts=3, characters=100)
    content = {"input": ["é" * 100] * 3}
    request = EmbeddingsRequest.from_json(content, models=["e5", "also"], dimension=384, limits=limits)
    assert request.texts == content["input"]


@given(_JSON | st.dictionaries(_KEYS, _JSON | st.lists(st.text()), max_size=7))
def test_anything_else_is_read_or_refused(content: Any) -> None:
    try:
        request = EmbeddingsRequest.from_json(content, models=["e5", "also"], dimension=384)
    except RequestError:
        return
    assert request.texts
    assert all(isinstance(text, str) for text in request.texts)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "not valid JSON"),
        (b"{", "not valid JSON"),
        (b'{"input": NaN}', "NaN is not a JSON number"),
        (b'{"input": -Infinity}', "-Infinity is not a JSON number"),
        (b'{"input": "\xff"}', "not UTF-8"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"input": "a", "input": "b"}', "the key 'input' occurs twice"),
        (b'{"input": {"a": [{"b": 1, "c": 2, "b": 1}]}}', "the key 'b' occurs twice"),
        (b'{"input": "a", "\\u0069nput": "b"}', "the key 'input' occurs twice"),
        (b'\xef\xbb\xbf{"input": "a"}', "not valid JSON"),
        (b'{"input": "a"} {}', "not valid JSON"),
        (b'{"input": ' + b"1" * 101 + b"}", "a number has 101 digits"),
        (b'{"input": ' + b"1" * 5000 + b"}", "not valid JSON"),
    ],
)
def test_a_body_that_is_no_json_is_refused(body: bytes, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        parse_json(body)


def test_a_key_that_occurs_twice_is_found_without_comparing_all_with_all() -> None:
    compared = 0

    class Key(str):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return str.__eq__(self, other)

        __hash__ = str.__hash__

    names = [Key(f"{number:05}") for number in range(3000)]
    with pytest.raises(ValueError, match="the key '02999' occurs twice in an object"):
        openai_api._parse_object([(name, 1) for name in [*names, Key("02999")]])
    assert compared < 3000


@given(st.binary() | _JSON.map(lambda value: json.dumps(value).encode()))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    try:
        content = parse_json(body)
    except RequestError:
        return
    assert json.loads(body) == content


def test_the_reply_holds_the_encoders_vectors_as_floats_and_as_base64(encoder: Encoder) -> None:
    for form in ("float", "base64"):
        request = read(input=["one", "and two"], encoding_format=form, input_type="query")
        tokenized = request.tokenize(encoder)
        vectors = encoder.encode_tokenized(tokenized)
        reply = request.reply(vectors, tokenized, normalize=True, floats=shortest_floats)
        given_back = [item["embedding"] for item in json.loads(json.dumps(reply))["data"]]
        if form == "base64":
            given_back = [np.frombuffer(base64.b64decode(item), "<f4") for item in given_back]
        np.testing.assert_array_equal(np.array(given_back, np.float32), vectors)
        np.testing.assert_allclose(vectors, encoder.encode_query(["one", "and two"]), rtol=0, atol=1e-7)
        tokens = sum(encoder.count_tokens(["query: one", "query: and two"]))
        assert reply["usage"] == {"prompt_tokens": tokens, "total_tokens": tokens}
        assert [item["index"] for item in reply["data"]] == [0, 1]
        assert (reply["object"], reply["model"], reply["truncated"]) == ("list", "e5", 0)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("dimensions", [1, 100, 384, 100.0, None])
def test_shorter_vectors_are_those_of_sentence_transformers(dimensions: Any, normalize: bool) -> None:
    torch = pytest.importorskip("torch")
    util = pytest.importorskip("sentence_transformers.util")
    vectors = np.random.default_rng(1).standard_normal((4, 384)).astype(np.float32)
    vectors[2], vectors[3] = 0, 1e-30
    content = {"input": ["a"] * 4, "dimensions": dimensions}
    request = EmbeddingsRequest.from_json(content, models=["e5"], dimension=384, shorter_dimensions=range(1, 384))
    reply = request.reply(vectors, [], normalize=normalize, floats=shortest_floats)
    found = np.array([item["embedding"] for item in reply["data"]], np.float32)
    if dimensions in (None, 384):
        np.testing.assert_array_equal(found, vectors)
        return
    cut = util.truncate_embeddings(torch.from_numpy(vectors), int(dimensions))
    if normalize:  # PyTorch divides by 1e-12 at least, so it does not give tiny vectors unit length
        cut = torch.nn.functional.normalize(cut.double(), eps=1e-300)
    near(found, cut.numpy(), 1e-6)


@pytest.mark.parametrize("output_dtype", ["binary", "ubinary"])
@pytest.mark.parametrize("dimensions", [None, 64])
def test_bits_are_those_of_sentence_transformers(output_dtype: Any, dimensions: int | None) -> None:
    quantization = pytest.importorskip("sentence_transformers.quantization")
    vectors = np.random.default_rng(1).standard_normal((3, 384)).astype(np.float32)
    vectors[1] = 0
    content = {"input": ["a"] * 3, "dimensions": dimensions, "output_dtype": output_dtype}
    request = EmbeddingsRequest.from_json(content, models=["e5"], dimension=384, shorter_dimensions=range(1, 384))
    reply = json.loads(json.dumps(request.reply(vectors, [], normalize=True, floats=shortest_floats)))
    found = np.array([item["embedding"] for item in reply["data"]])
    np.testing.assert_array_equal(found, quantization.quantize_embeddings(vectors[:, :dimensions], output_dtype))


def test_bits_of_nine_components_fill_two_bytes_per_vector() -> None:
    vectors = np.array([[1, -1, 1, -1, -1, -1, -1, -1, 1], [-1, 1, 0, 0, 0, 0, 0, 1, -1]], np.float32)
    content = {"input": ["a", "b"], "output_dtype": "ubinary"}
    request = EmbeddingsRequest.from_json(content, models=["e5"], dimension=9)
    reply = request.reply(vectors, [], normalize=False, floats=shortest_floats)
    assert [item["embedding"] for item in reply["data"]] == [[0b10100000, 0b10000000], [0b01000001, 0]]


@pytest.mark.parametrize(("role", "prompt"), [("query", "query: "), ("document", "passage: "), ("raw", "")])
def test_each_role_has_its_prompt(encoder: Encoder, role: str, prompt: str) -> None:
    tokenized = read(input="one", input_type=role).tokenize(encoder)
    expected = encoder.encode([prompt + "one"], prompt="")
    np.testing.assert_allclose(encoder.encode_tokenized(tokenized), expected, rtol=0, atol=1e-7)


def test_long_texts_are_counted_or_refused(encoder: Encoder) -> None:
    content = {"input": ["short", "word " * 600]}
    request = EmbeddingsRequest.from_json(content, models=["e5", "also"], dimension=384)
    tokenized = request.tokenize(encoder)
    reply = request.reply(encoder.encode_tokenized(tokenized), tokenized, normalize=True, floats=shortest_floats)
    assert reply["truncated"] == 1
    assert reply["usage"]["total_tokens"] == 512 + encoder.count_tokens("passage: short")
    words = 512 - encoder.count_tokens("passage: ")
    exact = EmbeddingsRequest.from_json(
        {"input": "word " * words, "truncate": "error"}, models=["e5", "also"], dimension=384
    )
    assert [text.tokens for text in exact.tokenize(encoder)] == [512]
    one_more = EmbeddingsRequest.from_json(
        {"input": "word " * (words + 1), "truncate": "error"}, models=["e5", "also"], dimension=384
    )
    with pytest.raises(RequestError, match="position 0 has 513 tokens"):
        one_more.tokenize(encoder)
    refusing = EmbeddingsRequest.from_json({**content, "truncate": "error"}, models=["e5", "also"], dimension=384)
    with pytest.raises(RequestError, match=r"position 1 has 60\d tokens, the model's maximum is 512") as caught:
        refusing.tokenize(encoder)
    assert caught.value.code == "context_length_exceeded"
