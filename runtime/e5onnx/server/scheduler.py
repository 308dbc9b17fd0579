"""The threads that run the model on the queue. Knows token ids, not HTTP.

There is one worker per thread that the model may use, and each runs batches by itself: threads that share a run wait
for each other whenever something holds one up, above all the event loop. Only a text that is alone is run by all
threads together. A free worker never waits for more texts to arrive: it runs those that are there.
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
from .queue import QueuedRequest, RequestQueue, Share, finish

_WORKER_TOKEN_BUDGET = 512
"""Most tokens in a run on one thread, whose activations then fit the cache of one processor."""


@dataclass(frozen=True)
class Run:
    """One run of the model, for the metrics; `waited` holds the seconds that requests waited if this is their first."""

    texts: int
    tokens: int
    padding: int
    seconds: float
    waited: Sequence[float] = ()
    failed: bool = False


@dataclass(frozen=True)
class _Batch:
    """The next run of a worker: its texts, whether all threads run it together, and how many workers are in a run."""

    shares: Sequence[Share]
    together: bool
    running: int
    waited: Sequence[float]

    def texts(self) -> list[TokenizedText]:
        return [text for share in self.shares for text in share.texts()]


class Scheduler:
    """Runs an encoder on the texts of many requests. Call :meth:`embed` from one event loop only."""

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
            worker_encoder: the same model with one thread, shared by as many workers as `encoder` has threads. None
                for a single worker that uses `encoder` for everything.
            max_waiting_tokens: most tokens that may wait; see :class:`RequestQueue`.
            max_waiting_requests: most requests that may wait.
            observe: called after every run, in a thread that runs the model.
        """
        self._encoder = encoder
        self._worker_encoder = worker_encoder or encoder
        self._observe = observe
        self._workers = 1 if worker_encoder is None else encoder.threads
        self._queue = RequestQueue(
            max_tokens=max_waiting_tokens,
            max_requests=max_waiting_requests,
            token_budget=TOKEN_BUDGET if worker_encoder is None else _WORKER_TOKEN_BUDGET,
        )
        self._tokens_per_second = 1000.0
        self._running = 0  # workers that are in a run
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
        """Whether all threads are alive. One that died of a bug is not restarted: the process should be."""
        return all(thread.is_alive() for thread in self._threads)

    @property
    def waiting_tokens(self) -> int:
        """Number of tokens that wait."""
        return self._queue.waiting_tokens

    @property
    def waiting_requests(self) -> int:
        """Number of requests with texts that wait."""
        return self._queue.waiting_requests

    async def embed(self, texts: Sequence[TokenizedText], *, normalize: bool) -> NDArray[np.float32]:
        """Return the vectors `[texts, dimension]`. If this is cancelled, texts that have not run are dropped.

        Raises:
            QueueFullError: too much waits already.
            InferenceError: the engine failed.
        """
        vectors = np.empty((len(texts), self._encoder.dimension), np.float32)
        if not texts:
            return vectors
        request = QueuedRequest(texts, normalize, vectors, asyncio.get_running_loop().create_future())
        with self._changed:
            self._queue.add(request, now=time.monotonic(), tokens_per_second=self._tokens_per_second)
            self._changed.notify()
        try:
            await request.done
        finally:
            if request.batches:
                with self._changed:
                    self._queue.drop(request)
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
        """Wait for the next run and take it; None at the end."""
        with self._changed:
            while not (self._queue.waiting_requests or self._closed):
                self._changed.wait()
            if not self._queue.waiting_requests:
                return None
            self._running += 1
            now = time.monotonic()
            shares = self._queue.take(free_workers=self._workers - self._running)
            first = {share.request for share in shares if not share.request.started}
            for request in first:
                request.started = True
            if self._queue.waiting_requests:
                self._changed.notify()
            texts = sum(len(share.rows) for share in shares)
            alone = self._running == 1 and not self._queue.waiting_requests and texts == 1
            waited = [now - request.arrived for request in first]
            return _Batch(shares, alone, self._running, waited)

    def _run(self, batch: _Batch) -> None:
        texts = batch.texts()
        encoder, processor = self._worker_encoder, None
        if batch.together:  # the encoder keeps its other threads on the other processors
            encoder, processor = self._encoder, self._processors[0]
        start = time.perf_counter()
        try:
            with kept_on_processor(processor):
                vectors = (
                    encoder.encode_tokenized(texts, normalize_embeddings=True)
                    if batch.shares[0].request.normalize
                    else encoder.encode_tokenized(texts, output_value="pooled_embedding")
                )
        except Exception as error:  # noqa: BLE001 - it goes to the requests that failed; the thread serves the others
            self._finish(batch, error=error)
            self._observe(replace(_describe(texts, time.perf_counter() - start), failed=True))
            return
        run = replace(_describe(texts, time.perf_counter() - start), waited=batch.waited)
        position = 0
        for share in batch.shares:
            share.request.vectors[share.rows] = vectors[position : position + len(share.rows)]
            position += len(share.rows)
        self._finish(batch)
        speed = batch.running * run.tokens / max(run.seconds, 1e-6)
        self._tokens_per_second += 0.1 * (speed - self._tokens_per_second)
        self._observe(run)

    def _finish(self, batch: _Batch, error: Exception | None = None) -> None:
        """Note that a batch has run, and resolve the requests that are now complete, or all of them if it failed."""
        with self._changed:
            self._running -= 1
            done = finish(batch.shares)
            if error:
                done = {share.request for share in batch.shares}
                for request in done:
                    self._queue.drop(request)
        for request in done:
            loop = request.done.get_loop()
            if not loop.is_closed():
                loop.call_soon_threadsafe(_resolve, request.done, error)


def _resolve(done: asyncio.Future[None], error: Exception | None) -> None:
    if done.done():  # cancelled meanwhile
        return
    if error is None:
        done.set_result(None)
    else:
        done.set_exception(error)


def _describe(texts: Sequence[TokenizedText], seconds: float) -> Run:
    lengths = [len(text.ids) for text in texts]
    tokens = sum(lengths)
    return Run(len(texts), tokens, len(texts) * max(lengths) - tokens, seconds)
