"""Requests that wait are run together under the token budget, and take turns. Knows token ids, not HTTP.

One thread runs the model, since one run uses all the processors that the encoder may. Nobody waits for a timer: when
the model is free it runs what there is. A request is cut into batches as :meth:`Encoder.encode` would cut it; a batch
of the request whose turn it is is filled up with batches of others where running them together is cheaper than one
after the other. Turns go in alternation to the request with the least left to run, and to the one that is due first:
at the moment it would have been done, had it been alone. So a large request delays a small one by a run of the model,
small ones never shut out a large one, and of equal ones the first is done first, not both of them last.
"""

from __future__ import annotations

import asyncio
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from ..batching import TOKEN_BUDGET, plan_batches
from ..cpu import run_beside_threads
from ..encoder import Encoder
from ..errors import E5OnnxError
from ..tokenizer import TokenizedText

_LARGEST_SHARE = 1 / 8
"""Of the queue that one request is counted with, however large it is: it takes turns, so it shuts nobody out."""
_RUN_COST = 64
"""What a run costs beside its tokens, in tokens: 12 tokens take nearly as long as 40."""


class QueueFullError(E5OnnxError, RuntimeError):
    """Too much is waiting already.

    Attributes:
        retry_after: seconds until what waits now will have been run, at the speed of late.
    """

    def __init__(self, requests: int, tokens: int, retry_after: float) -> None:
        waiting = f"{requests:,} requests with {tokens:,} tokens are waiting already"
        super().__init__(f"{waiting}; try again in {retry_after:.0f} s")
        self.retry_after = retry_after


@dataclass(frozen=True)
class Run:
    """What one run of the model took: for the metrics."""

    texts: int
    tokens: int
    padding: int
    seconds: float


@dataclass(eq=False)
class _Job:
    """A request: its texts, the batches that are left of it, and where its vectors go."""

    texts: Sequence[TokenizedText]
    normalize: bool
    vectors: NDArray[np.float32]
    done: asyncio.Future[None]
    due: float = 0.0
    batches: deque[NDArray[np.intp]] = field(default_factory=deque)
    waiting: int = 0
    running: int = 0


@dataclass(frozen=True)
class _Share:
    """Texts of one job in a batch."""

    job: _Job
    rows: NDArray[np.intp]

    def texts(self) -> list[TokenizedText]:
        return [self.job.texts[row] for row in self.rows]


class Scheduler:
    """Runs an encoder on the texts of many requests. :meth:`embed` belongs to one event loop."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        max_waiting_tokens: int,
        max_waiting_requests: int,
        observe: Callable[[Run], object] = lambda run: None,
    ) -> None:
        """Start the thread that runs the model.

        Args:
            encoder: the model.
            max_waiting_tokens: most tokens that may wait. Of one request an eighth of that counts at most.
            max_waiting_requests: most requests of which something may wait.
            observe: is told of every run, in the thread that runs the model.
        """
        self._encoder = encoder
        self._max_waiting_tokens = max_waiting_tokens
        self._max_waiting_requests = max_waiting_requests
        self._most_of_one = max(1, int(max_waiting_tokens * _LARGEST_SHARE))
        self._observe = observe
        self._jobs: list[_Job] = []  # as they came
        self._tokens_per_second = 1000.0
        self._least_left_first = True
        self._closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._work, name="e5onnx-scheduler", daemon=True)
        self._thread.start()

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait to be run."""
        return sum(job.waiting for job in tuple(self._jobs))

    @property
    def waiting_requests(self) -> int:
        """Requests of which something waits to be run."""
        return len(self._jobs)

    async def embed(self, texts: Sequence[TokenizedText], *, normalize: bool) -> NDArray[np.float32]:
        """Return the vectors `[texts, dimension]`. If this is cancelled, what was not run yet is dropped.

        Raises:
            QueueFullError: too much waits already.
            InferenceError: the engine failed.
        """
        loop = asyncio.get_running_loop()
        vectors = np.empty((len(texts), self._encoder.dimension), np.float32)
        if not texts:
            return vectors
        job = _Job(texts, normalize, vectors, loop.create_future())
        job.batches.extend(plan_batches([len(text.ids) for text in texts]))
        job.waiting = sum(len(text.ids) for text in texts)
        job.due = time.monotonic() + job.waiting / self._tokens_per_second
        with self._changed:
            counted = sum(min(each.waiting, self._most_of_one) for each in (*self._jobs, job))
            if counted > self._max_waiting_tokens or len(self._jobs) >= self._max_waiting_requests:
                tokens = self.waiting_tokens
                retry_after = max(1, math.ceil(tokens / self._tokens_per_second))
                raise QueueFullError(len(self._jobs), tokens, retry_after)
            self._jobs.append(job)
            self._changed.notify()
        try:
            await job.done
        except asyncio.CancelledError:
            self._drop(job)
            raise
        return vectors

    def close(self) -> None:
        """Run what waits, then end the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _drop(self, job: _Job) -> None:
        with self._changed:
            job.batches.clear()
            job.waiting = 0
            if job in self._jobs:
                self._jobs.remove(job)

    def _work(self) -> None:
        run_beside_threads(self._encoder.threads)
        while True:
            with self._changed:
                while not self._jobs and not self._closed:
                    self._changed.wait()
                if not self._jobs:
                    return
                shares = self._next_batch()
            texts = [text for share in shares for text in share.texts()]
            start = time.perf_counter()
            try:
                vectors = self._encoder.encode_tokenized(texts, normalize_embeddings=shares[0].job.normalize)
            except Exception as error:  # noqa: BLE001 - for those who asked; the thread lives on for the others
                self._finish(shares, error=error)
                continue
            seconds = time.perf_counter() - start
            position = 0
            for share in shares:
                share.job.vectors[share.rows] = vectors[position : position + len(share.rows)]
                position += len(share.rows)
            run = _describe(texts, seconds)
            self._tokens_per_second += 0.1 * (run.tokens / max(seconds, 1e-6) - self._tokens_per_second)
            self._observe(run)
            self._finish(shares)

    def _next_batch(self) -> list[_Share]:
        """Take a batch of the job whose turn it is, and what others have that goes well with it."""
        front = min(self._jobs, key=(lambda job: job.waiting) if self._least_left_first else (lambda job: job.due))
        self._least_left_first = not self._least_left_first
        shares = [_Share(front, front.batches.popleft())]
        texts, longest = _shape(shares[0])
        for job in self._jobs:
            while job.batches and job.normalize == front.normalize:
                more, their_longest = _shape(_Share(job, job.batches[0]))
                together = (texts + more) * max(longest, their_longest)
                if together > min(TOKEN_BUDGET, texts * longest + more * their_longest + _RUN_COST):
                    break
                shares.append(_Share(job, job.batches.popleft()))
                texts, longest = texts + more, max(longest, their_longest)
        for share in shares:
            share.job.running += 1
            share.job.waiting -= sum(len(text.ids) for text in share.texts())
        self._jobs = [job for job in self._jobs if job.batches]
        return shares

    def _finish(self, shares: Sequence[_Share], error: Exception | None = None) -> None:
        """Note that batches have run, and wake those of whom that was the last."""
        with self._changed:
            for share in shares:
                share.job.running -= 1
            finished = {share.job for share in shares if not share.job.batches and not share.job.running}
        for job in {share.job for share in shares} if error else finished:
            if error:
                self._drop(job)
            loop = job.done.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, job.done, error)


def _resolve(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():  # cancelled in the meantime
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


def _shape(share: _Share) -> tuple[int, int]:
    """Return the number of texts and the length of the longest."""
    return len(share.rows), max(len(text.ids) for text in share.texts())


def _describe(texts: Sequence[TokenizedText], seconds: float) -> Run:
    lengths = [len(text.ids) for text in texts]
    tokens = sum(lengths)
    return Run(len(texts), tokens, len(texts) * max(lengths) - tokens, seconds)
