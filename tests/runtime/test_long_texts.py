"""Long texts in pieces: the same tokens as the whole, for every kind of tokenizer, in little memory."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers, processors, trainers

from e5onnx import InputValueError, TextTooLongError, Tokenizer
from e5onnx.long_texts import PIECE_CHARACTERS, STRETCH_CHARACTERS, Divider
from e5onnx.model_folder import ModelFolder
from texts import TEXTS

_CORPUS = [*TEXTS, "the words of a small corpus, some of them twice or three times the words", "東京 is in 日本"]
_SPECIAL = ["<s>", "</s>", "<pad>", "<unk>", "<mask>"]


def bert(model: Path, **added: Any) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer.from_file(str(model / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    for content, options in added.items():
        tokenizer.add_tokens([AddedToken(content, **options)])
    return tokenizer


def unigram(*splitters: Any, added: AddedToken | None = None) -> tokenizers.Tokenizer:
    """A tokenizer of the kind of XLM-RoBERTa's."""
    tokenizer = tokenizers.Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.NFKC(), normalizers.Replace(tokenizers.Regex(" {2,}"), " ")]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(list(splitters)) if len(splitters) > 1 else splitters[0]
    trainer = trainers.UnigramTrainer(vocab_size=200, special_tokens=_SPECIAL, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_special_tokens([added or AddedToken("<mask>", lstrip=True, special=True)])
    return tokenizer


def byte_level(prefix: bool) -> tokenizers.Tokenizer:
    """A tokenizer of the kind of RoBERTa's."""
    tokenizer = tokenizers.Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=_SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(_CORPUS, trainer)
    tokenizer.add_special_tokens([AddedToken("<mask>", lstrip=True, special=True)])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    return tokenizer


def _split() -> Any:
    return pre_tokenizers.WhitespaceSplit()


def _metaspace(scheme: str = "always", **options: Any) -> Any:
    return pre_tokenizers.Metaspace(prepend_scheme=scheme, **options)


_KINDS: dict[str, Any] = {
    "BERT": bert,
    "BERT with added tokens": lambda model: bert(
        model, **{"a,b": {}, "京都": {"normalized": True}, "[x]": {"lstrip": True, "rstrip": True}}
    ),
    "BERT with a single word": lambda model: bert(model, qxq={"single_word": True, "normalized": False}),
    "Metaspace": lambda _: unigram(_metaspace()),
    "Metaspace first": lambda _: unigram(_metaspace("first")),
    "Metaspace never": lambda _: unigram(_metaspace("never")),
    "Metaspace with a token that takes in spaces": lambda _: unigram(_metaspace(), added=AddedToken("a", rstrip=True)),
    "Metaspace with a token of spaces": lambda _: unigram(_metaspace(), added=AddedToken("a word")),
    "words, Metaspace": lambda _: unigram(_split(), _metaspace()),
    "words, Metaspace first": lambda _: unigram(_split(), _metaspace("first")),
    "bytes": lambda _: byte_level(prefix=False),
    "bytes, prefix": lambda _: byte_level(prefix=True),
}


@pytest.fixture(scope="module", params=_KINDS)
def tokenizer(request: pytest.FixtureRequest, sample_model: Path) -> tokenizers.Tokenizer:
    return _KINDS[request.param](sample_model)


def ids(tokenizer: tokenizers.Tokenizer, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False).ids)


_PARTS = (
    st.sampled_from(
        [" ", "  ", "\n", "a", "word", "7", ",", "'s", "é", "e\u0301", "東", "京", "京都", "か\u3099", "。", "—"]
    )
    | st.sampled_from("abx[]<>_$+.-éßİ東京都か한“🙂ﬁﾞก\t\0\u0308\u200d\ufe0f\u0600\u00ad\u00a0\u2028\ufffd")
    | st.sampled_from(["[MASK]", "<mask>", "a,b", "words"])
)


@settings(deadline=None, max_examples=100)
@given(parts=st.lists(_PARTS, max_size=40), length=st.integers(1, 12))
@example(parts=["a", ",", "b", " ", "a"] * 8, length=1)
@example(parts=["京", "都"] * 8, length=1)
@example(parts=["[MASK]"] * 8, length=1)
@example(parts=["京", "qxq", "_", "qxq", ",", "qxq"], length=1)
def test_pieces_have_the_tokens_of_the_whole(tokenizer: tokenizers.Tokenizer, parts: list[str], length: int) -> None:
    text = "".join(parts)
    pieces = list(Divider(tokenizer.to_str(), piece_characters=length).pieces(text))
    assert "".join(pieces) == text
    assert [each for piece in pieces for each in ids(tokenizer, piece)] == ids(tokenizer, text)


@pytest.mark.parametrize("text", ["some words of a text " * 9, "line\nafter line, and 7 more " * 9])
def test_texts_are_divided_at_spaces(
    tokenizer: tokenizers.Tokenizer, text: str, request: pytest.FixtureRequest
) -> None:
    pieces = list(Divider(tokenizer.to_str(), piece_characters=20).pieces(text))
    assert [each for piece in pieces for each in ids(tokenizer, piece)] == ids(tokenizer, text)
    if "with a token" in request.node.name:
        assert pieces == [text]
    else:
        assert max(map(len, pieces)) < 40


@pytest.mark.parametrize("text", ["東京" * 30, "a,b;" * 30, "これは漢字です。" * 10, "“one”—“two”" * 10])
def test_bert_needs_no_spaces(sample_model: Path, text: str) -> None:
    tokenizer = bert(sample_model)
    pieces = list(Divider(tokenizer.to_str(), piece_characters=8).pieces(text))
    assert max(map(len, pieces)) < 24
    assert [each for piece in pieces for each in ids(tokenizer, piece)] == ids(tokenizer, text)


@pytest.mark.parametrize(
    "change",
    [
        {"pre_tokenizer": {"type": "Split", "pattern": {"String": "o"}, "behavior": "Isolated", "invert": False}},
        {"pre_tokenizer": None},
        {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": False}},
        {"normalizer": {"type": "Strip", "strip_left": True, "strip_right": True}},
        {"normalizer": {"type": "Replace", "pattern": {"Regex": "s w"}, "content": "x"}},
    ],
)
def test_what_may_look_anywhere_gets_its_texts_whole(sample_model: Path, change: dict[str, Any]) -> None:
    divider = Divider(json.dumps(json.loads(bert(sample_model).to_str()) | change), piece_characters=8)
    assert list(divider.pieces("some words " * 20)) == ["some words " * 20]


# In the tokenizer


def test_a_long_text_has_the_ids_and_the_count_of_the_whole(sample_model: Path) -> None:
    tokenizer, whole = Tokenizer(sample_model), bert(sample_model)
    spread = ("x" * 300 + " ") * 300  # a token in 301 characters
    for text in [" ".join(TEXTS) * 200, "x" * 70_000 + " end", spread, "[MASK]" * 20_000, " " * 70_000 + "end"]:
        assert len(text) > PIECE_CHARACTERS
        expected = whole.encode(text).ids
        found = tokenizer.tokenize([text])[0]
        assert found.tokens == tokenizer.count_tokens(text) == len(expected)
        most = tokenizer.max_tokens
        assert found.ids.tolist() == (expected if len(expected) <= most else [*expected[: most - 1], expected[-1]])
        assert [token.id for token in tokenizer.tokens([text])[0]] == found.ids.tolist()
        prompted = tokenizer.tokenize([text], "prompt 東京")[0]
        assert prompted.tokens == len(whole.encode("prompt 東京" + text).ids)


def test_a_stretch_that_cannot_be_divided_is_refused_beyond_a_million_characters(sample_model: Path) -> None:
    tokenizer = Tokenizer(sample_model)
    for text in ("x" * STRETCH_CHARACTERS, "some words " + "x" * (STRETCH_CHARACTERS - 1) + " and more"):
        assert tokenizer.count_tokens(text) in (3, 7)
    with pytest.raises(TextTooLongError, match="position 1 cannot be tokenised: it has 1,114,113 characters") as error:
        tokenizer.count_tokens(["short", "x" * (PIECE_CHARACTERS + STRETCH_CHARACTERS + 1)])
    assert isinstance(error.value, InputValueError)


_MEMORY = """
import resource, sys
from e5onnx import Encoder, Tokenizer

encoder = Encoder(sys.argv[1]) if sys.argv[2] == "encode" else None
tokenizer = encoder.tokenizer if encoder else Tokenizer(sys.argv[1])
tokenizer.count_tokens("one two " * 20_000)
text = "hello, world " * 1_400_000
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
print(encoder.encode(text).shape if encoder else tokenizer.count_tokens(text))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is measured in Linux' units")
@pytest.mark.parametrize(("what", "printed"), [("count", "4200002"), ("encode", "(48,)")])
def test_a_text_of_18_megabytes_takes_little_memory(tiny_model: Path, what: str, printed: str) -> None:
    command = [sys.executable, "-W", "ignore", "-c", _MEMORY, str(tiny_model), what]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    result, megabytes = done.stdout.splitlines()
    assert result == printed
    assert int(megabytes) < 200  # the whole took 2.9 GB


def test_the_tokenizer_of_a_long_text_is_that_of_the_folder(sample_model: Path) -> None:
    """The one without truncation is made of what was loaded, not of a file that may have changed."""
    tokenizer = Tokenizer(ModelFolder.open(sample_model))
    before = tokenizer.count_tokens("short " * 300)
    assert tokenizer.count_tokens("long " * 30_000) == 30_002
    assert tokenizer.count_tokens("short " * 300) == before == 302
