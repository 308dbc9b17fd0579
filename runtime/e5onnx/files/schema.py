"""Whether the input has the columns that are wanted, and which types those of the output have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from ..errors import InputValueError
from .columns import ID, Columns, is_type
from .inputs import InputFile
from .plan import Part
from .records import Reader, columns_of
from .rows import parsed_records, read_rows
from .values import inferred, storable


def check_columns(files: Sequence[InputFile], columns: Columns) -> None:
    """Raise InputValueError if a file declares its columns and lacks one, or two of the output had one name."""
    outputs = [ID, *columns.keep, "embedding", "embedding_scale"]
    twice = {name for name in outputs if outputs.count(name) > 1}
    if twice:
        raise InputValueError(f"the output would have two columns {', '.join(sorted(twice))}: rename one in the input")
    for file in files:
        declared = columns_of(file)
        if file.format == "text":
            declared = {columns.text: None}
        missing = [name for name in columns.read() if declared is not None and name not in declared]
        if missing:
            raise InputValueError(f"{file.path} has no column {_named(missing)}; it has {_named(declared or ())}")


def typed_columns(columns: Columns, given: Mapping[str, str], files: Sequence[InputFile], first: Part) -> Columns:
    """Return the columns with a type for each that is stored: given, declared by a file, or that of the first rows.

    Raises:
        InputValueError: a name is that of no type, or of no column of the first rows.
    """
    _check_keys(columns, given, files, first)
    unknown = [name for name in columns.stored() if name not in given]
    declared = (columns_of(files[first.pieces[0].file]) if first.pieces else None) or {}
    types = {name: storable(declared[name] or pa.string()) for name in unknown if name in declared}
    if len(types) < len(unknown):
        rows = read_rows(Reader(files, columns.read()), first, columns)
        types = {name: inferred(rows.stored[name]) for name in unknown}
    return columns.with_types(types, given)


def _check_keys(columns: Columns, given: Mapping[str, str], files: Sequence[InputFile], first: Part) -> None:
    """Raise InputValueError if a column is in none of the first objects of JSON; one of a given type may come later."""
    wanted = [name for name in (columns.title, *columns.keep) if name is not None and name not in given]
    if not wanted or any(files[piece.file].format != "jsonl" for piece in first.pieces):
        return
    reader, objects = Reader(files, columns.read()), 0
    keys: set[str] = set()
    for piece in first.pieces:
        for _, content in parsed_records(reader, piece, columns):
            if isinstance(content, dict):
                objects += 1
                keys.update(content)
    missing = [name for name in wanted if name not in keys]
    if objects and missing:
        raise InputValueError(
            f"none of the first {objects} rows has a column {_named(missing)}; they have {_named(sorted(keys))} "
            "(of a column that comes later, name the type: --keep-columns NAME:TYPE)"
        )


def _named(names: Sequence[str] | Mapping[str, object]) -> str:
    """Return names for a message, and why one with a colon was not taken for a name and a type."""
    kinds = [name.rpartition(":")[2] for name in names if ":" in name]
    wrong = "".join(f" ({kind!r} is no simple type of Arrow)" for kind in kinds if not is_type(kind))
    return (", ".join(map(repr, names)) or "none") + wrong
