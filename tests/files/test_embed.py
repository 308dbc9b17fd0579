"""`embed_files`, compared with the encoder row by row."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tqdm import tqdm

from corpora import content, near, only_linux, read_output, rejects, write_jsonl
from e5onnx import Encoder, InputTypeError, InputValueError
from e5onnx.files import Columns, IgnoredFilesWarning, RowError, embed_files
from texts import TEXTS

ROWS = [
    {"name": f"row {number}", "text": text, "title": None if number % 3 else f"Title {number}", "year": 1900 + number}
    for number, text in enumerate(text for text in TEXTS * 3 if text.strip() and "\n" not in text)
]


COLUMNS = Columns(title="title", id="name", keep=("year",))


EXPECTED = [f"{row['title']} {row['text']}" if row["title"] else str(row["text"]) for row in ROWS]


@pytest.mark.parametrize(
    "suffix", ["jsonl", "csv", "tsv", "parquet", "jsonl.gz", "ndjson.bz2", "csv.xz", "json.zst", "many.jsonl"]
)
def test_every_format_gives_the_encoders_vectors(suffix: str, encoder: Encoder, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    if suffix == "many.jsonl":
        for start in range(0, len(ROWS), 5):
            write_jsonl(corpus / f"{start:02d}.jsonl", ROWS[start : start + 5])
    else:
        (corpus / f"a.{suffix}").write_bytes(content(f"a.{suffix}", ROWS))
    types = {"year": "int64"}
    summary = embed_files(encoder, [str(corpus)], tmp_path / "out", columns=COLUMNS, column_types=types, part_rows=8)
    table = read_output(tmp_path / "out")
    assert table.column("id").to_pylist() == [row["name"] for row in ROWS]
    assert table.column("year").to_pylist() == [row["year"] for row in ROWS]
    near(table.column("embedding").to_pylist(), encoder.encode_document(EXPECTED))
    assert (summary.rows, summary.rejected, summary.parts) == (len(ROWS), 0, -(-len(ROWS) // 8))
    metadata = pq.read_schema(tmp_path / "out/part-000000.parquet").metadata
    assert metadata[b"e5onnx.fingerprint"].decode() == encoder.fingerprint
    assert metadata[b"e5onnx.role"] == b"document"


def test_lines_of_text_and_numbers_as_ids(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufefffirst\r\n\nthird".encode())
    embed_files(encoder, [tmp_path / "*.txt"], tmp_path / "out", role="query")
    table = pq.read_table(tmp_path / "out/part-000000.parquet")
    assert table.column("id").to_pylist() == [0, 1, 2]
    near(table.column("embedding").to_pylist(), encoder.encode_query(["first", "", "third"]))


WRONG = {"truncate": "eror", "on_error": "skp", "dtype": "float64", "output_format": "csv", "input_format": "json"}


@pytest.mark.parametrize(("option", "given"), [*WRONG.items(), ("engine", "Ray"), ("role", "passage"), ("role", None)])
def test_options_take_only_their_words(encoder: Encoder, tmp_path: Path, option: str, given: Any) -> None:
    with pytest.raises(InputValueError, match=f"^{option} must be one of '.*', got {given!r}$"):
        embed_files(encoder, [tmp_path / "a.jsonl"], tmp_path / "out", **{option: given})


def test_inputs_are_one_or_many_names_and_paths(encoder: Encoder, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    several: list[Any] = [path, str(path), [path], (str(path),), iter([path, str(path)])]
    for inputs in several:
        assert embed_files(encoder, inputs, tmp_path / "one").rows == len(ROWS)
    for wrong, message in (
        (3, "inputs must be a file, a folder or a list of these, got int"),
        (None, "got NoneType"),
        ([path, 3], "inputs must be str or Path, got int at position 1"),
        (b"a.jsonl", "got int at position 0"),
    ):
        with pytest.raises(InputTypeError, match=message):
            embed_files(encoder, wrong, tmp_path / "wrong")  # type: ignore[arg-type]
    assert embed_files(encoder, [path], str(tmp_path / "out"), part_rows=np.int64(2)).rows == len(ROWS)  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match=r"part_rows must be a whole number, got 2\.5"):
        embed_files(encoder, [path], tmp_path / "out", part_rows=2.5)  # type: ignore[arg-type]
    with pytest.raises(InputValueError, match="column_types names 'yaer', which is neither the id nor kept"):
        embed_files(encoder, [path], tmp_path / "new", column_types={"yaer": "int64"})


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"title": "x"}', "its text, column 'text', is missing"),
        (b'{"text": null}', "its text, column 'text', is null"),
        (b'{"text": 3}', "column 'text' is a number, not a text"),
        (b'{"text": ["a"]}', "column 'text' is a list, not a text"),
        (b'{"text": "\\ud800"}', "is not valid Unicode"),
        (b'{"text": "\xff"}', "it is not valid UTF-8"),
        (b'{"text": ', "it is not valid JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[1]", "not a JSON object"),
        (b'{"text": "a", "name": "x", "year": "soon"}', "column 'year' is 'soon', which is not of type int64"),
        (b'{"text": "a", "name": "x", "year": 2.5}', "column 'year' is 2.5, which is not of type int64"),
        (b'{"text": "a", "year": 1}', "its id, column 'name', is missing"),
    ],
)
def test_bad_rows_stop_or_are_noted(encoder: Encoder, tmp_path: Path, line: bytes, reason: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:12], line + b"\n", b"\n", *lines[12:]]))
    columns = Columns(id="name", keep=("year",))
    with pytest.raises(RowError, match=r"a\.jsonl, line 13: ") as caught:
        embed_files(encoder, [path], tmp_path / "out", columns=columns, part_rows=5)
    assert reason in str(caught.value)
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 2  # what was done is kept
    assert len(list((tmp_path / "out/_e5onnx/done").iterdir())) == 2
    summary = embed_files(encoder, [path], tmp_path / "out", columns=columns, part_rows=5, on_error="skip")
    assert (summary.rows, summary.rejected) == (len(ROWS), 1)
    (reject,) = rejects(tmp_path / "out")
    assert (reject["file"], reject["row"]) == (str(path), 13)
    assert reason in reject["reason"]
    table = read_output(tmp_path / "out")
    near(table.column("embedding").to_pylist(), encoder.encode_document([str(row["text"]) for row in ROWS]))


def test_bad_rows_of_csv_and_parquet_are_named(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text,n\nfine,1\n"a\nb",2\nno\n"bad \xff",4\nfine,x\n')
    broken = pa.array(["fine", "bad", None]).cast(pa.binary()).to_pylist()
    broken[1] = b"bad \xff"
    strings = pa.Array.from_buffers(pa.string(), 3, pa.array(broken, pa.binary()).buffers())
    pq.write_table(pa.table({"text": strings, "n": [1, 2, 3]}), tmp_path / "b.parquet")
    columns = Columns(keep=("n",))
    embed_files(encoder, [tmp_path], tmp_path / "out", columns=columns, column_types={"n": "int64"}, on_error="skip")
    rejected = rejects(tmp_path / "out")
    assert [(Path(each["file"]).name, each["row"]) for each in rejected] == [
        ("a.csv", 3), ("a.csv", 4), ("a.csv", 5), ("b.parquet", 2), ("b.parquet", 3),
    ]  # fmt: skip
    table = read_output(tmp_path / "out")
    near(table.column("embedding").to_pylist(), encoder.encode_document(["fine", "a\nb", "fine"]))
    assert table.column("id").to_pylist() == [0, 1, 5]


def test_too_long_texts_can_be_refused(encoder: Encoder, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "short"}, {"text": "word " * 600}])
    summary = embed_files(encoder, [path], tmp_path / "cut")
    assert (summary.truncated, summary.tokens) == (1, 3 + 512)
    message = r"line 2: its text has 602 tokens, .* cut with truncate=\"warn\" \(--truncate warn on the command line\)"
    with pytest.raises(RowError, match=message):
        embed_files(encoder, [path], tmp_path / "out", truncate="error")


def test_rejects_are_in_the_order_of_the_input(encoder: Encoder, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "word " * 600}, {"text": 1}, {"text": "fine"}, {"text": None}])
    embed_files(encoder, [path], tmp_path / "out", truncate="error", on_error="skip")
    assert [each["row"] for each in rejects(tmp_path / "out")] == [1, 2, 4]
    with pytest.raises(RowError, match="line 1: its text has 602 tokens"):
        embed_files(encoder, [path], tmp_path / "stopped", truncate="error")


def test_a_row_without_a_space_in_a_million_characters_is_a_bad_row(encoder: Encoder, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "in.jsonl", [{"text": "one"}, {"text": "x" * 1_200_000}, {"text": "two"}])
    with pytest.raises(RowError, match="line 2: its text cannot be tokenised: it has 1,200,000 characters"):
        embed_files(encoder, [path], tmp_path / "out")
    embed_files(encoder, [path], tmp_path / "out", on_error="skip")
    found = pq.read_table(tmp_path / "out/part-000000.parquet")
    assert found["id"].to_pylist() == [0, 2]
    near(found["embedding"].to_pylist(), encoder.encode_document(["one", "two"]))


def test_nothing_to_embed_is_not_an_error(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    assert embed_files(encoder, [tmp_path / "a.jsonl"], tmp_path / "out").rows == 0
    table = pq.read_table(tmp_path / "out/part-000000.parquet")  # so that readers of part-*.parquet find something
    assert (table.num_rows, table.column_names) == (0, ["id", "embedding"])


def test_a_run_resumes_with_another_spelling_of_its_input(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    first = embed_files(encoder, ["a.jsonl"], tmp_path / "out")
    assert embed_files(encoder, [path], tmp_path / "out") == first
    assert json.loads((tmp_path / "out/_e5onnx/plan.json").read_text())["files"][0][0] == str(path)


def test_files_without_a_known_suffix_are_counted(encoder: Encoder, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "corpus/a.jsonl", ROWS)
    (tmp_path / "corpus/b.md").touch()
    with pytest.warns(IgnoredFilesWarning, match="because of their suffix: 1"):
        embed_files(encoder, [tmp_path / "corpus"], tmp_path / "out")


@only_linux
def test_names_need_not_be_text(encoder: Encoder, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff")
    write_jsonl(tmp_path / f"{name}.jsonl", ROWS)
    columns = Columns(keep=("text",))
    first = embed_files(encoder, [tmp_path], tmp_path / f"out {name}", columns=columns)
    parquet = tmp_path / f"out {name}/part-000000.parquet"
    again = parquet.rename(tmp_path / f"{name}.parquet")
    for _ in range(2):  # the second time it finds its plan
        second = embed_files(encoder, [str(again)], tmp_path / f"other {name}", columns=columns, on_error="skip")
        assert second == first


def test_progress_covers_reading_too(
    encoder: Encoder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    moved: list[tuple[str, int]] = []
    update = tqdm.update

    def noted(bar: Any, n: int) -> Any:
        moved.append((bar.desc, n))
        return update(bar, n)

    monkeypatch.setattr(tqdm, "update", noted)
    embed_files(encoder, [path], tmp_path / "out", show_progress_bar=True)
    done = {name: sum(n for what, n in moved if what == name) for name, _ in moved}
    assert done == {"Reading input": path.stat().st_size, "Embedding": len(ROWS)}
    assert "tokens/s" in capsys.readouterr().err
    long = write_jsonl(tmp_path / "b.jsonl", [{"text": "word " * 600}] * 6)
    moved.clear()
    embed_files(encoder, [long], tmp_path / "long", show_progress_bar=True)
    assert sum(what == "Embedding" for what, _ in moved) > 1  # it moves with each run of the model, not with each part
