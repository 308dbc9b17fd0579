"""The texts of files that are read once, for output that is not a folder; and the tokens of a text."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from ..errors import InputValueError, TextTooLongError
from ..tokenizer import TokenizedText, Tokenizer
from .columns import Columns
from .inputs import STANDARD_INPUT, Format, Stream, find_files, format_of, warn_of_ignored
from .records import Parsed, Place, Record, Reject, parsed, parsed_table, read_batches, read_records, reason_of


class Text(NamedTuple):
    """A text, with its file and row."""

    text: str
    file: Stream
    row: int


def open_texts(
    inputs: Sequence[str], columns: Columns, *, input_format: Format | None, reject: Callable[[Reject], object]
) -> Iterator[Text]:
    """Find files, and return an iterator over their texts that reads each file once.

    Args:
        inputs: files, globs, folders and pipes; "-" is standard input.
        columns: where texts and titles are.
        input_format: of all files; by default the suffix decides, and standard input is text.
        reject: called with each row that cannot be embedded; it may raise to stop.

    Raises:
        InputValueError: nothing was found, a format is unknown, or a file is damaged.
        MissingDependencyError: Parquet and .zst need the extra.
        OSError: a file cannot be read.
    """
    sources: dict[Path | None, Stream] = {}
    ignored = 0
    for given in inputs:
        if given == "-":
            sources.setdefault(None, Stream(STANDARD_INPUT, input_format or "text"))
            continue
        found = find_files([given])
        ignored += found.ignored
        for path in found.files:
            if _is_standard_output(path.stat()):  # raises if there is no such file
                raise InputValueError(f"{path} is also standard output: reading it would never end")
            sources.setdefault(Path(os.path.realpath(path)), Stream(str(path), format_of(path, input_format)))
    warn_of_ignored(ignored)
    return _texts(list(sources.values()), columns, reject)


def tokenized(tokenizer: Tokenizer, text: str, prompt: str, truncate: str, remedy: str) -> TokenizedText:
    """Return the tokens of a row's text; `remedy` is the option that would let a long text be cut.

    Raises:
        TextTooLongError: the tokenizer cannot take it, or it exceeds the model's maximum and `truncate` is "error".
    """
    try:
        (tokens,) = tokenizer.tokenize([text], prompt)
    except TextTooLongError as error:
        raise TextTooLongError(f"its text cannot be tokenised: {error.__cause__}") from error
    if truncate == "error":
        tokenizer.check_length(tokens, "its text", remedy)
    return tokens


def _is_standard_output(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and os.path.samestat(status, os.fstat(1))


def _texts(sources: Sequence[Stream], columns: Columns, reject: Callable[[Reject], object]) -> Iterator[Text]:
    rows, missing = 0, set(columns.embedded())
    for source in sources:
        for record, content in _contents(source, columns):
            if isinstance(content, dict):
                rows, missing = rows + 1, missing.difference(content)
                lacking = [name for name in columns.embedded() if name not in content]
                if lacking and source.format != "jsonl":
                    raise InputValueError(f"{source.path} has no column {', '.join(map(repr, lacking))}")
            try:
                text = columns.text_of(content)
            except ValueError as error:
                reject(Reject.of(source, record.place.row, reason_of(error, record)))
            else:
                yield Text(text, source, record.place.row)
    if rows and missing:
        raise InputValueError(f"no row has a column {', '.join(map(repr, sorted(missing)))} (rows read: {rows:,})")


def _contents(source: Stream, columns: Columns) -> Iterator[tuple[Record, Parsed]]:
    if source.format != "parquet":
        yield from ((record, parsed(record, source, columns.text)) for record in read_records(source))
        return
    row = 1
    for batch in read_batches(source, columns.embedded()):
        for content in parsed_table(batch, columns.embedded()):
            yield Record(Place(row, row), b""), content
            row += 1
