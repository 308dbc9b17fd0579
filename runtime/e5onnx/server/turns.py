"""What waits to be run, whose turn it is, and which texts make up the next run. Knows neither threads nor a model.

A request is cut into batches of texts of like length. Turns go in alternation to the request with the least left to
run, and to the one that is due first: at the moment it would have been done, had it been alone. So a large request
delays a small one by a run of the model, small ones never shut out a large one, and of equal ones the first is done
first, not both of them last. The batch whose turn it is is divided where workers are free; where none is, it is filled
up with batches of others, if running them together is cheaper than one after the other.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..batching import plan_batches
from ..errors import QueueFullError
from ..tokenizer import TokenizedText

_LARGEST_SHARE = 1 / 8
"""Of the queue that one request is counted with, however large it is: it takes turns with the others."""
_FOR_SMALL_ONES = 1 / 4
"""Of the queue that only requests of a single run may use, so that a few large ones do not shut them out."""
_RUN_COST = 64
"""What a run costs beside its tokens, in tokens: 12 tokens take nearly as long as 40. Less is not divided either."""


@dataclass(eq=False)
class Job:
    """A request: its texts, where its vectors `[texts, dimension]` go, and the batches that are left of it."""

    texts: Sequence[TokenizedText]
    normalize: bool
    vectors: NDArray[np.float32]
    done: asyncio.Future[None]
    came: float = 0.0
    due: float = 0.0
    batches: deque[NDArray[np.intp]] = field(default_factory=deque)
    waiting: int = 0
    running: int = 0
    begun: bool = False


@dataclass(frozen=True)
class Share:
    """Texts of one job in a run."""

    job: Job
    rows: NDArray[np.intp]

    def texts(self) -> list[TokenizedText]:
        """Return the texts."""
        return [self.job.texts[row] for row in self.rows]


class Turns:
    """The requests that wait. Not for several threads at a time."""

    def __init__(self, *, max_tokens: int, max_requests: int, token_budget: int) -> None:
        """Begin with nothing.

        Args:
            max_tokens: most tokens that may wait. Of one request an eighth of that counts at most, and a quarter is
                kept for requests of a single run.
            max_requests: most requests of which something may wait.
            token_budget: most tokens of a run, padding included.
        """
        self._max_tokens = max_tokens
        self._max_requests = max_requests
        self._most_of_one = max(1, int(max_tokens * _LARGEST_SHARE))
        self._token_budget = token_budget
        self._jobs: list[Job] = []  # as they came
        self._least_left_first = True

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait to be run."""
        return sum(job.waiting for job in tuple(self._jobs))

    @property
    def waiting_requests(self) -> int:
        """Requests of which something waits to be run."""
        return len(self._jobs)

    def add(self, job: Job, *, now: float, tokens_per_second: float) -> None:
        """Let a job wait for its turn.

        Args:
            job: the job.
            now: what time it is, in seconds.
            tokens_per_second: the speed of late.

        Raises:
            QueueFullError: too much waits already. A request that waits alone is never too much.
        """
        lengths = [len(text.ids) for text in job.texts]
        job.batches.extend(plan_batches(lengths, token_budget=self._token_budget))
        job.waiting = sum(lengths)
        job.came = now
        job.due = now + job.waiting / tokens_per_second
        counted = sum(min(each.waiting, self._most_of_one) for each in (*self._jobs, job))
        share = 1 if job.waiting <= self._token_budget else 1 - _FOR_SMALL_ONES
        if self._jobs and (counted > self._max_tokens * share or len(self._jobs) >= self._max_requests):
            retry_after = max(1, math.ceil(min(each.waiting for each in self._jobs) / tokens_per_second))
            raise QueueFullError(len(self._jobs), self.waiting_tokens, retry_after)
        self._jobs.append(job)

    def drop(self, job: Job) -> None:
        """Forget what waits of a job."""
        job.batches.clear()
        job.waiting = 0
        if job in self._jobs:
            self._jobs.remove(job)

    def take(self, *, free_workers: int = 0) -> list[Share]:
        """Take what is to be run next, beside other workers that are free. There must be something."""
        front = min(self._jobs, key=(lambda job: job.waiting) if self._least_left_first else (lambda job: job.due))
        self._least_left_first = not self._least_left_first
        shares = [self._divided(front, free_workers)] if free_workers else self._filled_up(front)
        for share in shares:
            share.job.running += 1
            share.job.waiting -= sum(len(text.ids) for text in share.texts())
        self._jobs = [job for job in self._jobs if job.batches]
        return shares

    def _divided(self, job: Job, free_workers: int) -> Share:
        """Take a batch of a job, and leave some of it to workers that would have nothing to run."""
        rows = job.batches.popleft()
        others = sum(len(each.batches) for each in self._jobs)
        texts, longest = _shape(Share(job, rows))
        ways = min(free_workers + 1 - others, texts, texts * longest // _RUN_COST)
        if ways > 1:
            rows, rest = np.split(rows, [math.ceil(texts / ways)])
            job.batches.appendleft(rest)
        return Share(job, rows)

    def _filled_up(self, front: Job) -> list[Share]:
        """Take a batch of a job, and what others have that goes well with it."""
        shares = [Share(front, front.batches.popleft())]
        texts, longest = _shape(shares[0])
        for job in self._jobs:
            while job.batches and job.normalize == front.normalize:
                more, their_longest = _shape(Share(job, job.batches[0]))
                together = (texts + more) * max(longest, their_longest)
                if together > min(self._token_budget, texts * longest + more * their_longest + _RUN_COST):
                    break
                shares.append(Share(job, job.batches.popleft()))
                texts, longest = texts + more, max(longest, their_longest)
        return shares


def finished(shares: Sequence[Share]) -> set[Job]:
    """Note that shares have run, and return the jobs of which they were the last."""
    for share in shares:
        share.job.running -= 1
    return {share.job for share in shares if not share.job.batches and not share.job.running}


def _shape(share: Share) -> tuple[int, int]:
    """Return the number of texts and the length of the longest."""
    return len(share.rows), max(len(text.ids) for text in share.texts())
