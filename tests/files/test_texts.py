"""The texts of files that are read once."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from corpora import TITLED_ROWS as ROWS
from corpora import content, read_output, rejects
from e5onnx import Encoder, InputValueError
from e5onnx.files import Columns, IgnoredFilesWarning, RowError, embed_files
from e5onnx.files.records import Reject
from e5onnx.files.texts import open_texts

FORMATS = ["a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.json.gz", "a.csv.zst"]


def stop(reject: Reject) -> None:
    raise reject.error()


def texts(path: Path, columns: Columns | None = None, skipped: list[Reject] | None = None) -> list[str]:
    reject = stop if skipped is None else skipped.append
    return [text for text, *_ in open_texts([str(path)], columns or Columns(), input_format=None, reject=reject)]


def test_folders_are_read_and_files_without_a_format_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content("a.csv", ROWS))
    (tmp_path / "b.jsonl").write_bytes(content("a.jsonl", ROWS))
    (tmp_path / "c.md").touch()
    with pytest.warns(IgnoredFilesWarning, match="because of their suffix: 1"):
        found = list(open_texts([str(tmp_path), str(tmp_path / "b*")], Columns(), input_format=None, reject=stop))
    numbered = [(row["text"], number) for number, row in enumerate(ROWS, 1)]
    assert [(text, source.path, row) for text, source, row in found] == [
        (text, str(tmp_path / name), row) for name in ("a.csv", "b.jsonl") for text, row in numbered
    ]


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "a.csv.zst"])
@pytest.mark.parametrize("columns", [Columns(text="txt"), Columns(title="titel")])
def test_a_misspelt_column_is_an_error(tmp_path: Path, name: str, columns: Columns) -> None:
    (tmp_path / name).write_bytes(content(name, ROWS))
    wrong = "txt" if columns.text == "txt" else "titel"
    given: tuple[list[Reject] | None, ...] = (None, [])
    for skipped in given:
        with pytest.raises(InputValueError, match=f"column '{wrong}'"):
            texts(tmp_path / name, columns, skipped)


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.json.gz"])
def test_a_file_without_rows_has_no_texts(tmp_path: Path, name: str) -> None:
    content = b"text\n" if name == "a.csv" else b""
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert texts(tmp_path / name) == []


def test_every_file_has_the_columns_that_it_declares(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content("a.csv", ROWS))
    (tmp_path / "b.csv").write_bytes(b"text,n\na,1\n")
    with pytest.raises(InputValueError, match=r"b\.csv has no column 'title'"):
        texts(tmp_path, Columns(title="title"))


def test_marks_of_utf8_count_at_the_beginning_alone(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffa \u00a0\n\ufeffb  \r\n \tc\n\n".encode())
    expected = ["a \u00a0", "\ufeffb  ", " \tc", ""]  # spaces belong to the text
    assert texts(tmp_path / "a.txt") == expected
    embed_files(encoder, [tmp_path / "a.txt"], tmp_path / "out", columns=Columns(keep=("text",)), part_rows=1)
    assert read_output(tmp_path / "out").column("text").to_pylist() == expected
    (tmp_path / "a.csv").write_bytes("\ufefftext\r\n\ufeffa  \r\nb \r\n".encode())
    assert texts(tmp_path / "a.csv") == ["\ufeffa  ", "b "]
    (tmp_path / "a.jsonl").write_bytes('\ufeff{"text": "a "}\n\ufeff{"text": "b"}\n'.encode())
    with pytest.raises(RowError, match="line 2: it is not valid JSON"):
        texts(tmp_path / "a.jsonl")


def test_rows_of_csv_are_counted_without_blank_lines(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"text,n\n\na,1\n\n\nb,2\n\nbad\nc,3\n\nworse\n")
    skipped: list[Reject] = []
    assert texts(tmp_path / "a.csv", skipped=skipped) == ["a", "b", "c"]
    assert [reject.row for reject in skipped] == [3, 5]
    for part_rows in (1, 2, 10):  # parts begin in the middle of the file
        output = tmp_path / f"out{part_rows}"
        embed_files(encoder, [tmp_path / "a.csv"], output, part_rows=part_rows, on_error="skip")
        rejected = rejects(output)
        assert [reject["row"] for reject in rejected] == [3, 5]
        assert read_output(output).column("id").to_pylist() == [0, 1, 3]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-be-bom"])
@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.csv"])
def test_utf_16_is_refused_as_a_whole(tmp_path: Path, name: str, encoding: str) -> None:
    content = "text,n\na,1\nb,2\n"
    (tmp_path / name).write_bytes(
        content.encode("utf-16") if encoding == "utf-16" else ("\ufeff" + content).encode("utf-16-be")
    )
    with pytest.raises(InputValueError, match="is damaged" if name == "a.csv" else "is UTF-16, not UTF-8: convert it"):
        texts(tmp_path / name, skipped=[])


def test_lines_that_end_in_carriage_returns_are_not_taken_for_one(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"one\rtwo\rthree\r")
    with pytest.raises(RowError, match="line 1: it contains a carriage return, an old line ending"):
        texts(tmp_path / "a.txt")
    (tmp_path / "a.txt").write_bytes(b"one\r\ntwo\r\n")
    assert texts(tmp_path / "a.txt") == ["one", "two"]


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(TEXT, min_size=1, max_size=8), name=st.sampled_from(FORMATS))
def test_texts_are_those_of_the_rows(tmp_path: Path, rows: list[str], name: str) -> None:
    (tmp_path / name).write_bytes(content(name, [{"text": text, "n": 0} for text in rows]))
    assert texts(tmp_path / name) == rows
