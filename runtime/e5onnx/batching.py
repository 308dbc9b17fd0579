"""Which texts run together, and how a batch is padded. Handles token counts and ids, not texts or models.

Texts are sorted by length, so that a batch has little padding. Batches are limited by tokens rather than by texts, so
that memory is bounded and the activations of a run stay in the processor's cache.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

TOKEN_BUDGET = 1024
"""Tokens in one run, padding included. Runs of 512 to 1024 tokens are fastest: their activations fit the L2 cache."""
UNPADDED_TOKEN_BUDGET = 4096
"""The same for an engine that leaves out padding and divides a run by itself: the more texts it has, the more evenly it
divides them among its threads."""


def plan_batches(
    lengths: Sequence[int], *, token_budget: int = TOKEN_BUDGET, max_texts: int | None = None
) -> list[NDArray[np.intp]]:
    """Divide texts into batches of similar length, longest first, so that later runs reuse the memory of the first.

    Args:
        lengths: number of tokens of each text, at least 1 each.
        token_budget: most tokens in a batch, padding included. A longer text gets a batch of its own.
        max_texts: most texts in a batch.

    Returns:
        One array of positions into `lengths` for each batch; every position occurs exactly once.

    Example:
        >>> [batch.tolist() for batch in plan_batches([3, 9, 4, 8], token_budget=18)]
        [[1, 3], [2, 0]]
    """
    order = np.argsort(-np.asarray(lengths, dtype=np.intp), kind="stable")
    batches = []
    start = 0
    while start < len(order):
        texts = max(1, token_budget // lengths[order[start]])
        if max_texts is not None:
            texts = min(texts, max_texts)
        batches.append(order[start : start + texts])
        start += texts
    return batches


def pad_batch(token_ids: Sequence[NDArray[np.int32]]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return `input_ids` and `attention_mask`, both `[batch, sequence]`, padded on the right to the longest text.

    The padding id is always 0, whatever the tokenizer uses: the mask hides it.

    Example:
        >>> ids, mask = pad_batch([np.array([5, 6, 7], np.int32), np.array([8], np.int32)])
        >>> ids.tolist(), mask.tolist()
        ([[5, 6, 7], [8, 0, 0]], [[1, 1, 1], [1, 0, 0]])
    """
    shape = (len(token_ids), max(map(len, token_ids), default=0))
    input_ids = np.zeros(shape, dtype=np.int64)
    attention_mask = np.zeros(shape, dtype=np.int64)
    for row, ids in enumerate(token_ids):
        input_ids[row, : len(ids)] = ids
        attention_mask[row, : len(ids)] = 1
    return input_ids, attention_mask
