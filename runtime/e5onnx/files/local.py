"""One machine: a thread reads and tokenises the next part, and another writes the last one, while the model runs."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal, NamedTuple, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from ..encoder import Encoder
from ..errors import E5OnnxError, TextTooLongError
from ..tokenizer import TokenizedText
from .inputs import InputFile
from .job import Done, Settings, part_name
from .outputs import write_part
from .plan import Part
from .rows import RowReader
from .texts import Reject, tokenized

OnError = Literal["stop", "skip"]
Item = TypeVar("Item")
_WINDOW = 1024
"""Texts between two signs of life; they are sorted by length among each other."""
_AHEAD = 1
"""Parts that are ready while one is run."""


class Prepared(NamedTuple):
    """A part that is read and tokenised."""

    part: Part
    tokenized: list[TokenizedText]
    columns: pa.Table
    rejects: list[Reject]


class Embedded(NamedTuple):
    """A part with its vectors `[rows, dimension]`."""

    prepared: Prepared
    vectors: NDArray[np.float32]


def run_parts(
    encoder: Encoder,
    files: Sequence[InputFile],
    parts: Sequence[Part],
    folder: Path,
    settings: Settings,
    *,
    on_error: OnError,
    advance: Callable[[int, int], object],
) -> Iterator[Done]:
    """Yield parts in order as soon as they are on the disk.

    Args:
        encoder: the model.
        files: the input.
        parts: what to do.
        folder: where the parts go.
        settings: how.
        on_error: "stop" raises at the first row that cannot be embedded, once the parts before it are written.
        advance: is told of rows and tokens that were run.

    Raises:
        RowError: a row cannot be embedded.
        InputValueError, OSError, InferenceError: files or the model failed.
    """
    reader = RowReader(files, settings.columns)
    prepared = (prepare(encoder, reader, part, settings, on_error=on_error) for part in parts)
    with ThreadPoolExecutor(1, thread_name_prefix="e5onnx-write") as writer:
        writing = None
        try:
            for each in _ahead(prepared):
                embedded = embed(encoder, each, advance)
                if writing is not None:
                    yield writing.result()
                writing = writer.submit(write, folder, embedded, settings)
        except (E5OnnxError, OSError):
            if writing is not None:  # the part before the one that failed is whole
                yield writing.result()
            raise
        if writing is not None:
            yield writing.result()


def prepare(encoder: Encoder, reader: RowReader, part: Part, settings: Settings, *, on_error: OnError) -> Prepared:
    """Read and tokenise a part.

    Raises:
        RowError: a row cannot be embedded, and `on_error` is "stop".
    """
    rows = reader.read(part)
    texts, too_long = [], {}
    for position, text in enumerate(rows.texts):
        try:
            texts.append(tokenized(encoder.tokenizer, text, settings.prompt, settings.truncate))
        except TextTooLongError as error:
            too_long[position] = str(error)
    if too_long:
        rows.reject(too_long)
    if rows.rejects and on_error == "stop":
        raise rows.rejects[0].error()
    return Prepared(part, texts, rows.columns, rows.rejects)


def embed(encoder: Encoder, prepared: Prepared, advance: Callable[[int, int], object]) -> Embedded:
    """Run the model on a part."""
    vectors = np.empty((len(prepared.tokenized), encoder.dimension), np.float32)
    for start in range(0, len(vectors), _WINDOW):
        window = prepared.tokenized[start : start + _WINDOW]
        vectors[start : start + _WINDOW] = encoder.encode_tokenized(window)
        advance(len(window), sum(len(text.ids) for text in window))
    return Embedded(prepared, vectors)


def write(folder: Path, embedded: Embedded, settings: Settings) -> Done:
    """Write a part, and return what is noted of it."""
    prepared = embedded.prepared
    files = write_part(
        folder,
        part_name(prepared.part.number),
        prepared.columns,
        embedded.vectors,
        output_format=settings.output_format,
        dtype=settings.dtype,
        metadata=settings.metadata(),
    )
    return Done(
        part=prepared.part.number,
        rows=len(prepared.tokenized),
        tokens=sum(len(text.ids) for text in prepared.tokenized),
        truncated=sum(text.is_cut for text in prepared.tokenized),
        rejects=tuple(prepared.rejects),
        files=files,
    )


def _ahead(items: Iterable[Item]) -> Iterator[Item]:
    """Yield items that a thread makes while the ones before are used; what it raises is raised in its turn."""
    ready: queue.Queue[tuple[Item | None, BaseException | None]] = queue.Queue(_AHEAD)
    stopped = threading.Event()

    def put(item: Item | None, error: BaseException | None) -> None:
        while not stopped.is_set():
            try:
                ready.put((item, error), timeout=0.1)
            except queue.Full:
                continue
            return

    def make() -> None:
        try:
            for item in items:
                put(item, None)
                if stopped.is_set():
                    return
        except BaseException as error:  # noqa: BLE001 - it is raised where the items are used
            put(None, error)
        else:
            put(None, StopIteration())

    thread = threading.Thread(target=make, name="e5onnx-read", daemon=True)
    thread.start()
    try:
        while True:
            item, error = ready.get()
            if isinstance(error, StopIteration):
                return
            if error is not None:
                raise error
            yield item  # type: ignore[misc]  # an item, as there is no error
    finally:
        stopped.set()
        thread.join()
