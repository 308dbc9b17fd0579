"""Where to divide a long text so that the tokens of its pieces are the tokens of the text.

The tokenizer library needs a few hundred bytes for each token: gigabytes for a text of megabytes. Pieces bound the
memory. A text is divided only where the tokenizer itself divides it:

1. Every model of the library tokenises each word on its own.
2. The steps before that (normalisation, added tokens such as `[MASK]`, division into words) look no further than the
   neighbours in the patterns below: plain characters on both sides of a space, or for BERT's rules a punctuation mark
   or an ideograph, each of which is a word.

Any other step might look further, so a tokenizer with such a step gets its texts whole.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from .errors import TextTooLongError

PIECE_CHARACTERS = 2**16
"""Texts up to this length are not divided. Pieces of longer texts are at least this long, except the last."""
STRETCH_CHARACTERS = 2**20
"""A text is refused if a stretch of more than this, beyond a piece, cannot be divided."""

# Normalisers that change a character on its own, or together with the combining marks after it.
_LOCAL_NORMALIZERS = {"BertNormalizer", "Lowercase", "NFC", "NFD", "NFKC", "NFKD", "Precompiled", "StripAccents"}
_SEVERAL_SPACES = {"Regex": " {2,}"}

# Characters of the same kind in every version of Unicode, none of them a combining mark.
_IDEOGRAPHS = r"\u4e00-\u9fff"
_LETTERS = r"0-9A-Za-z\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u017f\u0410-\u044f\u3041-\u3096\u30a1-\u30fa\uac00-\ud7a3"
_MARKS = r"!-/:-@\[-`{-~\u2010-\u2027\u3001-\u3003\u3008-\u3011\uff01-\uff03\uff05-\uff0a\uff0c-\uff0f\uff1a\uff1b"
_PLAIN = rf"[0-9A-Za-z{_IDEOGRAPHS}]"


class Divider:
    """Divides the texts of one tokenizer."""

    def __init__(self, tokenizer_json: str, *, piece_characters: int = PIECE_CHARACTERS) -> None:
        """Read the content of a `tokenizer.json`.

        Args:
            tokenizer_json: the content.
            piece_characters: texts up to this length are not divided, and no piece but the last is shorter.
        """
        self._piece_characters = piece_characters
        content = json.loads(tokenizer_json)
        self._added: list[dict[str, Any]] = content["added_tokens"]
        pattern = _boundaries(
            _steps(content["normalizer"], "normalizers"), _steps(content["pre_tokenizer"], "pretokenizers"), self._added
        )
        self._boundary = re.compile(pattern) if pattern else None

    def pieces(self, text: str) -> Iterator[str]:
        """Yield the pieces of a text, in order.

        Raises:
            TextTooLongError: a stretch of more than `STRETCH_CHARACTERS` cannot be divided.
        """
        start = 0
        while len(text) - start > self._piece_characters:
            end = start + self._piece_characters + STRETCH_CHARACTERS
            cut = next(self._cuts(text, start + self._piece_characters, end), None)
            if cut is None:
                if len(text) > end:
                    raise TextTooLongError(
                        f"it has {len(text):,} characters, more than {STRETCH_CHARACTERS:,} of them in one stretch "
                        "without a place to divide it, such as a space between words: split it"
                    )
                break
            yield text[start:cut]
            start = cut
        yield text[start:]

    def _cuts(self, text: str, start: int, end: int) -> Iterator[int]:
        """Yield the positions at which a text can be divided."""
        for match in self._boundary.finditer(text, start, end) if self._boundary else ():
            place = match.start()
            pair = text[place - 1 : place + 1].lower()
            if not any(pair in token["content"].lower() for token in self._added):
                yield place


def _boundaries(
    normalizers: list[dict[str, Any]], splitters: list[dict[str, Any]], added: list[dict[str, Any]]
) -> str | None:
    """Return a pattern for places where a tokenizer with these steps and added tokens always ends a word."""
    if not all(map(_is_local, normalizers)):
        return None
    for token in added:
        content = token["content"]
        if any(map(str.isspace, content)) or (token["rstrip"] and content[-1:].isalnum()):
            return None  # it may absorb the space at which a text would be divided
    kinds = [step["type"] for step in splitters]
    if kinds == ["Metaspace"] and splitters[0].get("split", True):
        return f"(?<={_PLAIN})(?= {_PLAIN})"
    if kinds == ["ByteLevel"] and splitters[0].get("use_regex", True):
        return f"(?<={_PLAIN})(?= {_PLAIN})"
    if kinds not in (["BertPreTokenizer"], ["WhitespaceSplit"], ["WhitespaceSplit", "Metaspace"]):
        return None
    pattern = rf"(?<={_PLAIN})(?=[ \n]{_PLAIN})"
    if kinds == ["BertPreTokenizer"] and not any(token["single_word"] for token in added):
        alone, words = _MARKS, _LETTERS
        bert = [step for step in normalizers if step["type"] == "BertNormalizer"]
        if bert and bert[0]["handle_chinese_chars"]:
            alone += _IDEOGRAPHS
        pattern += f"|(?<=[{alone}])(?=[{alone}{words}])|(?<=[{words}])(?=[{alone}])"
    return pattern


def _steps(step: Any, list_name: str) -> list[dict[str, Any]]:
    """Return the steps of a sequence, or the only one."""
    if step is None:
        return []
    return list(step[list_name]) if step["type"] == "Sequence" else [step]


def _is_local(normalizer: dict[str, Any]) -> bool:
    return normalizer["type"] in _LOCAL_NORMALIZERS or (
        normalizer["type"] == "Replace" and normalizer["pattern"] == _SEVERAL_SPACES
    )
