"""The Encoder's promises: shapes, order, prompts, truncation, bad input. Parity with PyTorch is in tests/parity."""

from __future__ import annotations

import warnings
from collections import UserDict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e5onnx import (
    E5OnnxError,
    Encoder,
    InputTypeError,
    InputValueError,
    MissingPromptWarning,
    TextTooLongError,
    Tokenizer,
    TruncationWarning,
)
from texts import TEXTS


@pytest.fixture(scope="module")
def sample(sample_model: Path) -> Encoder:
    return Encoder(sample_model)


@pytest.fixture(scope="module")
def e5(e5_model: Path) -> Encoder:
    return Encoder(e5_model)


def test_a_str_gives_a_vector_and_a_list_a_matrix(sample: Encoder) -> None:
    vector, matrix = sample.encode("one text"), sample.encode(["one text"])
    assert vector.shape == (384,)
    assert matrix.shape == (1, 384)
    assert vector.dtype == matrix.dtype == np.float32
    np.testing.assert_array_equal(vector, matrix[0])


@pytest.mark.parametrize("nothing", [[], (), iter([]), np.array([], dtype=str)])
def test_no_texts_give_no_rows(sample: Encoder, nothing: Any) -> None:
    for encode in (sample.encode, sample.encode_query, sample.encode_document):
        embeddings = encode(nothing)
        assert embeddings.shape == (0, 384)
        assert embeddings.dtype == np.float32


def test_any_iterable_gives_the_same_rows(sample: Encoder) -> None:
    expected = sample.encode(TEXTS)
    for inputs in (tuple(TEXTS), iter(TEXTS), (text for text in TEXTS), np.array(TEXTS), dict.fromkeys(TEXTS).keys()):
        np.testing.assert_array_equal(sample.encode(inputs), expected)


def test_rows_are_in_input_order_and_do_not_depend_on_the_batch(
    sample: Encoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("e5onnx.encoder._WINDOW", 50)
    texts = [f"{text} {number}" for number in range(10) for text in TEXTS]
    together = sample.encode(texts)
    alone = np.stack([sample.encode(text) for text in texts])
    np.testing.assert_allclose(together, alone, atol=1e-6, rtol=0)
    np.testing.assert_allclose(sample.encode(texts, batch_size=3), alone, atol=1e-6, rtol=0)
    np.testing.assert_allclose(sample.encode(texts[::-1])[::-1], alone, atol=1e-6, rtol=0)


def test_threads_do_not_change_the_vectors(sample_model: Path, sample: Encoder) -> None:
    single = Encoder(sample_model, threads=1)
    assert single.threads == 1
    np.testing.assert_allclose(single.encode(TEXTS), sample.encode(TEXTS), atol=1e-6, rtol=0)


def test_a_generator_is_read_as_the_vectors_are_made(sample: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e5onnx.encoder._WINDOW", 8)
    read = 0
    read_at_run: list[int] = []
    run = sample._graph.run

    def texts() -> Iterator[str]:
        nonlocal read
        for read in range(1, 101):
            yield f"text {read}"

    def counting_run(*arguments: Any) -> Any:
        read_at_run.append(read)
        return run(*arguments)

    monkeypatch.setattr(sample._graph, "run", counting_run)
    embeddings = sample.encode(texts())
    assert embeddings.shape == (100, 384)
    assert read_at_run[0] == 8
    assert max(np.diff(read_at_run)) == 8
    np.testing.assert_allclose(embeddings[99], sample.encode("text 100"), atol=1e-6)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=80), max_size=12))
def test_any_unicode_text_gives_unit_vectors_independent_of_the_batch(sample: Encoder, texts: list[str]) -> None:
    together = sample.encode(texts)
    assert together.shape == (len(texts), 384)
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, atol=1e-5)
    for row, text in enumerate(texts):
        np.testing.assert_allclose(together[row], sample.encode(text), atol=1e-6, rtol=0)


@pytest.mark.parametrize("text", ["", " ", "\n\t ", "\0", "a\0b", "\u200b", "🙂" * 50, "\ufffd", "e\u0301"])
def test_odd_texts_are_texts(sample: Encoder, text: str) -> None:
    vector = sample.encode(text)
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_one_megabyte_of_text_is_cut_like_its_beginning(sample: Encoder) -> None:
    text = "all work and no play makes " * 40_000
    with pytest.warns(TruncationWarning):
        vector, beginning = sample.encode(text), sample.encode(text[:20_000])
    np.testing.assert_allclose(vector, beginning, atol=1e-6)


# Prompts


def test_roles_add_their_prompts(e5: Encoder) -> None:
    texts = ["a text", "another"]
    for encode, name, prompt in [
        (e5.encode_query, "query", "query: "),
        (e5.encode_document, "document", "passage: "),
    ]:
        expected = e5.encode([prompt + text for text in texts])
        np.testing.assert_array_equal(encode(texts), expected)
        np.testing.assert_array_equal(e5.encode(texts, prompt_name=name), expected)
        np.testing.assert_array_equal(e5.encode(texts, prompt=prompt), expected)
        np.testing.assert_array_equal(encode([prompt + text for text in texts]), expected)  # not twice
    assert np.abs(e5.encode_query(texts) - e5.encode_document(texts)).max() > 1e-3


def test_roles_are_the_same_without_prompts(sample: Encoder) -> None:
    np.testing.assert_array_equal(sample.encode_query(TEXTS), sample.encode(TEXTS))
    np.testing.assert_array_equal(sample.encode_document(TEXTS), sample.encode(TEXTS))


def test_encode_without_prompts_warns_once(e5_model: Path) -> None:
    encoder = Encoder(e5_model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode(["query: one", "passage: two"])
        encoder.encode("no prefix, on purpose", prompt="")
        encoder.encode_query("no prefix")
    with pytest.warns(MissingPromptWarning, match="'query: ' or 'passage: '") as caught:
        encoder.encode(["query: one", "two"])
    assert caught[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.encode("two")


def test_a_model_without_prompts_never_warns_of_them(sample: Encoder) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sample.encode("no prefix")


def test_an_unknown_prompt_name_lists_the_known_ones(e5: Encoder, sample: Encoder) -> None:
    with pytest.raises(InputValueError, match="no prompt named 'passage'; it has 'query', 'document'"):
        e5.encode("text", prompt_name="passage")
    with pytest.raises(InputValueError, match="it has none"):
        sample.encode("text", prompt_name="passage")


# Normalisation


def test_vectors_before_normalisation_need_their_name(sample: Encoder) -> None:
    pooled = sample.encode(TEXTS, output_value="pooled_embedding")
    lengths = np.linalg.norm(pooled, axis=1, keepdims=True)
    assert (np.abs(lengths - 1) > 0.1).all()
    np.testing.assert_allclose(pooled / lengths, sample.encode(TEXTS, normalize_embeddings=True), atol=1e-6)
    for normalize in (True, False):  # the checkpoint normalises by itself, as in sentence-transformers
        np.testing.assert_array_equal(sample.encode(TEXTS), sample.encode(TEXTS, normalize_embeddings=normalize))
    np.testing.assert_array_equal(next(sample.encode_stream(TEXTS, output_value="pooled_embedding")), pooled[0])
    with pytest.raises(InputValueError, match="before normalisation: leave out normalize_embeddings"):
        sample.encode(TEXTS, output_value="pooled_embedding", normalize_embeddings=True)


# Truncation


def test_cut_texts_are_counted_in_a_warning(sample: Encoder) -> None:
    texts = ["short", "word " * 300, "word " * 500, "word " * 254]  # 254 and two special tokens just fit
    with pytest.warns(TruncationWarning) as caught:
        embeddings = sample.encode(texts)
    assert len(caught) == 1
    assert caught[0].filename == __file__
    warning = caught[0].message
    assert isinstance(warning, TruncationWarning)
    assert (warning.truncated, warning.texts, warning.max_tokens) == (2, 4, 256)
    assert (warning.longest, warning.longest_position) == (502, 2)
    assert "2 of 4 texts" in str(warning)
    np.testing.assert_allclose(embeddings[1], embeddings[2], atol=1e-6)
    np.testing.assert_allclose(embeddings[3], embeddings[2], atol=1e-6)


def test_the_prompt_counts_towards_the_maximum(e5: Encoder) -> None:
    text = "word " * 510
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        e5.encode(text, prompt="", truncate="error")
    assert e5.count_tokens(text) == 512
    assert e5.count_tokens(text, prompt_name="query") == 514
    with pytest.raises(TextTooLongError, match=r"position 0 has 514 tokens, the model's maximum is 512"):
        e5.encode_query(text, truncate="error")


def test_truncate_error_names_the_position(sample: Encoder) -> None:
    with pytest.raises(TextTooLongError, match="position 2 has 302 tokens"):
        sample.encode(["short", "also short", "word " * 300], truncate="error")


def test_a_text_of_just_the_maximum_is_not_too_long(sample: Encoder) -> None:
    text = "word " * 254
    assert sample.count_tokens(text) == sample.max_tokens == 256
    np.testing.assert_array_equal(sample.encode(text, truncate="error"), sample.encode(text))
    with pytest.raises(TextTooLongError, match="position 0 has 257 tokens, the model's maximum is 256"):
        sample.encode(text + "word", truncate="error")


def test_the_position_of_the_longest_text_counts_from_the_first(tiny_model: Path) -> None:
    encoder = Encoder(tiny_model)
    texts = ["short"] * 2100
    texts[5], texts[2050] = "word " * 600, "word " * 700
    with pytest.warns(TruncationWarning) as caught:
        encoder.encode(texts)
    warning = caught[0].message
    assert isinstance(warning, TruncationWarning)
    assert (warning.truncated, warning.texts, warning.longest, warning.longest_position) == (2, 2100, 702, 2050)


def test_truncate_takes_only_its_words(sample: Encoder) -> None:
    with pytest.raises(InputValueError, match="'silently'"):
        sample.encode("text", truncate="silently")  # type: ignore[arg-type]


# Bad input


class _Frame:
    """Iterates over the names of its columns, as a data frame does."""

    ndim = 2

    def __iter__(self) -> Iterator[str]:
        return iter(["text", "title"])


@pytest.mark.parametrize(
    "inputs",
    [
        *(None, 3, 2.5, b"bytes", bytearray(b"bytes"), memoryview(b"bytes"), {"a": "b"}, UserDict(a="b"), {"a", "b"}),
        *(np.array("a"), np.array([["a"], ["b"]]), _Frame()),
    ],
)
def test_what_is_no_ordered_iterable_of_texts_is_refused(sample: Encoder, inputs: Any) -> None:
    for encode in (sample.encode, sample.encode_query, sample.encode_document, sample.count_tokens):
        with pytest.raises(InputTypeError, match=type(inputs).__name__) as error:
            encode(inputs)
        assert isinstance(error.value, TypeError)


@pytest.mark.parametrize("wrong", [None, 7, b"bytes", ["nested"], float("nan")])
@pytest.mark.parametrize("container", [list, tuple, iter])
def test_a_wrong_type_is_named_with_its_position(sample: Encoder, wrong: Any, container: Any) -> None:
    with pytest.raises(InputTypeError, match=f"expected a str at position 5, got {type(wrong).__name__}"):
        sample.encode(container(["text"] * 5 + [wrong] + ["text"]))


def test_a_list_is_checked_before_anything_runs(sample: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    def run(*_: Any) -> None:
        pytest.fail("the model ran before the list was checked")

    monkeypatch.setattr(sample._graph, "run", run)
    with pytest.raises(InputTypeError, match="position 2000"):
        sample.encode(["text"] * 2000 + [None])  # type: ignore[list-item]


def test_few_long_texts_of_a_generator_are_held_at_once(sample: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e5onnx.encoder._WINDOW_CHARACTERS", 25)
    windows: list[int] = []
    tokenize = sample.tokenizer.tokenize

    def noted(texts: list[str], *arguments: Any, **options: Any) -> Any:
        windows.append(len(texts))
        return tokenize(texts, *arguments, **options)

    monkeypatch.setattr(sample.tokenizer, "tokenize", noted)
    texts = ["1234567890", "a", "1234567890123456789012345", *["b"] * 30]
    vectors = sample.encode(text for text in texts)
    assert windows == [3, 26, 4]
    monkeypatch.undo()
    np.testing.assert_allclose(vectors, sample.encode(texts), atol=1e-6)


def test_a_position_in_a_generator_counts_from_its_beginning(sample: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("e5onnx.encoder._WINDOW", 4)
    with pytest.raises(InputTypeError, match="position 9, got NoneType"):
        sample.encode(text if number != 9 else None for number, text in enumerate(["text"] * 12))  # type: ignore[misc]


def test_a_lone_surrogate_is_named_with_its_position(sample: Encoder) -> None:
    with pytest.raises(InputValueError, match=r"position 1 holds the lone surrogate U\+D83D at character 3") as error:
        sample.encode(["fine", "bad\ud83d"])
    assert isinstance(error.value, ValueError)
    with pytest.raises(InputValueError, match="the prompt holds the lone surrogate"):
        sample.encode("fine", prompt="\udc00")


@pytest.mark.parametrize("batch_size", [0, -1, np.int64(0)])
def test_batch_size_is_a_positive_number(sample: Encoder, batch_size: Any) -> None:
    with pytest.raises(InputValueError, match="batch_size must be at least 1"):
        sample.encode("text", batch_size=batch_size)


@pytest.mark.parametrize("number", [1.5, "32", True, np.float64(2), np.array([1, 2])])
def test_numbers_are_whole(sample: Encoder, sample_model: Path, number: Any) -> None:
    with pytest.raises(InputTypeError, match="batch_size must be a whole number"):
        sample.encode("text", batch_size=number)
    with pytest.raises(InputTypeError, match="threads must be a whole number"):
        Encoder(sample_model, threads=number)


def test_numbers_may_be_of_numpy(sample: Encoder, tiny_model: Path) -> None:
    np.testing.assert_allclose(sample.encode(TEXTS, batch_size=np.int64(2)), sample.encode(TEXTS), atol=1e-6)  # type: ignore[arg-type]
    assert Encoder(tiny_model, threads=np.int64(1)).threads == 1  # type: ignore[arg-type]
    texts = [str(number) for number in range(300)]
    for batch_size in (np.int8(100), np.uint8(200)):  # which twice would overflow
        np.testing.assert_allclose(sample.encode(texts, batch_size=batch_size), sample.encode(texts), atol=1e-6)  # type: ignore[arg-type]


class _Text(str):
    """A text whose methods say something else, as those of HTML do that escape what is added."""

    __slots__ = ()

    def __radd__(self, other: str) -> str:
        return "added"

    def __str__(self) -> str:
        return "shown"

    def startswith(self, *_: Any) -> bool:
        return True

    def encode(self, *_: Any) -> bytes:
        return b""


def test_a_text_is_its_characters_whatever_its_class_does(e5: Encoder) -> None:
    for encode in (e5.encode, e5.encode_query):
        np.testing.assert_array_equal(encode([_Text("a text")], prompt="p "), encode(["a text"], prompt="p "))
    np.testing.assert_array_equal(e5.encode_query(_Text("a text")), e5.encode_query("a text"))
    with pytest.raises(InputValueError, match="position 0 holds the lone surrogate"):
        e5.encode_query([_Text("\ud800")])


@pytest.mark.parametrize("kind", ["object", "string", "category"])
def test_a_column_of_a_data_frame_is_read_by_position(sample: Encoder, kind: str) -> None:
    pandas = pytest.importorskip("pandas")
    column = pandas.Series(["one", "two", "three"], index=[2, 0, 2], dtype=kind)
    np.testing.assert_allclose(sample.encode(column), sample.encode(["one", "two", "three"]), atol=1e-6)
    with pytest.raises(InputTypeError, match="expected a str at position 1, got"):
        sample.encode(pandas.Series(["one", None], dtype=kind))


@pytest.mark.parametrize("model", [None, 5, b"models/sample", ["models/sample"]])
def test_a_model_is_named_by_text(model: Any) -> None:
    for load in (Encoder, Tokenizer):
        with pytest.raises(InputTypeError, match=f"a folder or a hub id, got {type(model).__name__}"):
            load(model)
    for name in ("a\0b", "\ud800", "a/\ud800"):
        with pytest.raises(InputValueError, match="holds NUL or a lone surrogate"):
            Encoder(name)
    for name in ("a" * 5000, "a" * 5000 + "/b", "a" * 300 + "/b"):
        with pytest.raises(E5OnnxError, match="a" * 300):
            Encoder(name, local_files_only=True)


def test_only_tokenized_texts_are_run_as_such(sample: Encoder) -> None:
    tokenized: list[Any] = [*sample.tokenizer.tokenize(["text"]), "text"]
    with pytest.raises(InputTypeError, match="expected a TokenizedText at position 1, got str"):
        sample.encode_tokenized(tokenized)
    for wrong in (None, tokenized[0], iter(tokenized)):
        with pytest.raises(InputTypeError, match=f"a sequence of TokenizedText, got {type(wrong).__name__}"):
            sample.encode_tokenized(wrong)  # type: ignore[arg-type]


def test_threads_and_precision_are_checked(sample_model: Path) -> None:
    with pytest.raises(InputValueError, match="at least 1, got 0"):
        Encoder(sample_model, threads=0)
    with pytest.raises(InputValueError, match=r"threads must be at most [0-9]+ on this host of [0-9]+ processor"):
        Encoder(sample_model, threads=5000)
    with pytest.raises(InputValueError, match="no graph with precision 'fp16'; it has 'fp32', 'int8'"):
        Encoder(sample_model, precision="fp16")  # type: ignore[arg-type]
    with pytest.raises(InputValueError, match="bf16 needs provider kernels or openvino"):
        Encoder(sample_model, precision="bf16")
    with pytest.raises(InputValueError, match="must be 'cpu', 'kernels' or 'openvino', got 'cuda'"):
        Encoder(sample_model, provider="cuda")  # type: ignore[arg-type]
    with pytest.raises(InputValueError, match="runs bf16 or fp32, not int8"):
        Encoder(sample_model, provider="openvino", precision="int8")
    with pytest.raises(InputValueError, match="a compile cache needs provider openvino"):
        Encoder(sample_model, compile_cache="anywhere")
    with pytest.raises(InputTypeError, match="compile_cache must be a folder, got int"):
        Encoder(sample_model, provider="openvino", compile_cache=3)  # type: ignore[arg-type]


# Similarity


def test_similarity_is_the_cosine(sample: Encoder) -> None:
    generator = np.random.default_rng(0)
    first, second = generator.normal(size=(4, 7)), generator.normal(size=(3, 7))
    expected = [[a @ b / np.linalg.norm(a) / np.linalg.norm(b) for b in second] for a in first]
    scores = sample.similarity(first, second)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores, expected, atol=1e-6)
    np.testing.assert_allclose(sample.similarity(first[0], second), expected[:1], atol=1e-6)
    np.testing.assert_allclose(
        sample.similarity(first.tolist(), second[0].tolist()), np.array(expected)[:, :1], atol=1e-6
    )


def test_similarity_of_nothing_and_of_zeros(sample: Encoder) -> None:
    assert sample.similarity(np.zeros((0, 7)), np.ones((3, 7))).shape == (0, 3)
    np.testing.assert_array_equal(sample.similarity(np.zeros(7), np.ones(7)), [[0]])


def test_similarity_does_not_exceed_one(sample: Encoder) -> None:
    vectors = np.random.default_rng(0).normal(size=(500, 384)).astype(np.float32)
    scores = sample.similarity(vectors, np.concatenate([vectors, -vectors]))
    assert (scores.max(), scores.min()) == (1, -1)
    np.testing.assert_allclose(np.diag(scores), 1, atol=1e-6)


@pytest.mark.parametrize("scale", [1e30, 1e-30])
def test_similarity_of_vectors_of_any_length(sample: Encoder, scale: float) -> None:
    first, second = np.array([[3, 4], [5, 12]], np.float32), np.array([4, 3], np.float32)
    expected = sample.similarity(first, second)
    np.testing.assert_allclose(sample.similarity(first * np.float32(scale), second), expected, atol=1e-6)
    np.testing.assert_allclose(expected, [[24 / 25], [56 / 65]], atol=1e-6)


@pytest.mark.parametrize("scale", [1e-300, 1e-50, 1e300])
def test_similarity_of_vectors_that_float32_does_not_hold(sample: Encoder, scale: float) -> None:
    assert sample.similarity([[3 * scale, 4 * scale]], [[6.0, 8.0], [-4.0, 3.0]]).round(6).tolist() == [[1, 0]]


@pytest.mark.parametrize("dtype", [np.bool_, np.int8, np.uint8, np.int32, np.int64, np.float16, np.longdouble])
def test_similarity_takes_numbers_of_any_width(sample: Encoder, dtype: Any) -> None:
    vectors = np.asfortranarray(np.array([[1, 0, 1], [1, 1, 0]]).astype(dtype))
    vectors.flags.writeable = False
    np.testing.assert_allclose(sample.similarity(vectors, vectors), [[1, 0.5], [0.5, 1]], atol=1e-6)


def test_similarity_is_the_dot_product_where_the_checkpoint_asks_for_it(sample: Encoder, sample_model: Path) -> None:
    encoder = Encoder(sample_model)
    encoder.manifest = replace(encoder.manifest, similarity_fn_name="dot")
    assert encoder.similarity([[3, 4], [0, 0]], [4, 3]).tolist() == [[24], [0]]
    np.testing.assert_allclose(sample.similarity([3, 4], [4, 3]), [[24 / 25]], atol=1e-6)


@pytest.mark.parametrize("wrong", [["a"], None, [[1, 2], [3]], [{}], [1j]])
def test_similarity_takes_numbers(sample: Encoder, wrong: Any) -> None:
    with pytest.raises(InputTypeError, match="embeddings1 must be an array of numbers"):
        sample.similarity(wrong, [1, 2])
    with pytest.raises(InputTypeError, match="embeddings2 must be an array of numbers"):
        sample.similarity([1, 2], wrong)


def test_similarity_explains_what_a_tensor_lacks(sample: Encoder) -> None:
    torch = pytest.importorskip("torch")
    with pytest.raises(InputTypeError, match=r"embeddings1 must be an array of numbers: .*requires grad"):
        sample.similarity(torch.ones(2, requires_grad=True), [1, 2])


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -float("inf")])
def test_similarity_refuses_what_is_not_finite(sample: Encoder, wrong: float) -> None:
    with pytest.raises(InputValueError, match="embeddings2 holds NaN or infinity in row 1"):
        sample.similarity([1.0, 2.0], [[1.0, 2.0], [1.0, wrong]])


def test_similarity_refuses_what_does_not_fit(sample: Encoder) -> None:
    with pytest.raises(InputValueError, match=r"\(1, 3\) and \(1, 4\)"):
        sample.similarity(np.ones(3), np.ones(4))
    with pytest.raises(InputValueError, match=r"\(1, 1, 3\)"):
        sample.similarity(np.ones((1, 1, 3)), np.ones(3))
    with pytest.raises(InputValueError, match=r"\(0,\)"):
        sample.similarity([], [])


# What it says of itself


def test_properties(e5: Encoder) -> None:
    assert e5.dimension == 384
    assert e5.max_tokens == 512
    assert e5.prompts == {"query": "query: ", "document": "passage: "}
    assert e5.precision == "fp32"
    assert e5.threads >= 1
    assert e5.fingerprint == e5.manifest.fingerprint("fp32")
    assert "e5-small-v2" in repr(e5)


def test_a_notebook_shows_what_it_is(e5: Encoder, monkeypatch: pytest.MonkeyPatch) -> None:
    page = ElementTree.fromstring(e5._repr_html_())
    facts = {row[0].text: row[1].text for row in page.iter("tr")}
    assert facts["prompts"] == "query 'query: ', document 'passage: '"
    assert facts["fingerprint"] == e5.fingerprint
    monkeypatch.setitem(e5._arguments, "model", "<script>")
    assert "<td>&lt;script&gt;</td>" in e5._repr_html_()


def test_warmup_runs_the_model_and_warns_of_nothing(e5_model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    encoder = Encoder(e5_model)
    run, shapes = encoder._graph.run, []

    def noting_run(input_ids: Any, *arguments: Any) -> Any:
        shapes.append(input_ids.shape)
        return run(input_ids, *arguments)

    monkeypatch.setattr(encoder._graph, "run", noting_run)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.warmup()
    assert shapes == [(1, 3)]


def test_the_progress_bar_counts_texts(sample: Encoder, capsys: pytest.CaptureFixture[str]) -> None:
    sample.encode(["text"] * 50, show_progress_bar=True)
    assert "50/50" in capsys.readouterr().err
    sample.encode((text for text in ["text"] * 40), show_progress_bar=True)
    assert "40text" in capsys.readouterr().err
    sample.encode(["text"] * 50)
    captured = capsys.readouterr()
    assert captured.out == captured.err == ""
