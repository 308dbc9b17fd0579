"""The `tokenizer.json` of a model folder: the checkpoint's, with what transformers would change in it as it loads it.

transformers reads `tokenizer.json` and then lets `tokenizer_config.json`, and the defaults of the class named there,
overrule it. Token ids have to be those that come out of this. What is not known to come out right is refused.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

import tokenizers

from e5onnx.errors import CheckpointError, in_one_line

from .json_file import JsonObject

# tokenizer_class, without "Fast" -> what its constructor changes
_BERT_LIKE = ("BertTokenizer", "DistilBertTokenizer", "MPNetTokenizer", "ElectraTokenizer")
_ROBERTA_LIKE = ("RobertaTokenizer",)
_UNCHANGED = ("XLMRobertaTokenizer", "CamembertTokenizer", "PreTrainedTokenizer", "TokenizersBackend")
_CLASS_OF_MODEL = {
    "bert": "BertTokenizer",
    "distilbert": "DistilBertTokenizer",
    "mpnet": "MPNetTokenizer",
    "roberta": "RobertaTokenizer",
    "xlm-roberta": "XLMRobertaTokenizer",
    "camembert": "CamembertTokenizer",
}
_SPECIAL_TOKENS = ("bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token")
# What those are called where the files do not say so, in the order of `_SPECIAL_TOKENS`.
_OF_BERT = (None, None, "[UNK]", "[SEP]", "[PAD]", "[CLS]", "[MASK]")
_OF_ROBERTA = ("<s>", "</s>", "<unk>", "</s>", "<pad>", "<s>", "<mask>")
_DEFAULT_TOKENS = {
    **dict.fromkeys(("BertTokenizer", "DistilBertTokenizer", "ElectraTokenizer"), _OF_BERT),
    **dict.fromkeys(("RobertaTokenizer", "XLMRobertaTokenizer", "CamembertTokenizer"), _OF_ROBERTA),
    "MPNetTokenizer": ("<s>", "</s>", "[UNK]", "</s>", "<pad>", "<s>", "<mask>"),
}
# Settings that are read, and their types.
_SETTINGS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("do_lower_case", "strip_accents", "tokenize_chinese_chars", "add_prefix_space"), (bool,)),
    **dict.fromkeys(("padding_side", "truncation_side", "tokenizer_class"), (str,)),
    **dict.fromkeys(_SPECIAL_TOKENS, (str, dict)),
    "model_input_names": (list,),
}
_VIA_OPTIMUM = "export it with --via optimum, which loads it with transformers"


def read_tokenizer(
    folder: Path, model_type: str, arguments: Mapping[str, Any], *, lowercase: bool, vocabulary: int
) -> str:
    """Return the content of `tokenizer.json`: that of the checkpoint in `folder`, byte for byte if nothing changes it.

    Args:
        folder: the checkpoint.
        model_type: of its `config.json`.
        arguments: what sentence-transformers passes to the tokenizer, over `tokenizer_config.json`.
        lowercase: whether sentence-transformers lowercases texts.
        vocabulary: how many token ids the encoder knows.

    Raises:
        CheckpointError: there is none, it is damaged, or is used in a way that is not supported.
    """
    config = JsonObject.read(folder, "tokenizer_config.json")
    settings = {**config.content, **arguments}
    _check(config, settings)
    kind = (settings.get("tokenizer_class") or _CLASS_OF_MODEL.get(model_type, "")).removesuffix("Fast")
    if kind not in (*_BERT_LIKE, *_ROBERTA_LIKE, *_UNCHANGED):
        raise CheckpointError(f"{config.name}: tokenizer_class {kind!r:.80} is not known; {_VIA_OPTIMUM}")
    settings = {**dict(zip(_SPECIAL_TOKENS, _DEFAULT_TOKENS.get(kind, ()), strict=False)), **settings}
    text = _read(folder, kind, settings)
    _load(folder, text)
    content, changed = json.loads(text), json.loads(text)
    if (changed.get("truncation") or {}).get("direction", "Right") != "Right":
        raise CheckpointError("tokenizer.json truncates on the left; only 'right' is supported")
    if (changed.get("padding") or {}).get("direction", "Right") != "Right":
        raise CheckpointError("tokenizer.json pads on the left; only 'right' is supported")
    changed["truncation"] = changed["padding"] = None  # the model's user decides
    if kind in _BERT_LIKE:
        _set_normalizer(changed, settings, chinese=kind != "MPNetTokenizer")
    parts = ("pre_tokenizer", "post_processor") if kind in _ROBERTA_LIKE else ("pre_tokenizer",)
    _set_prefix_space(changed, parts, bool(settings.get("add_prefix_space", False)))
    _check_added_tokens(changed, config, settings)
    if lowercase:
        _lowercase(changed)
    if changed != content:
        text = json.dumps(changed, ensure_ascii=False, indent=2)
    tokenizer = _load(folder, text)
    largest = max([*tokenizer.get_vocab().values(), *tokenizer.encode("").ids], default=0)
    if largest >= vocabulary:
        raise CheckpointError(
            f"the tokenizer in {folder} has token ids up to {largest}, but the encoder has only {vocabulary} "
            "(vocab_size in config.json): they do not belong together"
        )
    return text


def _check(config: JsonObject, settings: Mapping[str, Any]) -> None:
    for setting, kinds in _SETTINGS.items():
        if not isinstance(settings.get(setting), (*kinds, NoneType)):
            raise CheckpointError(f"{config.name}: {setting} cannot be {settings[setting]!r:.80}")
    for setting in ("padding_side", "truncation_side"):
        if (settings.get(setting) or "right") != "right":
            raise CheckpointError(f"{config.name}: {setting} is {settings[setting]!r:.80}; only 'right' is supported")
    if "attention_mask" not in (settings.get("model_input_names") or ["attention_mask"]):
        raise CheckpointError(f"{config.name}: model_input_names lacks attention_mask, which is not supported")
    if settings.get("split_special_tokens"):
        raise CheckpointError(f"{config.name} splits special tokens (split_special_tokens), which is not supported")
    if settings.get("chat_template"):
        raise CheckpointError(f"{config.name} has a chat template, which is not supported")
    if settings.get("auto_map"):
        raise CheckpointError(f"{config.name} has code of its own (auto_map), which is not supported")


def _read(folder: Path, kind: str, settings: Mapping[str, Any]) -> str:
    """Return the text of `tokenizer.json`, made from `vocab.txt` if the checkpoint has only that."""
    path = folder / "tokenizer.json"
    if path.is_file():
        try:
            return path.read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise CheckpointError(f"the tokenizer in {folder} cannot be loaded: {error}") from error
    if kind not in _BERT_LIKE or kind == "MPNetTokenizer" or not (folder / "vocab.txt").is_file():
        raise CheckpointError(f"{folder} has no tokenizer.json; {_VIA_OPTIMUM} and converts what is there")
    try:
        made = tokenizers.BertWordPieceTokenizer(
            str(folder / "vocab.txt"),
            **{name: str(_token(settings[name])) for name in _SPECIAL_TOKENS if name not in ("bos_token", "eos_token")},
        )
    except Exception as error:  # the Rust library raises nothing narrower
        raise CheckpointError(f"{folder / 'vocab.txt'} is not a vocabulary: {error}") from error
    return str(made.to_str(pretty=True))


def _set_normalizer(content: Any, settings: Mapping[str, Any], *, chinese: bool) -> None:
    """Let the settings overrule the flags of a BERT normalizer, as the class's constructor does."""
    normalizer = content.get("normalizer")
    wanted = {"lowercase": settings.get("do_lower_case", True), "strip_accents": settings.get("strip_accents")}
    if chinese:
        wanted["handle_chinese_chars"] = settings.get("tokenize_chinese_chars", True)
    if not isinstance(normalizer, dict) or all(normalizer.get(flag, value) == value for flag, value in wanted.items()):
        return
    if normalizer.get("type") != "BertNormalizer":
        raise CheckpointError(
            f"tokenizer.json has the normalizer {normalizer.get('type')!r:.80}, whose flags tokenizer_config.json "
            f"changes; {_VIA_OPTIMUM}"
        )
    normalizer.update(wanted)


def _set_prefix_space(content: Any, parts: Sequence[str], wanted: bool) -> None:
    for part in parts:
        if isinstance(content.get(part), dict) and "add_prefix_space" in content[part]:
            content[part]["add_prefix_space"] = wanted


def _check_added_tokens(content: Any, config: JsonObject, settings: Mapping[str, Any]) -> None:
    """Refuse tokens that transformers would add. The flags of those that are there stay as they are in both."""
    added = {token["content"]: token for token in content.get("added_tokens", [])}
    for number, token in config.object("added_tokens_decoder").content.items():
        known = added.get(token.get("content")) if isinstance(token, dict) else None
        if known is None or str(known["id"]) != number:
            raise CheckpointError(
                f"{config.name}: added_tokens_decoder has {token!r:.80} as {number}, unlike tokenizer.json; "
                f"{_VIA_OPTIMUM}"
            )
    vocabulary = content.get("model", {}).get("vocab", {})
    words = set(vocabulary) if isinstance(vocabulary, dict) else {entry[0] for entry in vocabulary}
    for name in _SPECIAL_TOKENS:
        text = _token(settings.get(name))
        if text is not None and text not in added and text not in words:
            raise CheckpointError(f"{config.name}: {name} {text!r:.80} is not in tokenizer.json; {_VIA_OPTIMUM}")


def _token(setting: Any) -> Any:
    """Return the text of a special token, which may be an object that holds it."""
    return setting.get("content") if isinstance(setting, dict) else setting


def _lowercase(content: Any) -> None:
    normalizer = content.get("normalizer")
    before = [normalizer] if normalizer else []
    if not (before and before[0].get("type") == "BertNormalizer" and before[0].get("lowercase")):
        content["normalizer"] = {"type": "Sequence", "normalizers": [{"type": "Lowercase"}, *before]}


def _load(folder: Path, text: str) -> tokenizers.Tokenizer:
    try:
        tokenizer = tokenizers.Tokenizer.from_str(text)
        tokenizer.encode("")
    except Exception as error:  # the Rust library raises nothing narrower
        raise CheckpointError(f"the tokenizer in {folder} cannot be loaded: {in_one_line(error)}") from error
    return tokenizer
