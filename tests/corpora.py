"""Corpora for tests in every format, and what comes of them."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import sys
from collections.abc import Callable, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

TITLED_ROWS: list[dict[str, Any]] = [
    {"text": "first", "title": "A title", "n": 1},
    {"text": '  second, with "quotes"  ', "title": None, "n": 2},
    {"text": "third\twith ünïcode 🙂", "title": "", "n": 3},
]
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="needs file names, mounts and inodes of Linux")


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    """Write rows as JSON lines; create the folder if it is missing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def content(name: str, rows: Sequence[dict[str, Any]]) -> bytes:
    """Return rows in the format, and with the compression, that the suffixes of a name stand for."""
    kind, _, compression = name.partition(".")[2].partition(".")
    return _COMPRESSORS[compression](_FORMATS[kind](rows))


def read_output(output: Path) -> pa.Table:
    """Return the rows of all parts."""
    return ds.dataset(sorted(map(str, output.glob("part-*.parquet")))).to_table()


def parts(output: Path) -> dict[str, bytes]:
    """Return the files of all parts by name."""
    return {path.name: path.read_bytes() for path in output.glob("part-*")}


def rejects(output: Path) -> list[dict[str, Any]]:
    """Return the rows that were rejected."""
    path = output / "_e5onnx/rejects.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def near(vectors: Any, expected: Any) -> None:
    """Compare vectors with those that are expected."""
    np.testing.assert_allclose(np.asarray(vectors, np.float32), expected, rtol=0, atol=1e-6)


def _json_lines(rows: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def _csv(rows: Sequence[dict[str, Any]], delimiter: str = ",") -> bytes:
    def field(value: Any) -> str:
        return '"' + ("" if value is None else str(value)).replace('"', '""') + '"'

    lines = [delimiter.join(rows[0]), *(delimiter.join(map(field, row.values())) for row in rows)]
    return ("\ufeff" + "\r\n".join(lines)).encode()


def _parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    pq.write_table(pa.Table.from_pylist(list(rows)), stream := BytesIO(), row_group_size=7)
    return stream.getvalue()


_FORMATS: dict[str, Callable[[Sequence[dict[str, Any]]], bytes]] = {
    **dict.fromkeys(("jsonl", "ndjson", "json"), _json_lines),
    "csv": _csv,
    "tsv": lambda rows: _csv(rows, "\t"),
    "parquet": _parquet,
}
_COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": lambda content: bytes(pa.compress(content, codec="zstd", asbytes=True)),
}
