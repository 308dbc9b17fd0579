"""The threads that run the model on what waits; between an event loop and them. Knows token ids, not HTTP.

A worker for each thread that the model may use, and every worker runs batches by itself: threads that share a run wait
for each other wherever one is held up, by the event loop above all. Only a text that is alone is run by all of them
together, which is when that is fastest. Nobody waits for a timer: a worker that is free runs what there is.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from ..batching import TOKEN_BUDGET
from ..cpu import kept_on_processor, processors_for_threads
from ..encoder import Encoder
from ..tokenizer import TokenizedText
from .turns import Job, Share, Turns, finished

_WORKER_TOKEN_BUDGET = 512
"""Tokens in a run on one thread: its activations fit the cache of one processor."""
_SHORT = 128
"""Tokens up to which a run by all threads is over so soon that it is better not to run anything beside it."""
_FEW_WORKERS = 4
"""Up to which short texts are run by all threads, too. Measured with 2; with many, threads gain less than they take."""


@dataclass(frozen=True)
class Run:
    """What one run of the model took, for the metrics; `waited` are the seconds of requests that it is the first of."""

    texts: int
    tokens: int
    padding: int
    seconds: float
    waited: Sequence[float] = ()
    failed: bool = False


@dataclass(frozen=True)
class _Batch:
    """What a worker runs: whose texts, whether with all threads together, and how many workers run then."""

    shares: Sequence[Share]
    together: bool
    running: int
    waited: Sequence[float]

    def texts(self) -> list[TokenizedText]:
        return [text for share in self.shares for text in share.texts()]


class Scheduler:
    """Runs an encoder on the texts of many requests. :meth:`embed` belongs to one event loop."""

    def __init__(
        self,
        encoder: Encoder,
        *,
        worker_encoder: Encoder | None = None,
        max_waiting_tokens: int,
        max_waiting_requests: int,
        observe: Callable[[Run], object] = lambda run: None,
    ) -> None:
        """Start the threads that run the model.

        Args:
            encoder: the model.
            worker_encoder: the same with one thread, to be shared by as many workers as `encoder` has threads. None
                for one worker, which uses `encoder` for everything.
            max_waiting_tokens: most tokens that may wait. Of one request an eighth of that counts at most.
            max_waiting_requests: most requests of which something may wait.
            observe: is told of every run, in a thread that runs the model.
        """
        self._encoder = encoder
        self._worker_encoder = worker_encoder or encoder
        self._observe = observe
        self._workers = 1 if worker_encoder is None else encoder.threads
        self._turns = Turns(
            max_tokens=max_waiting_tokens,
            max_requests=max_waiting_requests,
            token_budget=TOKEN_BUDGET if worker_encoder is None else _WORKER_TOKEN_BUDGET,
        )
        self._tokens_per_second = 1000.0
        self._running = 0  # workers that are in a run
        self._all_taken = False  # a run by all threads together will soon be over
        self._closed = False
        self._changed = threading.Condition()
        self._processors: Sequence[int | None] = processors_for_threads(encoder.threads) or [None] * self._workers
        self._threads = [
            threading.Thread(target=self._work, args=(processor,), name=f"e5onnx-worker-{number}", daemon=True)
            for number, processor in enumerate(self._processors[: self._workers])
        ]
        for thread in self._threads:
            thread.start()

    @property
    def works(self) -> bool:
        """Whether all threads live. One that died of a defect is not replaced: the process should be."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def waiting_tokens(self) -> int:
        """Tokens that wait to be run."""
        return self._turns.waiting_tokens

    @property
    def waiting_requests(self) -> int:
        """Requests of which something waits to be run."""
        return self._turns.waiting_requests

    async def embed(self, texts: Sequence[TokenizedText], *, normalize: bool) -> NDArray[np.float32]:
        """Return the vectors `[texts, dimension]`. If this is cancelled, what was not run yet is dropped.

        Raises:
            QueueFullError: too much waits already.
            InferenceError: the engine failed.
        """
        vectors = np.empty((len(texts), self._encoder.dimension), np.float32)
        if not texts:
            return vectors
        job = Job(texts, normalize, vectors, asyncio.get_running_loop().create_future())
        with self._changed:
            self._turns.add(job, now=time.monotonic(), tokens_per_second=self._tokens_per_second)
            self._changed.notify()
        try:
            await job.done
        finally:
            if job.batches:
                with self._changed:
                    self._turns.drop(job)
        return vectors

    def close(self) -> None:
        """Run what waits, then end the threads."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self, processor: int | None) -> None:
        with kept_on_processor(processor):
            while batch := self._next():
                self._run(batch)

    def _next(self) -> _Batch | None:
        """Wait for a turn, and take it; None at the end."""
        with self._changed:
            while self._all_taken or not (self._turns.waiting_requests or self._closed):
                self._changed.wait()
            if not self._turns.waiting_requests:
                return None
            self._running += 1
            now = time.monotonic()
            shares = self._turns.take(free_workers=self._workers - self._running)
            begun = {share.job for share in shares if not share.job.begun}
            for job in begun:
                job.begun = True
            batch = _Batch(shares, False, self._running, [now - job.came for job in begun])
            if self._turns.waiting_requests:
                self._changed.notify()
            elif self._running == 1 and len(texts := batch.texts()) == 1:
                is_short = len(texts[0].ids) <= _SHORT
                self._all_taken = is_short and self._workers <= _FEW_WORKERS
                batch = replace(batch, together=self._all_taken or not is_short)
            return batch

    def _run(self, batch: _Batch) -> None:
        texts, jobs = batch.texts(), [share.job for share in batch.shares]
        encoder, processor = self._worker_encoder, None
        if batch.together:  # its other threads have the other processors
            encoder, processor = self._encoder, self._processors[0]
        start = time.perf_counter()
        try:
            with kept_on_processor(processor):
                vectors = encoder.encode_tokenized(texts, normalize_embeddings=jobs[0].normalize)
        except Exception as error:  # noqa: BLE001 - for those who asked; the thread lives on for the others
            self._finish(batch, error=error)
            self._observe(replace(_describe(texts, time.perf_counter() - start), failed=True))
            return
        run = replace(_describe(texts, time.perf_counter() - start), waited=batch.waited)
        position = 0
        for share in batch.shares:
            share.job.vectors[share.rows] = vectors[position : position + len(share.rows)]
            position += len(share.rows)
        self._finish(batch)
        speed = batch.running * run.tokens / max(run.seconds, 1e-6)
        self._tokens_per_second += 0.1 * (speed - self._tokens_per_second)
        self._observe(run)

    def _finish(self, batch: _Batch, error: Exception | None = None) -> None:
        """Note that a batch has run, and wake those of whom it was the last."""
        with self._changed:
            self._running -= 1
            if self._all_taken:
                self._all_taken = False
                self._changed.notify_all()
            done = finished(batch.shares)
            if error:
                done = {share.job for share in batch.shares}
                for job in done:
                    self._turns.drop(job)
        for job in done:
            loop = job.done.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, job.done, error)


def _resolve(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():  # given up in the meantime
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


def _describe(texts: Sequence[TokenizedText], seconds: float) -> Run:
    lengths = [len(text.ids) for text in texts]
    tokens = sum(lengths)
    return Run(len(texts), tokens, len(texts) * max(lengths) - tokens, seconds)
