"""The texts that int8 is calibrated on: which are for fitting and which for measuring, and their token ids."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

_SENTENCE_END = re.compile(r"(?<=[.!?;:]) +")


def split_texts(texts: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return what to calibrate on, and every eighth text, held back to measure on.

    To the texts are added their sentences: short texts are common, and their activations differ from long ones'.

    Example:
        >>> split_texts(["never seen", "One. Two"])
        (['One. Two', 'One.', 'Two'], ['never seen'])
    """
    fitted = [text for position, text in enumerate(texts) if position % 8]
    return _with_sentences(fitted), _with_sentences(texts[::8])


def tokenize_for_calibration(
    texts: Sequence[str], tokenizer: Any, prompts: Mapping[str, str], max_tokens: int
) -> list[NDArray[np.int32]]:
    """Return the token ids of the texts, with the model's prompts in turn, as in use.

    Args:
        texts: what to tokenise.
        tokenizer: the checkpoint's, of transformers.
        prompts: the model's prompts by name; none for a model without.
        max_tokens: longer texts are cut.
    """
    kinds = sorted(set(prompts.values())) or [""]
    prompted = [kinds[position % len(kinds)] + text for position, text in enumerate(texts)]
    ids = tokenizer(prompted, truncation=True, max_length=max_tokens)["input_ids"]
    return [np.array(each, np.int32) for each in ids]


def _with_sentences(texts: Sequence[str]) -> list[str]:
    sentences = [sentence for text in texts for sentence in _SENTENCE_END.split(text)]
    return list(dict.fromkeys([*texts, *sentences]))
