"""Writing a part: Parquet with vectors as fixed-size lists, or .npy beside JSON lines of ids and kept columns."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from ..atomic import written_whole
from ..errors import InputValueError
from ..quantization import quantize_embeddings
from .values import printable

OutputFormat = Literal["parquet", "npy"]
DType = Literal["float32", "float16", "int8", "uint8", "binary", "ubinary"]


def quantized(vectors: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Return vectors `[rows, dimension]` as int8, and the scale of each: scale times int8 approximates the vector.

    The scale is the largest magnitude in the row divided by 127, so every row uses the whole range.
    """
    scales = (np.abs(vectors).max(axis=1, initial=0) / 127).astype(np.float32)
    divisors = np.where(scales > 0, scales, 1)[:, None]
    return np.rint(vectors / divisors).astype(np.int8), scales


def write_part(
    folder: Path,
    name: str,
    columns: pa.Table,
    vectors: NDArray[np.float32],
    *,
    output_format: OutputFormat,
    dtype: DType,
    ranges: list[list[float]] | None = None,
    metadata: Mapping[str, str],
) -> dict[str, str]:
    """Write a part, and return the SHA-256 of each of its files.

    Each file appears whole and is on disk before the next one is started.

    Raises:
        InputValueError: a component is too large for the type, or a kept value cannot be written.
        OSError: a file cannot be written.
    """
    scales: NDArray[np.float32] | None = None
    stored: NDArray[Any] = vectors
    if dtype == "int8" and ranges is None:
        stored, scales = quantized(vectors)
    elif dtype in ("int8", "uint8", "binary", "ubinary"):
        stored = quantize_embeddings(vectors, dtype, ranges)
    elif dtype == "float16":
        with np.errstate(over="ignore"):
            stored = vectors.astype(np.float16)
        if not np.isfinite(stored).all():
            raise InputValueError(
                "a component of a vector is too large for float16: use float32, in a new output folder"
            )
    if output_format == "npy":
        arrays = {f"{name}.npy": stored} | ({} if scales is None else {f"{name}.scale.npy": scales})
        writers: dict[str, Callable[[Path], None]] = {f"{name}.jsonl": lambda path: _write_json_lines(path, columns)}
        writers |= {file: partial(_write_npy, array=array) for file, array in arrays.items()}
    else:
        flat = pa.array(stored.reshape(-1))
        table = columns.append_column("embedding", pa.FixedSizeListArray.from_arrays(flat, stored.shape[1]))
        if scales is not None:
            table = table.append_column("embedding_scale", pa.array(scales))
        table = table.replace_schema_metadata(dict(metadata))
        writers = {f"{name}.parquet": lambda path: _write_parquet(path, table)}
    try:
        return {file: _write(folder / file, write) for file, write in writers.items()}
    except pa.ArrowException as error:
        raise InputValueError(f"a kept column of {folder / name} cannot be written: {error}") from error


def _write(path: Path, write: Callable[[Path], None]) -> str:
    with written_whole(path) as temporary:
        write(temporary)
        sync(temporary)
        digest = sha256_of(temporary)
    sync(path.parent)
    return digest


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(2**20):
            digest.update(block)
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flush a file or folder to disk."""
    if path.is_dir() and os.name == "nt":  # cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_parquet(path: Path, table: pa.Table) -> None:
    others = [name for name in table.column_names if name != "embedding"]
    with path.open("xb") as stream:  # pyarrow cannot open names that are not UTF-8
        pq.write_table(
            table,
            stream,
            row_group_size=max(1, table.num_rows),
            use_dictionary=False,
            # vectors do not compress, and nobody asks for their minimum
            compression={**dict.fromkeys(others, "zstd"), "embedding.list.element": "none"},
            write_statistics=others,
        )


def _write_npy(path: Path, array: NDArray[Any]) -> None:
    with path.open("xb") as stream:
        np.save(stream, array)


def _write_json_lines(path: Path, columns: pa.Table) -> None:
    rows = pa.table({name: printable(columns.column(name)) for name in columns.column_names}).to_pylist()
    with path.open("x", encoding="utf-8") as stream:
        for row in rows:
            stream.write(json.dumps(_json_value(row), ensure_ascii=False, default=str) + "\n")


def _json_value(value: Any) -> Any:
    """Return a value with null for NaN and infinity, which JSON does not have."""
    if isinstance(value, dict):
        return {name: _json_value(each) for name, each in value.items()}
    if isinstance(value, list | tuple):  # maps consist of tuples
        return [_json_value(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
