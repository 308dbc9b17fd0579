"""Every text that waits is run exactly once, in runs within the budget, whatever comes and goes meanwhile."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from e5onnx import TokenizedText
from e5onnx.errors import QueueFullError
from e5onnx.server.queue import QueuedRequest, RequestQueue, finish

BUDGET = 200
REQUESTS = st.tuples(st.just("add"), st.lists(st.integers(1, 120), min_size=1, max_size=30), st.booleans())
STEPS = st.lists(
    st.one_of(REQUESTS, st.tuples(st.just("take"), st.integers(0, 4)), st.tuples(st.just("drop"), st.integers(0, 9))),
    max_size=60,
)


def request_of(lengths: list[int], normalize: bool) -> QueuedRequest:
    texts = [TokenizedText(np.zeros(length, np.int32), length) for length in lengths]
    nobody: Any = None  # waits for the vectors
    return QueuedRequest(texts, normalize, np.empty((len(texts), 1), np.float32), nobody)


@given(steps=STEPS)
@example(steps=[("add", [10], True), ("add", [10], False)])  # which go well together, but for the normalisation
def test_every_text_is_run_once_or_dropped_with_its_request(steps: list[tuple[Any, ...]]) -> None:
    queue = RequestQueue(max_tokens=3000, max_requests=8, token_budget=BUDGET)
    requests: list[QueuedRequest] = []
    runs: Counter[tuple[int, int]] = Counter()
    dropped: set[int] = set()
    done: set[QueuedRequest] = set()

    def take(free_workers: int) -> None:
        waiting = {number: request.waiting_tokens for number, request in enumerate(requests)}
        shares = queue.take(free_workers=free_workers)
        lengths = [len(text.ids) for share in shares for text in share.texts()]
        assert len({share.request.normalize for share in shares}) == 1
        assert len(lengths) == 1 or len(lengths) * max(lengths) <= BUDGET
        assert not free_workers or len(shares) == 1
        runs.update((requests.index(share.request), int(row)) for share in shares for row in share.rows)
        assert sum(waiting.values()) - sum(request.waiting_tokens for request in requests) == sum(lengths)
        done.update(finish(shares))

    for number, (step, *arguments) in enumerate(steps):
        if step == "add":
            request = request_of(arguments[0], arguments[1])
            try:
                queue.add(request, now=float(number), tokens_per_second=100.0)
            except QueueFullError:
                assert queue.waiting_requests == 8 or queue.waiting_tokens > 3000 * 3 / 4 - 3000 / 8
            else:
                requests.append(request)
        elif step == "take" and queue.waiting_requests:
            take(*arguments)
        elif step == "drop" and arguments[0] < len(requests):
            dropped.add(arguments[0])
            queue.drop(requests[arguments[0]])
        assert queue.waiting_tokens == sum(request.waiting_tokens for request in requests)
    while queue.waiting_requests:
        take(0)
    assert set(runs.values()) <= {1}
    for number, request in enumerate(requests):
        if number not in dropped:
            assert {row for of, row in runs if of == number} == set(range(len(request.texts)))
            assert request in done


@pytest.mark.parametrize(("free", "sizes"), [(1, [10]), (2, [5]), (3, [4])])
def test_a_batch_is_left_whole_where_others_have_one_for_every_free_worker(free: int, sizes: list[int]) -> None:
    queue = RequestQueue(max_tokens=10**6, max_requests=8, token_budget=500)
    first, second = request_of([50] * 10, True), request_of([499], True)
    for number, request in enumerate((first, second)):
        queue.add(request, now=0.0, tokens_per_second=10.0**number)
    queue._least_left_first = False  # the first is due first, or so slow a server would have it
    first.due = 0.0
    assert [len(share.rows) for share in queue.take(free_workers=free)] == sizes


@pytest.mark.parametrize(("speed", "seconds"), [(100.0, 3), (250.0, 1), (249.0, 2), (1e9, 1)])
def test_whoever_is_refused_is_told_when_the_least_of_what_waits_will_have_run(speed: float, seconds: int) -> None:
    queue = RequestQueue(max_tokens=10**6, max_requests=2, token_budget=500)
    for lengths in ([100, 150], [330]):
        queue.add(request_of(lengths, True), now=0.0, tokens_per_second=speed)
    with pytest.raises(
        QueueFullError, match=f"2 requests with 580 tokens are waiting already; .* {seconds} s"
    ) as caught:
        queue.add(request_of([10], True), now=0.0, tokens_per_second=speed)
    assert caught.value.retry_after == seconds


def test_a_request_that_waits_alone_is_never_refused() -> None:
    queue = RequestQueue(max_tokens=1, max_requests=1, token_budget=500)
    queue.add(request_of([400] * 3, True), now=0.0, tokens_per_second=100.0)
    with pytest.raises(QueueFullError):
        queue.add(request_of([400], True), now=0.0, tokens_per_second=100.0)


@given(lengths=st.lists(st.integers(1, 120), min_size=1, max_size=30), workers=st.integers(2, 8))
def test_a_request_that_is_alone_is_divided_among_free_workers(lengths: list[int], workers: int) -> None:
    queue = RequestQueue(max_tokens=10**6, max_requests=8, token_budget=10**6)  # one batch, but for those who are free
    queue.add(request_of(lengths, True), now=0.0, tokens_per_second=100.0)
    sizes: list[int] = []
    while queue.waiting_requests:
        (share,) = queue.take(free_workers=max(0, workers - 1 - len(sizes)))
        sizes.append(len(share.rows))
    assert len(sizes) <= workers
    if min(lengths) * (len(lengths) // workers) >= 64:
        assert len(sizes) == workers
        assert max(sizes) - min(sizes) <= 1
