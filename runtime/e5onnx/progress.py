"""Progress for people: bars that count, and steps with their seconds. tqdm draws them; whoever calls decides whether.

Bars work in notebooks, too. tqdm comes with the dependencies of tokenizers.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any

from .errors import MissingDependencyError

Advance = Callable[..., object]
"""Called with what was done since the last call, and perhaps a note to show beside the bar."""
_REFRESH_SECONDS = 0.5


@contextmanager
def bar(show: bool, description: str, total: int | None, unit: str, *, done: int = 0) -> Iterator[Advance]:
    """Show a bar with rate and time left, and yield what advances it.

    Args:
        show: False for none.
        description: what is being done.
        total: how much there is to do; None if that is not known.
        unit: of `total`, such as "text", or "B" for bytes.
        done: what was done before.

    Raises:
        MissingDependencyError: tqdm is not installed.

    Example:
        >>> with bar(False, "Embedding", 2, "text") as advance:
        ...     advance(2)
    """
    if not show:
        yield lambda done, note="": None
        return
    tqdm = _tqdm("a progress bar")
    scale = {"unit_scale": True, "unit_divisor": 1024} if unit == "B" else {}
    with tqdm(total=total, initial=done, desc=description, unit=unit, **scale) as drawn:

        def advance(done: int, note: str = "") -> None:
            if note:
                drawn.set_postfix_str(note, refresh=False)
            drawn.update(done)

        yield advance


class Steps:
    """Writes each step with the seconds since the start; a line below the last one counts its seconds meanwhile.

    Example:
        >>> with Steps(print, live=False) as report:
        ...     report("Reading")
           0.0 s  Reading
    """

    def __init__(self, write: Callable[[str], None], *, live: bool) -> None:
        """Begin to count.

        Args:
            write: writes a finished line.
            live: whether to count the seconds of the last step on standard error.
        """
        self._write = write
        self._start = time.monotonic()
        self._drawn: Any = _tqdm("progress")(total=0, bar_format="{desc}", leave=False) if live else None
        self._step, self._since, self._note = "", self._start, ""
        self._ended = threading.Event()
        self._ticking = threading.Thread(target=self._tick, daemon=True)

    def __call__(self, line: str) -> None:
        """Write a line; one that is indented belongs to the step before it."""
        now = time.monotonic()
        margin = " " * 8 if line.startswith(" ") else f"{now - self._start:6.1f} s"
        if self._drawn is None:
            self._write(f"{margin}  {line}")
            return
        with self._drawn.external_write_mode():
            self._write(f"{margin}  {line}")
        if not line.startswith(" "):
            self._step, self._since, self._note = line, now, ""

    def advance(self, done: int, total: int) -> None:
        """Say how much of the step is done, and about how many seconds are left."""
        note = so_far(self._since, done, total)
        if self._drawn is None:
            self(f"  {note}")
        else:
            self._note = f": {note}"

    def _tick(self) -> None:
        while not self._ended.wait(_REFRESH_SECONDS):
            if self._step:
                self._drawn.set_description_str(
                    f"{time.monotonic() - self._since:6.0f} s  {self._step}{self._note} ..."
                )

    def __enter__(self) -> Steps:
        if self._drawn is not None:
            self._ticking.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._drawn is not None:
            self._ticking.join()
            self._drawn.close()


def so_far(since: float, done: int, total: int) -> str:
    """Return how much is done, and about how many seconds are left of work that began at `since` (monotonic clock)."""
    left = (time.monotonic() - since) / done * (total - done)
    return f"{done} of {total}" + (f", {left:.0f} s left" if done < total else "")


def _tqdm(what: str) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise MissingDependencyError(f"{what} needs tqdm: pip install tqdm") from error
    return tqdm
