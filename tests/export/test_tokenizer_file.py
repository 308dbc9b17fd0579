"""`tokenizer.json` as transformers would change it, against transformers itself."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from transformers import AutoTokenizer

from checkpoints import make_checkpoint
from e5onnx.errors import CheckpointError
from e5onnx_export.network import FAMILIES
from e5onnx_export.tokenizer_file import read_tokenizer
from helpers import write_json
from texts import TEXTS

SMALL: dict[str, Any] = {"layers": 1, "hidden_size": 8, "heads": 2}
ODD = [*TEXTS, "Hello [MASK] [SEP]</s> <mask>  two  spaces", "ÀÉÎ", "[mask]", " <mask> a", "東京 x²", "<pad>a"]
Change = Callable[[Path, dict[str, Any], dict[str, Any]], object]


def read(checkpoint: Path, family: str = "bert", **arguments: Any) -> str:
    return read_tokenizer(checkpoint, family, arguments, lowercase=False, vocabulary=40_000)


def assert_same_ids(checkpoint: Path, text: str, **arguments: Any) -> None:
    tokenizer = tokenizers.Tokenizer.from_str(text)
    expected = AutoTokenizer.from_pretrained(checkpoint, use_fast=True, **arguments)
    assert [tokenizer.encode(each).ids for each in ODD] == expected(ODD)["input_ids"]


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("checkpoints")
    return lambda family: (
        root / family if (root / family).exists() else make_checkpoint(root / family, family=family, **SMALL)
    )


def test_a_prefix_space_is_the_settings_of_every_class(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "c", family="roberta", **SMALL)
    content = json.loads((checkpoint / "tokenizer.json").read_text())
    content["pre_tokenizer"]["add_prefix_space"] = True
    write_json(checkpoint / "tokenizer.json", content)
    config = json.loads((checkpoint / "tokenizer_config.json").read_text())
    for settings in ({}, {"add_prefix_space": True}, {"tokenizer_class": "PreTrainedTokenizerFast"}):
        write_json(checkpoint / "tokenizer_config.json", {**config, **settings})
        assert_same_ids(checkpoint, read(checkpoint, "roberta"))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family(checkpoints: Callable[[str], Path], family: str) -> None:
    text = read(checkpoints(family), family)
    assert_same_ids(checkpoints(family), text)
    content = json.loads(text)
    assert (content["truncation"], content["padding"]) == (None, None)


CHANGES: dict[str, Change] = {
    "cased": lambda folder, config, content: config.update(do_lower_case=False),
    "cased in tokenizer.json alone": lambda folder, config, content: content["normalizer"].update(lowercase=False),
    "no default": lambda folder, config, content: (
        config.pop("do_lower_case"),
        content["normalizer"].update(lowercase=False),
    ),
    "accents": lambda folder, config, content: config.update(strip_accents=False),
    "chinese": lambda folder, config, content: config.update(tokenize_chinese_chars=False),
    "plain class": lambda folder, config, content: config.update(
        tokenizer_class="PreTrainedTokenizerFast", do_lower_case=False
    ),
    "no class": lambda folder, config, content: config.pop("tokenizer_class"),
    "flags of a token": lambda folder, config, content: config["added_tokens_decoder"]["103"].update(
        lstrip=True, normalized=True
    ),
    "only a vocabulary": lambda folder, config, content: (folder / "tokenizer.json").unlink(),
    "only a vocabulary, and tokens as objects": lambda folder, config, content: [
        (folder / "tokenizer.json").unlink(),  # type: ignore[func-returns-value]
        config.update({name: {"__type": "AddedToken", "content": config[name]} for name in ("cls_token", "unk_token")}),
    ],
    "only a cased vocabulary": lambda folder, config, content: [
        (folder / "tokenizer.json").unlink(),  # type: ignore[func-returns-value]
        config.update(do_lower_case=False),
    ],
}


def changed(folder: Path, change: Change) -> Path:
    make_checkpoint(folder, **SMALL)
    config, content = (json.loads((folder / f"tokenizer{name}.json").read_text()) for name in ("_config", ""))
    change(folder, config, content)
    write_json(folder / "tokenizer_config.json", config)
    if (folder / "tokenizer.json").exists():
        write_json(folder / "tokenizer.json", content)
    return folder


@pytest.mark.parametrize("change", CHANGES)
def test_settings_overrule_tokenizer_json_as_in_transformers(tmp_path: Path, change: str) -> None:
    checkpoint = changed(tmp_path / "c", CHANGES[change])
    assert_same_ids(checkpoint, read(checkpoint))


def test_arguments_overrule_settings(tmp_path: Path, checkpoints: Callable[[str], Path]) -> None:
    each: list[dict[str, Any]] = [{"do_lower_case": False}, {"strip_accents": False}, {"tokenize_chinese_chars": False}]
    for arguments in each:
        assert_same_ids(checkpoints("bert"), read(checkpoints("bert"), **arguments), **arguments)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda folder, config, content: config.update(tokenizer_class="LlamaTokenizer"), "'LlamaTokenizer'"),
        (
            lambda folder, config, content: config.update(tokenizer_class="MPNetTokenizer"),
            "bos_token '<s>' is not in tokenizer.json",
        ),
        (
            lambda folder, config, content: config["added_tokens_decoder"].update(
                {"30522": {"content": "<new>", "special": True}}
            ),
            "added_tokens_decoder has",
        ),
        (lambda folder, config, content: config.update(do_lower_case="no"), "do_lower_case cannot be 'no'"),
        (lambda folder, config, content: config.update(split_special_tokens=True), "splits special tokens"),
        (lambda folder, config, content: config.update(auto_map={}, chat_template="x"), "chat template"),
        (
            lambda folder, config, content: (
                config.update(do_lower_case=False),
                content.update(normalizer={"type": "Lowercase", "lowercase": True}),
            ),
            "normalizer 'Lowercase'",
        ),
    ],
)
def test_what_is_not_known_to_come_out_right_is_refused(tmp_path: Path, change: Change, named: str) -> None:
    with pytest.raises(CheckpointError, match=named):
        read(changed(tmp_path / "c", change))
