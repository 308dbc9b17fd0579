"""Whether the input has the columns that are wanted, and which types those of the output have."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from ..checks import check_encodable
from ..errors import InputValueError
from .columns import ID, Columns, is_type
from .inputs import InputFile
from .parquet import read_schema
from .plan import Part
from .records import read_header, read_records
from .texts import parsed
from .values import inferred, storable


def check_columns(files: Sequence[InputFile], columns: Columns) -> None:
    """Raise InputValueError if a file declares its columns and lacks one, or names of the output are impossible."""
    for name in columns.read():
        check_encodable(name, "the name of a column")
    outputs = [ID, *columns.keep, "embedding", "embedding_scale"]
    twice = {name for name in outputs if outputs.count(name) > 1}
    if twice:
        raise InputValueError(f"the output would have two columns {', '.join(sorted(twice))}: rename one in the input")
    for file in files:
        declared = {columns.text: pa.string()} if file.format == "text" else _declared(file)
        missing = [name for name in columns.read() if declared is not None and name not in declared]
        if missing:
            raise InputValueError(f"{file.path} has no column {_named(missing)}; it has {_named(declared or ())}")


def typed_columns(columns: Columns, given: Mapping[str, str], files: Sequence[InputFile], first: Part) -> Columns:
    """Return the columns with a type for each that is stored: given, declared by a file, or that of the first rows.

    Raises:
        InputValueError: a name is that of no type, or of no column of the first rows; or a type cannot be stored.
    """
    unknown = [name for name in columns.stored() if name not in given]
    declared = (_declared(files[first.pieces[0].file]) if first.pieces else None) or {}
    types: dict[str, pa.DataType | None] = {name: storable(declared[name]) for name in unknown if name in declared}
    contents = list(_json_contents(files, first, columns))
    if contents and len(types) < len(unknown):
        types |= {name: inferred([each.get(name) for each in contents]) for name in unknown if name not in types}
    _check_keys(columns, given, files, first, contents)
    columns = columns.with_types(dict.fromkeys(unknown, pa.string()) | types, given)
    for name, kind in columns.types:
        _check_storable(name, kind)
    return columns


def _check_storable(name: str, kind: pa.DataType) -> None:
    """Raise InputValueError if Arrow cannot select rows of a type, or write them."""
    try:
        rows = pa.table({name: pa.array([None], kind)}).take(pa.array([0]))
        pq.write_table(rows, pa.BufferOutputStream())
    except (pa.ArrowException, NotImplementedError) as error:
        raise InputValueError(
            f"column {name!r} is of type {kind}, which cannot be kept ({error}): leave it out, or keep it as text "
            f"with --keep-columns '{name}:json'"
        ) from error


def _declared(file: InputFile) -> dict[str, pa.DataType] | None:
    """Return the columns that a file declares, with their types; None if it declares none."""
    if file.format == "parquet":
        schema = read_schema(file)
        return dict(zip(schema.names, schema.types, strict=True))
    return dict.fromkeys(read_header(file), pa.string()) if file.format in ("csv", "tsv") else None


def _json_contents(files: Sequence[InputFile], part: Part, columns: Columns) -> Iterator[dict[str, Any]]:
    for piece in part.pieces:
        file = files[piece.file]
        if file.format == "jsonl":
            for record in islice(read_records(file, piece.place), piece.rows):
                content = parsed(record, file, columns)
                if isinstance(content, dict):
                    yield content


def _check_keys(
    columns: Columns,
    given: Mapping[str, str],
    files: Sequence[InputFile],
    first: Part,
    contents: Sequence[Mapping[str, Any]],
) -> None:
    """Raise InputValueError if a column is in none of the first objects of JSON; one of a given type may come later."""
    wanted = [name for name in (columns.text, columns.title, *columns.keep) if name is not None and name not in given]
    if any(files[piece.file].format != "jsonl" for piece in first.pieces):
        return
    keys = {key for content in contents for key in content}
    missing = [name for name in wanted if name not in keys]
    if contents and missing:
        later = " (of a column that comes later, name the type: --keep-columns NAME:TYPE)"
        raise InputValueError(
            f"none of the first {len(contents)} rows has a column {_named(missing)}; they have {_named(sorted(keys))}"
            + (later if set(missing).intersection(columns.keep) else "")
        )


def _named(names: Sequence[str] | Mapping[str, object]) -> str:
    """Return names for a message, and why one with a colon was not taken for a name and a type."""
    kinds = [name.rpartition(":")[2] for name in names if ":" in name]
    wrong = "".join(f" ({kind!r} is not a type)" for kind in kinds if not is_type(kind))
    return (", ".join(map(repr, names)) or "none") + wrong
