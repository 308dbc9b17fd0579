"""Texts become tokens beside the event loop, piece by piece, so that nobody waits for somebody else's long texts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Tokens = TypeVar("Tokens")
_INLINE_CHARACTERS = 1_000
"""Texts up to this are tokenised in the event loop, in half a millisecond: requests that come together add up."""
_TEXT_CHARACTERS = 50
"""What a text costs beside its characters, in characters."""
_PIECE_CHARACTERS = 64_000
"""Some 30 ms of work. Requests of no more have a thread of their own, beside that of larger ones."""


class Tokenizing:
    """Two threads: one for requests of a piece, and one in which the pieces of larger requests take turns."""

    def __init__(self) -> None:
        """Start threads when there is something to do."""
        self._small, self._large = (ThreadPoolExecutor(1, thread_name_prefix="e5onnx-tokenize") for _ in range(2))

    async def run(
        self,
        texts: Sequence[str],
        tokenize: Callable[[Sequence[str], int], list[Tokens]],
        check: Callable[[list[Tokens]], object] = lambda tokens: None,
    ) -> list[Tokens]:
        """Return what a function makes of texts. If this is cancelled, it ends with the piece that it is at.

        Args:
            texts: the texts.
            tokenize: gets some of the texts, and the position of the first.
            check: gets what was made of them, in the event loop; may raise an error.
        """
        cost = sum(map(_cost, texts))
        if cost <= _INLINE_CHARACTERS:
            check(done := tokenize(texts, 0))
            return done
        thread = self._small if cost <= _PIECE_CHARACTERS else self._large
        done = []
        for piece in _pieces(texts):
            more = await asyncio.get_running_loop().run_in_executor(thread, tokenize, piece, len(done))
            check(more)
            done += more
        return done

    def close(self) -> None:
        """End the threads."""
        for thread in (self._small, self._large):
            thread.shutdown(wait=False, cancel_futures=True)


def _cost(text: str) -> int:
    return len(text) + _TEXT_CHARACTERS


def _pieces(texts: Sequence[str]) -> Iterator[Sequence[str]]:
    """Yield consecutive texts of about as much cost as a piece has."""
    start = cost = 0
    for end, text in enumerate(texts, 1):
        cost += _cost(text)
        if cost >= _PIECE_CHARACTERS or end == len(texts):
            yield texts[start:end]
            start, cost = end, 0
