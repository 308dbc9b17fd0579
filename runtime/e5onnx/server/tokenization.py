"""Tokenisation beside the event loop and piece by piece, so that no request waits for the long texts of another."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Tokens = TypeVar("Tokens")
_TEXT_CHARACTERS = 50
"""Fixed cost of a text, in characters."""
_PIECE_CHARACTERS = 64_000
"""Cost of a piece, some 30 ms of work."""


class Tokenization:
    """Two threads: one for requests of a single piece, one in which the pieces of larger requests take turns."""

    def __init__(self) -> None:
        """Start threads once there is work."""
        self._small, self._large = (ThreadPoolExecutor(1, thread_name_prefix="e5onnx-tokenize") for _ in range(2))

    async def run(
        self,
        texts: Sequence[str],
        tokenize: Callable[[Sequence[str], int], list[Tokens]],
        check: Callable[[list[Tokens]], object] = lambda tokens: None,
    ) -> list[Tokens]:
        """Return what `tokenize` makes of texts. If this is cancelled, it stops after the current piece.

        Args:
            texts: the texts.
            tokenize: gets a piece, and the position of its first text.
            check: gets the tokens of a piece, in the event loop; may raise an error.
        """
        thread = self._small if sum(map(_cost, texts)) <= _PIECE_CHARACTERS else self._large
        done: list[Tokens] = []
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
    """Yield consecutive texts that together cost about a piece."""
    start = cost = 0
    for end, text in enumerate(texts, 1):
        cost += _cost(text)
        if cost >= _PIECE_CHARACTERS or end == len(texts):
            yield texts[start:end]
            start, cost = end, 0
