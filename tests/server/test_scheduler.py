"""Requests that wait run together and take turns; too many are refused, and those of clients that left are dropped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e5onnx import Encoder, InferenceError, TokenizedText
from e5onnx.errors import QueueFullError
from e5onnx.server.scheduler import Run, Scheduler
from texts import TEXTS

pytestmark = pytest.mark.anyio


class Gate:
    """An encoder whose runs wait until they are let through, and are noted."""

    def __init__(self, encoder: Encoder, threads: int = 1) -> None:
        self.dimension = encoder.dimension
        self.threads = threads
        self.encoder = encoder
        self.runs: list[list[int]] = []
        self.entered = threading.Semaphore(0)
        self.open = threading.Event()
        self.failure: Exception | None = None

    async def is_entered(self) -> None:
        assert await asyncio.to_thread(self.entered.acquire, timeout=60)

    def encode_tokenized(self, texts: Sequence[TokenizedText], **output: Any) -> Any:
        self.runs.append([len(text.ids) for text in texts])
        self.entered.release()
        self.open.wait(60)
        if self.failure:
            raise self.failure
        return self.encoder.encode_tokenized(texts, **output)


@pytest.fixture
def gate(tiny_encoder: Encoder) -> Gate:
    return Gate(tiny_encoder)


@pytest.fixture
def scheduler(gate: Any) -> Iterator[Scheduler]:
    scheduler = Scheduler(gate, max_waiting_tokens=2000, max_waiting_requests=50)
    yield scheduler
    gate.open.set()
    scheduler.close()


@pytest.fixture
def workers(tiny_encoder: Encoder) -> Iterator[tuple[Scheduler, Gate, Gate]]:
    """A scheduler with two workers, the model that both of them share, and the model for long texts."""
    together: Any = Gate(tiny_encoder, threads=2)
    worker: Any = Gate(tiny_encoder)
    scheduler = Scheduler(together, worker_encoder=worker, max_waiting_tokens=5000, max_waiting_requests=50)
    yield scheduler, worker, together
    for gate in (worker, together):
        gate.open.set()
    scheduler.close()


def texts_of(*lengths: int) -> list[TokenizedText]:
    return [TokenizedText(np.arange(1000, 1000 + length, dtype=np.int32), length) for length in lengths]


async def started(scheduler: Scheduler, texts: list[TokenizedText], normalize: bool = True) -> asyncio.Task[Any]:
    """Ask for vectors, and return as soon as the request waits."""
    task = asyncio.create_task(scheduler.embed(texts, normalize=normalize))
    await asyncio.sleep(0)
    return task


@pytest.mark.parametrize("threads", [1, 2])
def test_vectors_are_the_encoders_whatever_runs_together(tiny_model: Path, tiny_encoder: Encoder, threads: int) -> None:
    runs: list[Run] = []
    scheduler = Scheduler(
        Encoder(tiny_model, threads=threads),
        worker_encoder=tiny_encoder if threads > 1 else None,
        max_waiting_tokens=10**6,
        max_waiting_requests=1000,
        observe=runs.append,
    )
    tokenized = tiny_encoder.tokenizer.tokenize(TEXTS)

    async def requests() -> list[Any]:
        calls = [scheduler.embed(tokenized[i:], normalize=i % 2 == 0) for i in range(len(TEXTS)) for _ in range(5)]
        return await asyncio.gather(*calls)

    answers = asyncio.run(requests())
    scheduler.close()
    for position, answer in enumerate(answers):
        first = position // 5
        expected = tiny_encoder.encode(TEXTS[first:], normalize_embeddings=first % 2 == 0)
        np.testing.assert_allclose(answer, expected, rtol=0, atol=1e-6 * max(1, np.abs(expected).max()))
    assert sum(run.texts for run in runs) == sum(len(answer) for answer in answers)
    assert len(runs) < sum(run.texts for run in runs) / 2


async def test_small_requests_that_wait_run_together(gate: Gate, scheduler: Scheduler) -> None:
    tasks = [await started(scheduler, texts_of(10))]
    await gate.is_entered()  # runs alone: nothing else was there
    tasks += [await started(scheduler, texts_of(length)) for length in (8, 12, 9)]
    gate.open.set()
    await asyncio.gather(*tasks)
    assert [sorted(run) for run in gate.runs] == [[10], [8, 9, 12]]


async def test_a_long_text_is_not_made_to_pad_short_ones(gate: Gate, scheduler: Scheduler) -> None:
    tasks = [await started(scheduler, texts_of(10))]
    await gate.is_entered()
    tasks += [await started(scheduler, texts_of(length)) for length in (400, 8, 9)]
    gate.open.set()
    await asyncio.gather(*tasks)
    assert [sorted(run) for run in gate.runs] == [[10], [8, 9], [400]]


async def test_a_huge_request_and_small_ones_take_turns(gate: Gate, scheduler: Scheduler) -> None:
    finished = []

    async def request(name: str, texts: list[TokenizedText]) -> None:
        await scheduler.embed(texts, normalize=True)
        finished.append(name)

    huge = asyncio.create_task(request("huge", texts_of(*[500] * 20)))
    await gate.is_entered()
    small = [asyncio.create_task(request(f"small {i}", texts_of(20))) for i in range(3)]
    await asyncio.sleep(0)
    gate.open.set()
    await asyncio.gather(huge, *small)
    assert finished[-1] == "huge"
    assert [20, 20, 20] in gate.runs[:3]


async def test_of_equal_requests_the_first_is_done_first(gate: Gate, scheduler: Scheduler) -> None:
    tasks = [await started(scheduler, texts_of(*[500 + i] * 5)) for i in range(3)]
    gate.open.set()
    await asyncio.gather(*tasks)
    lengths = [length for run in gate.runs for length in run]
    assert lengths == sorted(lengths)


async def test_small_requests_do_not_shut_out_one_that_is_due(gate: Gate, scheduler: Scheduler) -> None:
    scheduler._tokens_per_second = 1e9  # whatever came first is due first

    tasks = [await started(scheduler, texts_of(*[500] * 12))]
    await gate.is_entered()
    tasks += [await started(scheduler, texts_of(300 + i)) for i in range(5)]
    gate.open.set()
    await asyncio.gather(*tasks)
    large = [position for position, run in enumerate(gate.runs) if run[0] == 500]
    assert large[:4] == [0, 1, 3, 5] or large[:4] == [0, 2, 4, 6]


async def test_too_many_waiting_requests_are_refused(gate: Gate, scheduler: Scheduler) -> None:
    tasks = [await started(scheduler, texts_of(10))]
    await gate.is_entered()
    tasks += [await started(scheduler, texts_of(10)) for _ in range(50)]
    with pytest.raises(QueueFullError, match="50 requests with 500 tokens are waiting already"):
        await scheduler.embed(texts_of(10), normalize=True)
    gate.open.set()
    await asyncio.gather(*tasks)


async def test_too_much_waiting_is_refused_and_one_large_request_is_not_too_much(
    gate: Gate, scheduler: Scheduler
) -> None:
    tasks = [await started(scheduler, texts_of(*[500] * 10))]  # counted as 250, an eighth
    await gate.is_entered()
    tasks += [await started(scheduler, texts_of(300)) for _ in range(7)]
    with pytest.raises(QueueFullError, match="tokens are waiting already; try again in") as caught:
        await scheduler.embed(texts_of(10), normalize=True)
    assert caught.value.retry_after >= 1
    gate.open.set()
    await asyncio.gather(*tasks)
    assert len(await scheduler.embed(texts_of(10), normalize=True)) == 1
    assert (scheduler.waiting_tokens, scheduler.waiting_requests) == (0, 0)


async def test_what_is_cancelled_is_not_run(gate: Gate, scheduler: Scheduler) -> None:
    first = await started(scheduler, texts_of(10))
    await gate.is_entered()
    gone = await started(scheduler, texts_of(300, 301))
    half_run = await started(scheduler, texts_of(40))
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    gate.open.set()
    await asyncio.gather(first, half_run)
    assert gate.runs == [[10], [40]]
    assert (scheduler.waiting_tokens, scheduler.waiting_requests) == (0, 0)


async def test_a_failure_reaches_those_it_concerns_and_the_thread_lives_on(gate: Gate, scheduler: Scheduler) -> None:
    gate.open.set()
    for failure in (InferenceError("no memory"), KeyError("a defect")):
        gate.failure = failure
        with pytest.raises(type(failure)):
            await scheduler.embed(texts_of(*[500] * 5), normalize=True)
    gate.failure = None
    assert len(await scheduler.embed(texts_of(10), normalize=True)) == 1
    assert (scheduler.waiting_tokens, scheduler.waiting_requests) == (0, 0)


def test_no_texts_give_no_vectors(scheduler: Scheduler) -> None:
    assert asyncio.run(scheduler.embed([], normalize=True)).shape == (0, 48)


async def test_workers_run_side_by_side(workers: tuple[Scheduler, Gate, Gate]) -> None:
    scheduler, worker, together = workers

    tasks = [await started(scheduler, texts_of(300, 301))]
    for _ in range(2):
        await worker.is_entered()  # both are in a run at the same time
    tasks += [await started(scheduler, texts_of(length)) for length in (12, 13, 14)]
    worker.open.set()
    await asyncio.gather(*tasks)
    assert sorted(worker.runs[:2]) == [[300], [301]]
    assert sorted(length for run in worker.runs[2:] + together.runs for length in run) == [12, 13, 14]


async def test_workers_that_are_free_share_a_request(workers: tuple[Scheduler, Gate, Gate]) -> None:
    scheduler, worker, _ = workers

    task = await started(scheduler, texts_of(*[50] * 5))
    for _ in range(2):
        await worker.is_entered()
    worker.open.set()
    await task
    assert sorted(worker.runs) == [[50] * 2, [50] * 3]


async def test_a_long_text_that_is_alone_is_run_by_all_threads(workers: tuple[Scheduler, Gate, Gate]) -> None:
    scheduler, worker, together = workers
    worker.open.set()

    long = await started(scheduler, texts_of(300))
    await together.is_entered()
    await (await started(scheduler, texts_of(10)))
    together.open.set()
    await long
    assert (together.runs, worker.runs) == ([[300]], [[10]])


def test_what_waits_and_fails_is_told(gate: Gate) -> None:
    runs: list[Run] = []
    observed: Any = gate
    scheduler = Scheduler(observed, max_waiting_tokens=2000, max_waiting_requests=50, observe=runs.append)
    gate.open.set()
    asyncio.run(scheduler.embed(texts_of(500, 501, 502), normalize=True))
    gate.failure = InferenceError("no memory")
    with pytest.raises(InferenceError):
        asyncio.run(scheduler.embed(texts_of(10), normalize=True))
    assert scheduler.works
    scheduler.close()
    assert [(len(run.waited), run.failed) for run in runs] == [(1, False), (0, False), (0, True)]
    assert runs[0].waited[0] >= 0


async def test_large_requests_leave_room_for_small_ones(gate: Gate, scheduler: Scheduler) -> None:
    tasks = [await started(scheduler, texts_of(*[500] * 10)) for _ in range(6)]  # 250 each, an eighth
    await gate.is_entered()
    with pytest.raises(QueueFullError):
        await scheduler.embed(texts_of(*[500] * 10), normalize=True)
    tasks.append(await started(scheduler, texts_of(10)))
    gate.open.set()
    await asyncio.gather(*tasks)


async def test_a_request_that_leaves_while_it_is_run_is_not_a_failure(gate: Gate) -> None:
    runs: list[Run] = []
    observed: Any = gate
    scheduler = Scheduler(observed, max_waiting_tokens=2000, max_waiting_requests=50, observe=runs.append)
    failures: list[Any] = []

    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))
    for failure in (None, InferenceError("no memory")):
        gate.open.clear()
        gate.failure = failure
        task = await started(scheduler, texts_of(10))
        await gate.is_entered()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        gate.open.set()
        while len(runs) < (1 if failure is None else 2):
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)  # what the worker left to the loop is done
    gate.failure = None
    assert len(await scheduler.embed(texts_of(10), normalize=True)) == 1
    scheduler.close()
    assert failures == []
    assert [run.failed for run in runs] == [False, True, False]


def test_the_speed_is_that_of_all_workers(tiny_encoder: Encoder) -> None:
    runs: list[Run] = []
    held = threading.Event()

    class First:
        """A model whose first run is held up."""

        dimension, threads = tiny_encoder.dimension, 2
        calls = 0
        entered = threading.Semaphore(0)

        def encode_tokenized(self, texts: Sequence[TokenizedText], **output: Any) -> Any:
            First.calls += 1
            First.entered.release()
            if First.calls == 1:
                held.wait(60)
            return tiny_encoder.encode_tokenized(texts, **output)

    model: Any = First()
    scheduler = Scheduler(
        model, worker_encoder=model, max_waiting_tokens=5000, max_waiting_requests=50, observe=runs.append
    )

    def estimate(before: float, workers: int, run: Run) -> float:
        return before + 0.1 * (workers * run.tokens / run.seconds - before)

    async def requests() -> None:
        first = await started(scheduler, texts_of(300))
        assert await asyncio.to_thread(First.entered.acquire, timeout=60)
        await scheduler.embed(texts_of(40), normalize=True)  # beside the first
        while len(runs) < 1:
            await asyncio.sleep(0.01)
        expected = estimate(1000.0, 2, runs[0])
        assert scheduler._tokens_per_second == pytest.approx(expected)
        held.set()
        await first
        while len(runs) < 2:
            await asyncio.sleep(0.01)
        assert scheduler._tokens_per_second == pytest.approx(estimate(expected, 1, runs[1]))

    try:
        asyncio.run(asyncio.wait_for(requests(), 60))
    finally:
        held.set()
        scheduler.close()
    assert [run.tokens for run in runs] == [40, 300]
