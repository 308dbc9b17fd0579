"""Records -> the texts to embed, and what is wrong with a record. Lines and CSV need no extra."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ..checks import json_type
from ..errors import InputValueError, MissingDependencyError, RowError, TextTooLongError
from ..tokenizer import TokenizedText, Tokenizer
from .columns import Columns
from .inputs import STANDARD_INPUT, Format, Stream, find_files, format_of, warn_of_ignored
from .records import Place, Record, Source, decoded, read_records

if TYPE_CHECKING:
    import pyarrow as pa

Parsed = dict[str, Any] | Exception


@dataclass(frozen=True)
class Reject:
    """A row that cannot be embedded, and why."""

    file: str
    row: int
    reason: str

    def line(self) -> str:
        """Return it as a line of JSON."""
        return json.dumps(asdict(self), ensure_ascii=True) + "\n"

    def error(self) -> RowError:
        """Return it as an error."""
        return RowError(f"{self.file}, row {self.row}: {self.reason}")


class Text(NamedTuple):
    """A text, and the file and row that it comes from."""

    text: str
    file: str
    row: int


def open_texts(
    inputs: Sequence[str], columns: Columns, *, input_format: Format | None, reject: Callable[[Reject], object]
) -> Iterator[Text]:
    """Find files, and return an iterator over their texts, which reads each file once.

    Args:
        inputs: files, globs, folders and pipes; "-" is standard input.
        columns: those of texts and titles.
        input_format: of files whose name does not say it; standard input is text if it is None.
        reject: is told of rows that cannot be embedded, and raises to stop.

    Raises:
        InputValueError: nothing is meant, a format is not known, or a file is damaged.
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
            if _is_standard_output(path.stat()):  # which fails where there is no such file
                raise InputValueError(f"{path} is standard output as well: it would never end")
            sources.setdefault(Path(os.path.realpath(path)), Stream(str(path), format_of(path, input_format)))
    warn_of_ignored(ignored)
    return _texts(list(sources.values()), columns, reject)


def _is_standard_output(status: os.stat_result) -> bool:
    return stat.S_ISREG(status.st_mode) and os.path.samestat(status, os.fstat(1))


def tokenized(tokenizer: Tokenizer, text: str, prompt: str, truncate: str) -> TokenizedText:
    """Return the tokens of a row's text.

    Raises:
        TextTooLongError: it is too long, for the tokenizer or for the model and `truncate` is "error".
    """
    try:
        (tokens,) = tokenizer.tokenize([text], prompt)
    except TextTooLongError as error:
        raise TextTooLongError(f"its text cannot be tokenised: {error.__cause__}") from error
    if truncate == "error":
        tokenizer.check_length(tokens, "its text", "--truncate warn")
    return tokens


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
                text = text_of(content, columns)
            except ValueError as error:
                reject(Reject(source.path, record.place.row, reason_of(error, record)))
            else:
                yield Text(text, source.path, record.place.row)
    if rows and missing:
        raise InputValueError(f"none of {rows:,} rows has a column {', '.join(map(repr, sorted(missing)))}")


def _contents(source: Stream, columns: Columns) -> Iterator[tuple[Record, Parsed]]:
    if source.format != "parquet":
        for record in read_records(source):
            yield record, parsed(record, source, columns)
        return
    try:
        from .parquet import read_batches
    except ModuleNotFoundError as error:
        raise MissingDependencyError("reading Parquet needs more: pip install 'e5onnx[bulk]'") from error
    row = 1
    for batch in read_batches(source, columns.embedded()):
        for content in table_contents(batch, columns):
            yield Record(Place(row, row), b""), content
            row += 1


def parsed(record: Record, file: Source, columns: Columns) -> Parsed:
    """Return what a record says: a mapping of columns, or an error that is the row's own."""
    content = record.content
    if not isinstance(content, bytes):
        return content
    try:
        line = decoded(content, record.place.row)
        return {columns.text: _whole_line(line)} if file.format == "text" else _json_object(line)
    except ValueError as error:
        return error


def table_contents(table: pa.Table | pa.RecordBatch, columns: Columns) -> Iterator[Parsed]:
    """Yield the texts and titles of a table's rows; Parquet does not look into its strings."""
    table = table.select([name for name in columns.embedded() if name in table.schema.names])
    try:
        contents = table.to_pylist()
    except (ValueError, OverflowError):
        contents = map(_content, (table.slice(position, 1) for position in range(table.num_rows)))
    yield from contents


def _content(row: pa.Table | pa.RecordBatch) -> Parsed:
    try:
        (content,) = row.to_pylist()
    except UnicodeDecodeError as error:
        return error
    except (ValueError, OverflowError) as error:
        return ValueError(f"one of its values cannot be read: {error}")
    return dict(content)


def text_of(content: Parsed, columns: Columns) -> str:
    """Return the text to embed.

    Raises:
        ValueError: there is none.
    """
    if isinstance(content, Exception):
        raise content
    text = _text(content, columns.text)
    if columns.title is not None and content.get(columns.title) is not None:
        text = f"{_text(content, columns.title)} {text}"
    return text


def reason_of(error: Exception, record: Record) -> str:
    """Return why a record is rejected."""
    reason = f"it is not valid UTF-8: {error}" if isinstance(error, UnicodeDecodeError) else str(error)
    if record.lines == 1:
        return reason
    line = record.place.line  # a stray quote takes in rows that are none of its own
    return f"{reason} (lines {line} to {line + record.lines - 1} of the file)"


def _text(content: dict[str, Any], column: str) -> str:
    text = content.get(column)
    if text is None:
        raise ValueError(f"its text, column {column!r}, is {'null' if column in content else 'missing'}")
    if not isinstance(text, str):
        kind = "binary" if isinstance(text, bytes) else json_type(text)
        raise ValueError(f"column {column!r} is {kind}, not a text")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"column {column!r} is not valid Unicode: {error.reason} at {error.start}") from error
    return text


def _whole_line(line: str) -> str:
    if "\r" in line:
        raise ValueError("it holds a carriage return, which once ended lines: remove it, or make it a line feed")
    return line


def _json_object(line: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except RecursionError as error:
        raise ValueError("its JSON is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"it is not valid JSON: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"it is {json_type(content)}, not a JSON object")
    return content
