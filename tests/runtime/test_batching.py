"""Batches: every text once, within the token budget, longest first; padding that the mask takes off again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from e5onnx.batching import TOKEN_BUDGET, pad_batch, plan_batches

LENGTHS = st.lists(st.integers(1, 600), max_size=80)
BUDGETS = st.integers(1, 2000)
MAX_TEXTS = st.none() | st.integers(1, 20)
TOKEN_IDS = st.lists(st.lists(st.integers(0, 30521), max_size=40), max_size=12)  # 0 is also the padding id

plans = given(lengths=LENGTHS, token_budget=BUDGETS, max_texts=MAX_TEXTS)


def to_lists(batches: Sequence[NDArray[np.intp]]) -> list[list[int]]:
    return [batch.tolist() for batch in batches]


@settings(deadline=None)
@plans
def test_every_position_occurs_once(lengths: list[int], token_budget: int, max_texts: int | None) -> None:
    batches = to_lists(plan_batches(lengths, token_budget=token_budget, max_texts=max_texts))
    assert all(batches), "no batch is empty"
    assert sorted(position for batch in batches for position in batch) == list(range(len(lengths)))


@settings(deadline=None)
@plans
def test_limits_are_kept_and_used(lengths: list[int], token_budget: int, max_texts: int | None) -> None:
    batches = to_lists(plan_batches(lengths, token_budget=token_budget, max_texts=max_texts))
    for number, batch in enumerate(batches):
        longest = max(lengths[position] for position in batch)
        assert len(batch) == 1 or len(batch) * longest <= token_budget
        assert max_texts is None or len(batch) <= max_texts
        if number < len(batches) - 1:  # one more text would have been too many
            assert (len(batch) + 1) * longest > token_budget or len(batch) == max_texts


@settings(deadline=None)
@plans
def test_longest_first_and_equals_in_order(lengths: list[int], token_budget: int, max_texts: int | None) -> None:
    batches = to_lists(plan_batches(lengths, token_budget=token_budget, max_texts=max_texts))
    order = [position for batch in batches for position in batch]
    assert order == sorted(range(len(lengths)), key=lambda position: (-lengths[position], position))


@settings(deadline=None)
@plans
def test_same_lengths_give_the_same_batches(lengths: list[int], token_budget: int, max_texts: int | None) -> None:
    first, second = (plan_batches(list(lengths), token_budget=token_budget, max_texts=max_texts) for _ in range(2))
    assert to_lists(first) == to_lists(second)


def test_no_texts_give_no_batches() -> None:
    assert plan_batches([]) == []


def test_the_budget_by_default() -> None:
    per_batch = TOKEN_BUDGET // 64
    assert [len(batch) for batch in plan_batches([64] * (2 * per_batch + 1))] == [per_batch, per_batch, 1]


def test_a_text_above_the_budget_is_alone() -> None:
    assert to_lists(plan_batches([2, 100, 3], token_budget=10)) == [[1], [2, 0]]


@settings(deadline=None)
@given(TOKEN_IDS)
def test_the_mask_takes_the_padding_off_again(token_ids: list[list[int]]) -> None:
    input_ids, attention_mask = pad_batch([np.array(ids, dtype=np.int32) for ids in token_ids])
    width = max(map(len, token_ids), default=0)
    assert input_ids.shape == attention_mask.shape == (len(token_ids), width)
    assert input_ids.dtype == attention_mask.dtype == np.int64
    assert attention_mask.tolist() == [[1] * len(ids) + [0] * (width - len(ids)) for ids in token_ids]
    assert [row[mask == 1].tolist() for row, mask in zip(input_ids, attention_mask, strict=True)] == token_ids
    assert not input_ids[attention_mask == 0].any(), "the padding id is 0"


@pytest.mark.parametrize(("token_ids", "shape"), [([], (0, 0)), ([[]], (1, 0)), ([[], [7]], (2, 1))])
def test_nothing_to_pad(token_ids: list[list[int]], shape: tuple[int, int]) -> None:
    for array in pad_batch([np.array(ids, dtype=np.int32) for ids in token_ids]):
        assert array.shape == shape
        assert array.dtype == np.int64
