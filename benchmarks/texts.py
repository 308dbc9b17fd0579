"""Real questions and passages of chosen lengths, from the evaluation data beside the checkout."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

from e5onnx import Tokenizer

from .environments import REPOSITORY

_DATA = REPOSITORY.parent / "shared/data"
_PASSAGES = _DATA / "passages/mixed_open_licence.jsonl"
_QUERIES = _DATA / "queries/nq_open_dev.tsv"


def require_data() -> None:
    """End the program with exit code 0 and a message where the data is absent: it is not part of the project."""
    missing = [str(path) for path in (_PASSAGES, _QUERIES) if not path.is_file()]
    if missing:
        sys.stderr.write(f"skipped: the evaluation data is not there ({', '.join(missing)})\n")
        sys.exit(0)


def short_passages(number: int = 96) -> list[str]:
    """Passages of 20 to 150 tokens, as on the web: the first ones of the file, which is in random order."""
    return [text for text, tokens in _passages() if 20 <= tokens <= 150][:number]


def mixed_passages(number: int = 40) -> list[str]:
    """Passages of 8 to 512 tokens, evenly spread over the lengths, in the file's random order."""
    fitting = [(text, tokens) for text, tokens in _passages() if 8 <= tokens <= 512]
    by_length = np.argsort([tokens for _, tokens in fitting], kind="stable")
    chosen = by_length[np.linspace(0, len(fitting) - 1, number).round().astype(int)]
    return [fitting[position][0] for position in sorted(chosen)]


def passages_of(tokens: int, number: int, tokenizer: Tokenizer) -> list[str]:
    """Passages cut at a word so that they have `tokens` tokens with their prefix, or up to three fewer."""
    texts: list[str] = []
    for text, length in _passages():
        if len(texts) == number:
            break
        words = text.split()
        if length < tokens:
            continue
        low, high = 0, len(words)
        while low < high:  # the largest number of words that fits
            middle = (low + high + 1) // 2
            fits = _count(" ".join(words[:middle]), tokenizer) <= tokens
            low, high = (middle, high) if fits else (low, middle - 1)
        cut = " ".join(words[:low])
        if _count(cut, tokenizer) >= tokens - 3:
            texts.append(cut)
    return texts


def queries(number: int) -> list[str]:
    """Real questions, the first of the file."""
    lines = _QUERIES.read_text(encoding="utf-8").splitlines()[:number]
    return [line.split("\t", 1)[1] for line in lines]


def token_count(texts: list[str], model: Path) -> int:
    """Tokens that the model sees: with prefix and special tokens, cut at its maximum."""
    return sum(min(tokens, 512) for tokens in Tokenizer(model).count_tokens(texts, prompt="passage: "))


def _passages() -> list[tuple[str, int]]:
    with _PASSAGES.open(encoding="utf-8") as lines:
        return [(row["text"], row["tokens"]) for row in map(json.loads, lines)]


def _count(text: str, tokenizer: Tokenizer) -> int:
    return tokenizer.count_tokens(text, prompt="passage: ")
