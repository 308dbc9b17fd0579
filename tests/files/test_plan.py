"""Every record is in exactly one part, and no part is too large."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corpora import content
from e5onnx.files.columns import Columns
from e5onnx.files.inputs import describe_file
from e5onnx.files.plan import plan_parts
from e5onnx.files.rows import RowReader


def test_parts_are_as_large_as_they_may_be(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("12345\n" * 7 + "a row of more bytes\n" + "12345\n")
    parts = plan_parts([describe_file(tmp_path / "a.txt")], part_rows=100, part_bytes=12)
    assert [part.rows for part in parts] == [2, 2, 2, 1, 1, 1]


KIND = st.sampled_from(["jsonl", "csv", "parquet", "jsonl.gz"])


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=20)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.lists(st.tuples(KIND, st.lists(TEXT, max_size=12)), min_size=1, max_size=4),
    part_rows=st.integers(1, 7),
    part_bytes=st.integers(1, 200),
)
def test_every_row_is_in_exactly_one_part(
    tmp_path: Path, files: list[tuple[str, list[str]]], part_rows: int, part_bytes: int
) -> None:
    described, expected = [], []
    for number, (kind, texts) in enumerate(files):
        path = tmp_path / f"{number}.{kind}"
        rows = [{"text": text, "n": str(position)} for position, text in enumerate(texts)]
        if kind == "csv":
            rows = rows or [{"text": "", "n": ""}]
            path.write_bytes(content(path.name, rows))
        elif kind == "parquet":
            pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, row_group_size=3)
        else:
            path.write_bytes(content(path.name, rows))
        described.append(describe_file(path))
        expected += [row["text"] for row in rows]
    parts = plan_parts(described, part_rows=part_rows, part_bytes=part_bytes)
    read = [RowReader(described, Columns()).read(part) for part in reversed(parts)]
    assert [text for rows in reversed(read) for text in rows.texts] == expected
    assert [number for rows in reversed(read) for number in rows.columns.column("id").to_pylist()] == list(
        range(len(expected))
    )
    assert all(1 <= part.rows <= part_rows for part in parts) or (len(parts) == 1 and not expected)
    reader = RowReader(described, Columns())  # one reader for all parts
    assert [text for part in parts for text in reader.read(part).texts] == expected
