"""Splits texts into those that int8 is calibrated on and those it is measured on, and tokenizes them."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SENTENCE_END = re.compile(r"(?<=[.!?;:]) +")


def split_texts(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the texts to calibrate on, and every eighth text, held back for measuring.

    Both include the sentences of their texts: short texts are common, and their activations differ from long ones.

    Example:
        >>> split_texts(["never seen", "One. Two"])
        (['One. Two', 'One.', 'Two'], ['never seen'])
    """
    fitted = [text for position, text in enumerate(texts) if position % 8]
    return _with_sentences(fitted), _with_sentences(texts[::8])


def tokenize_for_calibration(
    texts: Sequence[str], tokenizer: Any, prompts: Mapping[str, str], max_tokens: int
) -> list[NDArray[np.int32]]:
    """Return the token ids of the texts, each with one of the model's prompts in turn.

    Args:
        texts: the texts.
        tokenizer: the checkpoint's tokenizer in transformers.
        prompts: the model's prompts by name; may be empty.
        max_tokens: longer texts are cut.
    """
    kinds = sorted(set(prompts.values())) or [""]
    prompted = [kinds[position % len(kinds)] + text for position, text in enumerate(texts)]
    ids = tokenizer(prompted, truncation=True, max_length=max_tokens)["input_ids"]
    return [np.array(each, np.int32) for each in ids]


def _with_sentences(texts: Sequence[str]) -> list[str]:
    sentences = [sentence for text in texts for sentence in _SENTENCE_END.split(text)]
    return list(dict.fromkeys([*texts, *sentences]))
