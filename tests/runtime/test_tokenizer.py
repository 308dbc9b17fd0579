"""The tokenizer against the tokenizers library itself: prompts, truncation, counts, bad input and threads."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st

from e5onnx import InputTypeError, InputValueError, ModelFolderError, Tokenizer
from e5onnx.long_texts import Divider
from e5onnx.model_folder import ModelFolder
from folders import put_file
from texts import TEXTS

CLS, SEP = 101, 102  # of the BERT vocabulary
SHORT = 8  # a maximum that many small texts exceed


class Reference:
    """What the tokenizers library makes of texts, without prompts and truncation."""

    def __init__(self, model: Path) -> None:
        self._tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
        self._tokenizer.no_truncation()
        self._tokenizer.no_padding()

    def ids(self, text: str) -> list[int]:
        ids: list[int] = self._tokenizer.encode(text).ids
        return ids

    def count(self, text: str) -> int:
        return len(self.ids(text))


def load(model: Path, **changes: Any) -> Tokenizer:
    """Load the tokenizer of a model folder as if its manifest had these values."""
    folder = ModelFolder.open(model)
    return Tokenizer(replace(folder, manifest=replace(folder.manifest, **changes)))


def ids_of(tokenizer: Tokenizer, texts: Iterable[str], prompt: str = "") -> list[list[int]]:
    return [text.ids.tolist() for text in tokenizer.tokenize(texts, prompt)]


@pytest.fixture(scope="module")
def sample(sample_model: Path) -> Tokenizer:
    return Tokenizer(sample_model)


@pytest.fixture(scope="module")
def e5(e5_model: Path) -> Tokenizer:
    return Tokenizer(e5_model)


@pytest.fixture(scope="module")
def short(e5_model: Path) -> Tokenizer:
    return load(e5_model, max_tokens=SHORT)


@pytest.fixture(scope="module")
def reference(e5_model: Path) -> Reference:
    return Reference(e5_model)


@pytest.fixture
def folder_without_weights(e5_model: Path, tmp_path: Path) -> Path:
    """A copy of a model folder that a test may damage."""
    return shutil.copytree(e5_model, tmp_path / "model", ignore=shutil.ignore_patterns("onnx"))


# --- ids, counts and truncation


def test_ids_and_counts_are_those_of_the_library(e5: Tokenizer, reference: Reference) -> None:
    tokenized = e5.tokenize(TEXTS)
    assert [text.ids.tolist() for text in tokenized] == [reference.ids(text) for text in TEXTS]
    assert [text.tokens for text in tokenized] == e5.count_tokens(TEXTS) == [reference.count(text) for text in TEXTS]
    assert {text.ids.dtype for text in tokenized} == {np.dtype(np.int32)}


def test_a_text_without_content_has_the_special_tokens(e5: Tokenizer) -> None:
    assert ids_of(e5, ["", " \t\n"]) == [[CLS, SEP], [CLS, SEP]]
    assert e5.tokenize([]) == []


@pytest.mark.parametrize(("model", "maximum"), [("sample_model", 256), ("e5_model", 512)])
def test_a_long_text_is_cut_at_the_maximum(model: str, maximum: int, request: pytest.FixtureRequest) -> None:
    folder: Path = request.getfixturevalue(model)
    tokenizer, reference = Tokenizer(folder), Reference(folder)
    assert tokenizer.max_tokens == maximum
    for words in (maximum - 3, maximum - 2, maximum - 1, maximum, 3 * maximum):  # two special tokens come on top
        text = " ".join((["one", "more", "word"] * words)[:words])
        whole, tokenized = reference.ids(text), tokenizer.tokenize([text])[0]
        assert tokenized.tokens == tokenizer.count_tokens(text) == len(whole) == words + 2
        assert len(tokenized.ids) == min(len(whole), maximum)
        assert (tokenized.ids[0], tokenized.ids[-1]) == (CLS, SEP)
        assert tokenized.ids[:-1].tolist() == whole[: len(tokenized.ids) - 1]


@settings(deadline=None)
@given(
    st.text(st.characters(exclude_categories=["Cs"]))
    | st.text("ab\0\t \u00a0é\u0301ßИ中漢か🙂\u200d\ufe0f\u202e.,-[]", max_size=40)
    | st.lists(st.sampled_from(["word", "unbelievably", "[SEP]", "[PAD]", "##ing", "中文", "x" * 101])).map(" ".join)
)
@example("\0")
@example("👩‍👩‍👧‍👦" * 9)
@example("e\u0301" * 30)
@example("東京" * 10)
def test_any_text_is_tokenised_as_by_the_library(
    e5: Tokenizer, short: Tokenizer, reference: Reference, text: str
) -> None:
    whole = reference.ids(text)
    assert e5.count_tokens(text) == short.count_tokens(text) == len(whole)
    kept = whole if len(whole) <= SHORT else [*whole[: SHORT - 1], SEP]
    assert ids_of(short, [text]) == [kept]


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("word " * 200_000, 200_002), ("a" * 1_000_000, 3), ("中" * 350_000, 350_002), (" " * 1_000_000, 2)],
    ids=["words", "one word", "CJK", "spaces"],
)
def test_a_text_of_a_megabyte(e5: Tokenizer, text: str, tokens: int) -> None:
    tokenized = e5.tokenize([text])[0]
    assert tokenized.tokens == e5.count_tokens(text) == tokens
    assert len(tokenized.ids) == min(tokens, 512)


def test_pieces_are_kept_up_to_the_maximum(
    e5_model: Path, reference: Reference, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = load(e5_model, max_tokens=SHORT)
    untruncated, _ = tokenizer._long_texts()
    monkeypatch.setattr("e5onnx.tokenizer.PIECE_CHARACTERS", 3)
    tokenizer._for_long_texts = untruncated, Divider(untruncated.to_str(), piece_characters=3)
    for words in range(1, 2 * SHORT):  # each is a piece
        whole = reference.ids(" ".join(["word"] * words))
        tokenized = tokenizer.tokenize([" ".join(["word"] * words)])[0]
        assert tokenized.ids.tolist() == (whole if len(whole) <= SHORT else [*whole[: SHORT - 1], SEP])
        assert tokenized.tokens == len(whole)


def test_settings_in_the_tokenizers_file_that_change_ids_are_ignored(
    e5_model: Path, folder_without_weights: Path, reference: Reference
) -> None:
    content = tokenizers.Tokenizer.from_file(str(e5_model / "tokenizer.json"))
    content.enable_padding(length=64, direction="left")
    content.enable_truncation(4, direction="left", stride=1)
    put_file(folder_without_weights, e5_model, "tokenizer.json", content.to_str().encode())
    tokenizer = Tokenizer(folder_without_weights)
    assert ids_of(tokenizer, TEXTS) == [reference.ids(text) for text in TEXTS]
    (tokens,) = tokenizer.tokens(["one two three four"])
    assert [token.id for token in tokens] == reference.ids("one two three four")


def test_an_id_that_no_model_has_is_refused(e5_model: Path, folder_without_weights: Path) -> None:
    content = json.loads((e5_model / "tokenizer.json").read_text())
    content["post_processor"]["special_tokens"]["[SEP]"]["ids"] = [2**31]
    put_file(folder_without_weights, e5_model, "tokenizer.json", json.dumps(content).encode())
    tokenizer = Tokenizer(folder_without_weights)
    with pytest.raises(ModelFolderError, match=r"tokenizer\.json makes a token id that no model has: 2147483648"):
        tokenizer.tokenize(["text"])


# --- prompts


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("how much protein", "query: how much protein"),
        ("query: how much protein", "query: how much protein"),
        ("query: query: twice as given", "query: query: twice as given"),
        ("Query: in capitals", "query: Query: in capitals"),
        ("query:without a space", "query: query:without a space"),
        (" query: after a space", "query:  query: after a space"),
        ("passage: of the other side", "query: passage: of the other side"),
        ("", "query: "),
        ("query: ", "query: "),
    ],
)
def test_a_prompt_is_put_before_texts_that_lack_it(
    e5: Tokenizer, reference: Reference, text: str, expected: str
) -> None:
    assert ids_of(e5, [text], "query: ") == [reference.ids(expected)]
    assert e5.count_tokens(text, prompt_name="query") == reference.count(expected)


@pytest.mark.parametrize(
    ("prompts", "prompt", "text", "expected"),
    [
        ({}, "a", "apple", "aapple"),
        ({}, "query: ", "query: text", "query: query: text"),  # not one of the checkpoint's
        ({"query": "query: "}, "query: ", "query: text", "query: text"),
        ({"query": "query: "}, "query", "query: text", "queryquery: text"),
        ({"query": "find"}, "find", "findings", "findfindings"),  # of the checkpoint's, but not of E5's form
        ({"query": "Represent this: "}, "Represent this: ", "Represent this: text", "Represent this: text"),
        ({"query": ""}, "", "text", "text"),
        ({"query": ": "}, ": ", ": text", ": text"),
    ],
)
def test_only_prompts_of_the_checkpoint_in_the_form_of_e5_are_not_repeated(
    e5_model: Path, reference: Reference, prompts: dict[str, str], prompt: str, text: str, expected: str
) -> None:
    tokenizer = load(e5_model, prompts=prompts)
    assert tokenizer.prompted(text, prompt) == expected
    assert ids_of(tokenizer, [text], prompt) == [reference.ids(expected)]
    assert [token.id for token in tokenizer.tokens([text], prompt)[0]] == reference.ids(expected)


@pytest.mark.parametrize("prompts", [{}, {"query": "", "document": ""}])
def test_empty_prompts_have_names(e5_model: Path, reference: Reference, prompts: dict[str, str]) -> None:
    tokenizer = load(e5_model, prompts=prompts)
    for name in ("query", "document"):
        assert tokenizer.count_tokens("text", prompt_name=name) == reference.count("text")


def test_a_prompt_counts_towards_the_maximum(short: Tokenizer, reference: Reference) -> None:
    text = "one two three four five six"
    assert reference.count(text) == SHORT
    tokenized = short.tokenize([text], "passage: ")[0]
    whole = reference.ids("passage: " + text)
    assert tokenized.tokens == len(whole) > SHORT
    assert tokenized.ids.tolist() == [*whole[: SHORT - 1], SEP]


QUERY_DOCUMENT = {"query": "Q ", "document": "D "}


@pytest.mark.parametrize(
    ("prompts", "default", "arguments", "expected"),
    [
        # without arguments: the default, or nothing
        (QUERY_DOCUMENT, None, {}, ""),
        (QUERY_DOCUMENT, "document", {}, "D "),
        ({}, None, {}, ""),
        # prompt before prompt_name before role before default
        (QUERY_DOCUMENT, "document", {"prompt": "P ", "prompt_name": "query", "role": "query"}, "P "),
        (QUERY_DOCUMENT, "document", {"prompt": "", "prompt_name": "query", "role": "query"}, ""),
        (QUERY_DOCUMENT, "document", {"prompt": "P ", "prompt_name": "unknown"}, "P "),
        (QUERY_DOCUMENT, "query", {"prompt_name": "document", "role": "query"}, "D "),
        (QUERY_DOCUMENT, "query", {"role": "document"}, "D "),
        (QUERY_DOCUMENT, "document", {"role": "query"}, "Q "),
        # the names of the document's role, in order
        ({"corpus": "3 ", "passage": "2 ", "document": "1 "}, None, {"role": "document"}, "1 "),
        ({"corpus": "3 ", "passage": "2 "}, None, {"role": "document"}, "2 "),
        ({"corpus": "3 "}, None, {"role": "document"}, "3 "),
        ({"document": "", "passage": "2 "}, None, {"role": "document"}, ""),
        # a role the model has no prompt for
        (QUERY_DOCUMENT, "query", {"role": "raw"}, ""),
        ({}, None, {"role": "query"}, ""),
        # as in sentence-transformers 5, whose models have the prompts "query" and "document", empty unless set
        ({"other": "O "}, "other", {"role": "query"}, ""),
    ],
)
def test_which_prompt_wins(
    e5_model: Path, prompts: dict[str, str], default: str | None, arguments: dict[str, Any], expected: str
) -> None:
    tokenizer = load(e5_model, prompts=prompts, default_prompt_name=default)
    assert tokenizer.prompt_for(**arguments) == expected


def test_the_default_prompt_is_counted_unless_another_is_given(e5_model: Path, reference: Reference) -> None:
    tokenizer = load(e5_model, default_prompt_name="document")
    counts = [tokenizer.count_tokens("text", **choice) for choice in ({}, {"prompt": ""}, {"prompt_name": "query"})]
    assert counts == [reference.count(text) for text in ("passage: text", "text", "query: text")]


def test_the_prompts_are_the_models_own(e5: Tokenizer, sample: Tokenizer) -> None:
    assert (e5.prompts, e5.default_prompt_name) == ({"query": "query: ", "document": "passage: "}, None)
    assert (sample.prompts, sample.default_prompt_name) == ({}, None)


def test_an_unknown_prompt_is_refused_with_those_there_are(e5: Tokenizer, sample: Tokenizer) -> None:
    with pytest.raises(InputValueError, match="no prompt named 'passage'; it has 'query', 'document'"):
        e5.count_tokens("text", prompt_name="passage")
    with pytest.raises(InputValueError, match="no prompt named 'passage'; it has none"):
        sample.count_tokens("text", prompt_name="passage")


def test_a_prompt_is_checked_like_a_text(e5: Tokenizer) -> None:
    with pytest.raises(InputTypeError, match="prompt must be a str, got bytes"):
        e5.count_tokens("text", prompt=b"query: ")  # type: ignore[call-overload]  # the wrong type on purpose
    with pytest.raises(InputTypeError, match="prompt_name must be a str, got list"):
        e5.count_tokens("text", prompt_name=["query"])  # type: ignore[call-overload]  # the wrong type on purpose
    with pytest.raises(InputValueError, match=r"the prompt holds the lone surrogate U\+D83D at character 2"):
        e5.count_tokens("text", prompt="q \ud83d")


# --- what may be counted


def test_a_str_gives_a_number_and_an_iterable_a_list(e5: Tokenizer) -> None:
    texts = ["one", "and two"]
    assert e5.count_tokens("one") == 3
    for inputs in (texts, tuple(texts), iter(texts), (text for text in texts), dict.fromkeys(texts).keys()):
        assert e5.count_tokens(inputs) == [3, 4]


@pytest.mark.parametrize("nothing", [[], (), iter([])])
def test_no_texts_give_no_counts(e5: Tokenizer, nothing: Iterable[str]) -> None:
    assert e5.count_tokens(nothing) == []


@pytest.mark.parametrize(
    "inputs", [b"text", bytearray(b"text"), {"text": 1}, {"text"}, frozenset(["text"]), None, 5, 0.5, object()]
)
def test_what_holds_no_texts_in_order_is_refused(e5: Tokenizer, inputs: Any) -> None:
    with pytest.raises(InputTypeError, match=f"ordered iterable of str, got {type(inputs).__name__}$"):
        e5.count_tokens(inputs)


@pytest.mark.parametrize("wrong", [b"text", None, 5, ["text"], np.array(["text"])])
@pytest.mark.parametrize("collection", [list, tuple, iter])
@pytest.mark.parametrize("position", [0, 2])
def test_a_text_of_the_wrong_type_is_named_by_position(
    e5: Tokenizer, wrong: Any, collection: Callable[[list[Any]], Iterable[Any]], position: int
) -> None:
    inputs: list[Any] = ["one", "two", "three"]
    inputs[position] = wrong
    with pytest.raises(InputTypeError, match=f"expected a str at position {position}, got {type(wrong).__name__}$"):
        e5.count_tokens(collection(inputs))


@pytest.mark.parametrize(
    ("inputs", "position", "character", "code"),
    [
        ("\ud800", 0, 0, "D800"),
        ("after 🙂 \udfff", 0, 8, "DFFF"),
        (["fine", "also fine", "no\udc80pe"], 2, 2, "DC80"),
        (["first \ud83d", "second \ud83d"], 0, 6, "D83D"),
        (["\ude42\ud83d"], 0, 0, "DE42"),  # a pair the wrong way round
    ],
)
def test_a_lone_surrogate_is_named_by_position_and_character(
    e5: Tokenizer, inputs: str | list[str], position: int, character: int, code: str
) -> None:
    message = rf"the text at position {position} holds the lone surrogate U\+{code} at character {character},"
    for given_inputs in (inputs, inputs if isinstance(inputs, str) else iter(inputs)):
        with pytest.raises(InputValueError, match=message):
            e5.count_tokens(given_inputs)


def test_what_is_tokenised_is_checked_as_what_is_counted(e5: Tokenizer) -> None:
    for method in (e5.tokenize, e5.tokens):
        with pytest.raises(InputTypeError, match="an iterable of str, got one str: put it in a list"):
            method("text")
        with pytest.raises(InputTypeError, match="ordered iterable of str, got NoneType"):
            method(None)  # type: ignore[arg-type]
        with pytest.raises(InputTypeError, match="expected a str at position 1, got NoneType"):
            method(["text", None])  # type: ignore[list-item]
        with pytest.raises(InputValueError, match="the text at position 1 holds the lone surrogate"):
            method(["text", "\ud800"])


def test_the_repair_that_the_message_offers_works(e5: Tokenizer) -> None:
    with pytest.raises(
        InputValueError, match=r'text\.encode\("utf-16", "surrogatepass"\)\.decode\("utf-16", "replace"\)'
    ):
        e5.count_tokens("a \ud83d b")
    repaired = "a \ud83d b \ud83d\ude42".encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    assert repaired == "a \ufffd b 🙂"
    assert e5.count_tokens(repaired) >= 4


# --- files and threads


def test_no_weights_are_needed(folder_without_weights: Path, reference: Reference) -> None:
    assert not (folder_without_weights / "onnx").exists()
    assert Tokenizer(folder_without_weights).count_tokens(TEXTS) == [reference.count(text) for text in TEXTS]
    assert Tokenizer(str(folder_without_weights)).count_tokens(TEXTS[0]) == reference.count(TEXTS[0])


@pytest.mark.parametrize("content", [b"\0", b"\xff", b"{", b"[", b"{}", b"null", b'{"version": "1.0", "model": {}}'])
def test_a_tokenizer_that_cannot_be_read_is_refused(folder_without_weights: Path, content: bytes) -> None:
    put_file(folder_without_weights, folder_without_weights, "tokenizer.json", content)
    path = folder_without_weights / "tokenizer.json"
    with pytest.raises(ModelFolderError, match=f"tokenizers [0-9.]+ cannot read {path}"):
        Tokenizer(folder_without_weights)


def test_threads_may_share_a_tokenizer(short: Tokenizer, reference: Reference) -> None:
    texts = TEXTS * 10
    expected = [ids if len(ids) <= SHORT else [*ids[: SHORT - 1], SEP] for ids in map(reference.ids, texts)]
    together = threading.Barrier(8)

    def work(_: int) -> tuple[list[list[int]], list[int]]:
        together.wait()
        return ids_of(short, texts), short.count_tokens(texts)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(work, range(8)))
    assert results == [(expected, [reference.count(text) for text in texts])] * 8
