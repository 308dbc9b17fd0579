"""The queue of requests: whose turn it is, and which texts make up the next run. Knows neither threads nor a model.

A request is divided into batches of texts of similar length. Turns alternate between the request with the least left to
run and the one that is due first, that is, would have finished first if each had run alone. So a large request delays a
small one by a single run, small requests never starve a large one, and equal requests finish in order. If workers are
free, they share the next batch. If not, batches of other requests join it where one run is cheaper than several.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from operator import attrgetter

import numpy as np
from numpy.typing import NDArray

from ..batching import plan_batches
from ..errors import QueueFullError
from ..tokenizer import TokenizedText

_LARGEST_SHARE = 1 / 8
"""Most of the queue that one request counts for, however large it is: it takes turns with the others."""
_FOR_SMALL_ONES = 1 / 4
"""Part of the queue that only requests of a single run may use, so that a few large ones do not shut them out."""
_RUN_COST = 64
"""Fixed cost of a run, in tokens: 12 tokens take nearly as long as 40. A batch is not divided into less than this."""


@dataclass(eq=False)
class QueuedRequest:
    """A request: its texts, the array for its vectors `[texts, dimension]`, and the batches that still wait."""

    texts: Sequence[TokenizedText]
    normalize: bool
    vectors: NDArray[np.float32]
    done: asyncio.Future[None]
    arrived: float = 0.0
    due: float = 0.0
    batches: deque[NDArray[np.intp]] = field(default_factory=deque)
    waiting_tokens: int = 0
    running: int = 0
    started: bool = False


@dataclass(frozen=True)
class Share:
    """The texts of one request in a run."""

    request: QueuedRequest
    rows: NDArray[np.intp]

    def texts(self) -> list[TokenizedText]:
        """Return the texts."""
        return [self.request.texts[row] for row in self.rows]


class RequestQueue:
    """The requests that wait. One thread may use it at a time."""

    def __init__(self, *, max_tokens: int, max_requests: int, token_budget: int) -> None:
        """Create an empty queue.

        Args:
            max_tokens: most tokens that may wait. One request counts for at most an eighth of them, and a quarter is
                kept for requests of a single run.
            max_requests: most requests that may wait.
            token_budget: most tokens of a run, padding included.
        """
        self._max_tokens = max_tokens
        self._max_requests = max_requests
        self._most_of_one = max(1, int(max_tokens * _LARGEST_SHARE))
        self._token_budget = token_budget
        self._requests: list[QueuedRequest] = []  # in order of arrival
        self._least_left_first = True

    @property
    def waiting_tokens(self) -> int:
        """Number of tokens that wait."""
        return sum(request.waiting_tokens for request in tuple(self._requests))

    @property
    def waiting_requests(self) -> int:
        """Number of requests with texts that wait."""
        return len(self._requests)

    def add(self, request: QueuedRequest, *, now: float, tokens_per_second: float) -> None:
        """Add a request.

        Args:
            request: the request.
            now: the time, in seconds.
            tokens_per_second: the recent speed.

        Raises:
            QueueFullError: too much waits already. An empty queue takes every request.
        """
        lengths = [len(text.ids) for text in request.texts]
        request.batches.extend(plan_batches(lengths, token_budget=self._token_budget))
        request.waiting_tokens = sum(lengths)
        request.arrived = now
        request.due = now + request.waiting_tokens / tokens_per_second
        counted = sum(min(each.waiting_tokens, self._most_of_one) for each in (*self._requests, request))
        share = 1 if request.waiting_tokens <= self._token_budget else 1 - _FOR_SMALL_ONES
        if self._requests and (counted > self._max_tokens * share or len(self._requests) >= self._max_requests):
            retry_after = max(1, math.ceil(min(each.waiting_tokens for each in self._requests) / tokens_per_second))
            raise QueueFullError(len(self._requests), self.waiting_tokens, retry_after)
        self._requests.append(request)

    def drop(self, request: QueuedRequest) -> None:
        """Drop what still waits of a request."""
        request.batches.clear()
        request.waiting_tokens = 0
        if request in self._requests:
            self._requests.remove(request)

    def take(self, *, free_workers: int = 0) -> list[Share]:
        """Take the texts of the next run from a queue that is not empty; `free_workers` can run others meanwhile."""
        front = min(self._requests, key=attrgetter("waiting_tokens" if self._least_left_first else "due"))
        self._least_left_first = not self._least_left_first
        shares = [self._divided(front, free_workers)] if free_workers else self._filled_up(front)
        for share in shares:
            share.request.running += 1
            share.request.waiting_tokens -= sum(len(text.ids) for text in share.texts())
        self._requests = [request for request in self._requests if request.batches]
        return shares

    def _divided(self, request: QueuedRequest, free_workers: int) -> Share:
        """Take a batch, but leave a part of it to each worker that would have nothing to run."""
        rows = request.batches.popleft()
        others = sum(len(each.batches) for each in self._requests)
        texts, longest = _shape(Share(request, rows))
        ways = min(free_workers + 1 - others, texts, texts * longest // _RUN_COST)
        if ways > 1:
            rows, rest = np.split(rows, [math.ceil(texts / ways)])
            request.batches.appendleft(rest)
        return Share(request, rows)

    def _filled_up(self, front: QueuedRequest) -> list[Share]:
        """Take a batch, and batches of other requests that are cheaper to run with it than alone."""
        shares = [Share(front, front.batches.popleft())]
        texts, longest = _shape(shares[0])
        for request in self._requests:
            while request.batches and request.normalize == front.normalize:
                more, their_longest = _shape(Share(request, request.batches[0]))
                together = (texts + more) * max(longest, their_longest)
                if together > min(self._token_budget, texts * longest + more * their_longest + _RUN_COST):
                    break
                shares.append(Share(request, request.batches.popleft()))
                texts, longest = texts + more, max(longest, their_longest)
        return shares


def finish(shares: Sequence[Share]) -> set[QueuedRequest]:
    """Note that shares have run, and return the requests that are now complete."""
    for share in shares:
        share.request.running -= 1
    return {share.request for share in shares if not share.request.batches and not share.request.running}


def _shape(share: Share) -> tuple[int, int]:
    """Return the number of texts and the tokens of the longest."""
    return len(share.rows), max(len(text.ids) for text in share.texts())
