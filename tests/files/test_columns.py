"""Columns that do not exist, and types by name."""

from __future__ import annotations

from pathlib import Path

import pytest

from corpora import write_jsonl
from e5onnx import Encoder, InputValueError
from e5onnx.files import Columns, embed_files


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        (Columns(keep=("kk",)), "the first part has no column 'kk'; its columns are 'k', 'text'"),
        (Columns(title="titel"), "the first part has no column 'titel'; its columns are 'k', 'text'$"),
        (Columns(text="txt"), "the first part has no column 'txt'; its columns are 'k', 'text'$"),
        (Columns(keep=("k:strng",)), r"column 'k:strng' \('strng' is not a type\)"),
    ],
)
def test_a_misspelt_column_is_an_error(encoder: Encoder, tmp_path: Path, columns: Columns, message: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a", "k": 1}, {"text": "b"}])
    with pytest.raises(InputValueError, match=message):
        embed_files(encoder, [path], tmp_path / "out", columns=columns)


def test_a_misspelt_type_is_an_error_in_csv(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,k\na,1\n")
    with pytest.raises(InputValueError, match=r"has no column 'k:strng' \('strng' is not a type\)"):
        embed_files(encoder, [tmp_path / "a.csv"], tmp_path / "out", columns=Columns(keep=("k:strng",)))


@pytest.mark.parametrize(
    "columns", [Columns(text="\ud800"), Columns(title="\ud800"), Columns(id="\ud800"), Columns(keep=("\ud800",))]
)
def test_names_of_columns_are_text(encoder: Encoder, tmp_path: Path, columns: Columns) -> None:
    (tmp_path / "a.jsonl").write_text('{"text": "a", "\\ud800": "b"}\n')
    with pytest.raises(InputValueError, match=r"the name of a column holds the lone surrogate U\+D800"):
        embed_files(encoder, [tmp_path / "a.jsonl"], tmp_path / "out", columns=columns)
