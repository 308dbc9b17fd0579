"""Files of every format in, vectors out: compared with the encoder, row by row."""

from __future__ import annotations

import bz2
import csv
import errno
import gzip
import json
import lzma
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e5onnx import Encoder, InputTypeError, InputValueError
from e5onnx.errors import JobLockError, JobRunningError
from e5onnx.files import RowError, embed_files, engines
from e5onnx.files.columns import Columns
from e5onnx.files.inputs import describe_file
from e5onnx.files.job import opened_folder
from e5onnx.files.outputs import quantized, write_part
from e5onnx.files.plan import plan_parts
from e5onnx.files.rows import RowReader
from texts import TEXTS

ROWS = [
    {"name": f"row {number}", "text": text, "title": None if number % 3 else f"Title {number}", "year": 1900 + number}
    for number, text in enumerate(text for text in TEXTS * 3 if text.strip() and "\n" not in text)
]


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder(tiny_model, threads=1)


def write_jsonl(path: Path, rows: Sequence[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def write_csv(path: Path, rows: Sequence[dict[str, Any]], delimiter: str = ",") -> Path:
    with path.open("w", newline="", encoding="utf-8-sig") as stream:
        writer = csv.DictWriter(stream, list(rows[0]), delimiter=delimiter)
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_parquet(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    pq.write_table(pa.Table.from_pylist(list(rows)), path, row_group_size=7)
    return path


def compressed(path: Path, compress: Callable[[bytes], bytes], suffix: str) -> Path:
    packed = path.with_name(path.name + suffix)
    packed.write_bytes(compress(path.read_bytes()))
    path.unlink()
    return packed


def zstd(content: bytes) -> bytes:
    packed: bytes = pa.compress(content, codec="zstd", asbytes=True)
    return packed


def near(vectors: Any, expected: Any) -> None:
    np.testing.assert_allclose(np.asarray(vectors, np.float32), expected, rtol=0, atol=1e-6)


COLUMNS = Columns(title="title", id="name", keep=("year",))
EXPECTED = [f"{row['title']} {row['text']}" if row["title"] else str(row["text"]) for row in ROWS]


@pytest.mark.parametrize(
    "make",
    [
        lambda folder: write_jsonl(folder / "a.jsonl", ROWS),
        lambda folder: write_csv(folder / "a.csv", ROWS),
        lambda folder: write_csv(folder / "a.tsv", ROWS, "\t"),
        lambda folder: write_parquet(folder / "a.parquet", ROWS),
        lambda folder: compressed(write_jsonl(folder / "a.jsonl", ROWS), gzip.compress, ".gz"),
        lambda folder: compressed(write_jsonl(folder / "a.ndjson", ROWS), bz2.compress, ".bz2"),
        lambda folder: compressed(write_csv(folder / "a.csv", ROWS), lzma.compress, ".xz"),
        lambda folder: compressed(write_jsonl(folder / "a.json", ROWS), zstd, ".zst"),
        lambda folder: [write_jsonl(folder / f"{i}.jsonl", ROWS[5 * i : 5 * i + 5]) for i in range(10)],
    ],
    ids=["jsonl", "csv", "tsv", "parquet", "gz", "bz2", "xz", "zst", "many files"],
)
def test_every_format_gives_the_encoders_vectors(make: Any, encoder: Encoder, tmp_path: Path) -> None:
    corpus = tmp_path / "corpus"
    corpus.mkdir()
    make(corpus)
    types = {"year": "int64"}
    summary = embed_files(encoder, [str(corpus)], tmp_path / "out", columns=COLUMNS, column_types=types, part_rows=8)
    table = ds.dataset(tmp_path / "out").to_table()
    assert table.column("id").to_pylist() == [row["name"] for row in ROWS]
    assert table.column("year").to_pylist() == [row["year"] for row in ROWS]
    near(table.column("embedding").to_pylist(), encoder.encode_document(EXPECTED))
    assert (summary.rows, summary.rejected, summary.parts) == (len(ROWS), 0, -(-len(ROWS) // 8))
    metadata = pq.read_schema(tmp_path / "out/part-000000.parquet").metadata
    assert metadata[b"e5onnx.fingerprint"].decode() == encoder.fingerprint
    assert metadata[b"e5onnx.role"] == b"document"


def test_lines_of_text_and_numbers_as_ids(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufefffirst\r\n\nthird".encode())
    embed_files(encoder, [str(tmp_path / "*.txt")], tmp_path / "out", role="query")
    table = pq.read_table(tmp_path / "out/part-000000.parquet")
    assert table.column("id").to_pylist() == [0, 1, 2]
    near(table.column("embedding").to_pylist(), encoder.encode_query(["first", "", "third"]))


def test_npy_has_ids_beside_it(encoder: Encoder, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    embed_files(encoder, [str(tmp_path / "a.jsonl")], tmp_path / "out", columns=COLUMNS, output_format="npy")
    near(np.load(tmp_path / "out/part-000000.npy"), encoder.encode_document(EXPECTED))
    lines = (tmp_path / "out/part-000000.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [{"id": row["name"], "year": row["year"]} for row in ROWS]


@pytest.mark.parametrize(("output_format", "dtype"), [(f, d) for f in ("parquet", "npy") for d in ("float16", "int8")])
def test_smaller_vectors_are_close_and_say_their_scale(
    encoder: Encoder, tmp_path: Path, output_format: Any, dtype: Any
) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    embed_files(encoder, [str(tmp_path / "a.jsonl")], tmp_path / "out", output_format=output_format, dtype=dtype)
    expected = encoder.encode_document([str(row["text"]) for row in ROWS])
    if output_format == "npy":
        vectors = np.load(tmp_path / "out/part-000000.npy")
        scales = np.load(tmp_path / "out/part-000000.scale.npy") if dtype == "int8" else 1
    else:
        table = pq.read_table(tmp_path / "out/part-000000.parquet")
        vectors = np.array(table.column("embedding").to_pylist(), dtype)
        scales = table.column("embedding_scale").to_numpy() if dtype == "int8" else 1
    assert str(vectors.dtype) == dtype
    restored = vectors.astype(np.float32) * np.reshape(scales, (-1, 1))
    most = np.abs(expected).max(axis=1, keepdims=True) / 127 / 2 if dtype == "int8" else np.abs(expected) / 2048
    assert (np.abs(restored - expected) <= most + 1e-6).all()


@pytest.mark.parametrize(
    ("option", "given"),
    [
        ("role", "passage"),
        ("truncate", "eror"),
        ("on_error", "skp"),
        ("dtype", "float64"),
        ("output_format", "csv"),
        ("input_format", "json"),
        ("engine", "Ray"),
        ("role", None),
    ],
)
def test_options_take_only_their_words(encoder: Encoder, tmp_path: Path, option: str, given: Any) -> None:
    options: dict[str, Any] = {option: given}
    with pytest.raises(InputValueError, match=f"^{option} must be one of '.*', got {given!r}$"):
        embed_files(encoder, [str(tmp_path / "a.jsonl")], tmp_path / "out", **options)


def test_inputs_are_a_list_and_names_may_be_paths(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    write_jsonl(path, ROWS)
    for one in (path, str(path)):
        with pytest.raises(InputTypeError, match=r"inputs must be a list of names, got a single name: use \['.*'\]"):
            embed_files(encoder, one, tmp_path / "out")  # type: ignore[arg-type]
    assert embed_files(encoder, [path], str(tmp_path / "out"), part_rows=np.int64(2)).rows == len(ROWS)  # type: ignore[arg-type]
    with pytest.raises(InputTypeError, match=r"part_rows must be a whole number, got 2\.5"):
        embed_files(encoder, [path], tmp_path / "out", part_rows=2.5)  # type: ignore[arg-type]
    with pytest.raises(InputValueError, match="column_types names 'yaer', which is neither the id nor kept"):
        embed_files(encoder, [path], tmp_path / "new", column_types={"yaer": "int64"})


@pytest.mark.parametrize("output_format", ["parquet", "npy"])
def test_a_part_may_have_more_texts_than_are_run_at_once(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output_format: Literal["parquet", "npy"]
) -> None:
    monkeypatch.setattr(engines, "_WINDOW", 3)
    texts = [f"text {number} " * number for number in range(1, 9)]
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": text} for text in texts])
    embed_files(encoder, [path], tmp_path / "out", output_format=output_format)
    if output_format == "npy":
        vectors = np.load(tmp_path / "out/part-000000.npy")
    else:
        vectors = np.array(pq.read_table(tmp_path / "out/part-000000.parquet").column("embedding").to_pylist())
    np.testing.assert_allclose(vectors, encoder.encode_document(texts), rtol=0, atol=1e-6)


def test_int8_of_zeros_is_zero() -> None:
    integers, scales = quantized(np.array([[0, 0], [-2, 1]], np.float32))
    assert (integers.tolist(), scales.tolist()) == ([[0, 0], [-127, 64]], [0, np.float32(2 / 127)])


def test_float16_that_would_be_infinite_is_refused(tmp_path: Path) -> None:
    for component in (65519.0, 65520.0):
        vectors = np.array([[1.0, component]], np.float32)

        def write(vectors: Any = vectors) -> None:
            write_part(tmp_path, "x", pa.table({"id": [0]}), vectors, output_format="npy", dtype="float16", metadata={})

        if component < 65520:
            write()
            np.testing.assert_array_equal(np.load(tmp_path / "x.npy"), np.array([[1, 65504]], np.float16))
        else:
            with pytest.raises(InputValueError, match="a component of a vector is too large for float16: use float32"):
                write()


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
        embed_files(encoder, [str(path)], tmp_path / "out", columns=columns, part_rows=5)
    assert reason in str(caught.value)
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 2  # what was done is kept
    assert len(list((tmp_path / "out/_e5onnx/done").iterdir())) == 2
    summary = embed_files(encoder, [str(path)], tmp_path / "out", columns=columns, part_rows=5, on_error="skip")
    assert (summary.rows, summary.rejected) == (len(ROWS), 1)
    (reject,) = map(json.loads, (tmp_path / "out/_e5onnx/rejects.jsonl").read_text().splitlines())
    assert (reject["file"], reject["row"]) == (str(path), 13)
    assert reason in reject["reason"]
    table = ds.dataset(tmp_path / "out").to_table()
    near(table.column("embedding").to_pylist(), encoder.encode_document([str(row["text"]) for row in ROWS]))


def test_bad_rows_of_csv_and_parquet_are_named(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text,n\nfine,1\n"a\nb",2\nno\n"bad \xff",4\nfine,x\n')
    broken = pa.array(["fine", "bad", None]).cast(pa.binary()).to_pylist()
    broken[1] = b"bad \xff"
    strings = pa.Array.from_buffers(pa.string(), 3, pa.array(broken, pa.binary()).buffers())
    pq.write_table(pa.table({"text": strings, "n": [1, 2, 3]}), tmp_path / "b.parquet")
    columns = Columns(keep=("n",))
    embed_files(
        encoder, [str(tmp_path)], tmp_path / "out", columns=columns, column_types={"n": "int64"}, on_error="skip"
    )
    rejects = [json.loads(line) for line in (tmp_path / "out/_e5onnx/rejects.jsonl").read_text().splitlines()]
    assert [(Path(each["file"]).name, each["row"]) for each in rejects] == [
        ("a.csv", 3), ("a.csv", 4), ("a.csv", 5), ("b.parquet", 2), ("b.parquet", 3),
    ]  # fmt: skip
    table = ds.dataset(tmp_path / "out").to_table()
    near(table.column("embedding").to_pylist(), encoder.encode_document(["fine", "a\nb", "fine"]))
    assert table.column("id").to_pylist() == [0, 1, 5]


def test_too_long_texts_can_be_refused(encoder: Encoder, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "short"}, {"text": "word " * 600}])
    summary = embed_files(encoder, [str(path)], tmp_path / "cut")
    assert (summary.truncated, summary.tokens) == (1, 3 + 512)
    with pytest.raises(RowError, match="line 2: its text has 602 tokens, the model's maximum is 512"):
        embed_files(encoder, [str(path)], tmp_path / "out", truncate="error")


def test_rejects_are_in_the_order_of_the_input(encoder: Encoder, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "word " * 600}, {"text": 1}, {"text": "fine"}, {"text": None}])
    embed_files(encoder, [str(path)], tmp_path / "out", truncate="error", on_error="skip")
    rejects = [json.loads(line) for line in (tmp_path / "out/_e5onnx/rejects.jsonl").read_text().splitlines()]
    assert [each["row"] for each in rejects] == [1, 2, 4]
    with pytest.raises(RowError, match="line 1: its text has 602 tokens"):
        embed_files(encoder, [str(path)], tmp_path / "stopped", truncate="error")


def test_a_row_without_a_space_in_a_million_characters_is_a_bad_row(encoder: Encoder, tmp_path: Path) -> None:
    rows = [{"text": "one"}, {"text": "x" * 1_200_000}, {"text": "two"}]
    path = write_jsonl(tmp_path / "in.jsonl", rows)
    with pytest.raises(RowError, match="line 2: its text cannot be tokenised: it has 1,200,000 characters"):
        embed_files(encoder, [str(path)], tmp_path / "out")
    embed_files(encoder, [str(path)], tmp_path / "out", on_error="skip")
    found = pq.read_table(tmp_path / "out/part-000000.parquet")
    assert found["id"].to_pylist() == [0, 2]
    expected = encoder.encode_document(["one", "two"])
    np.testing.assert_allclose(np.array(found["embedding"].to_pylist()), expected, atol=1e-6)


def test_blank_lines_before_a_part_count_as_lines(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('\n\n{"text": "a"}\n{"text": "b"}\n\n\n{"text": 1}\n')
    with pytest.raises(RowError, match="line 7: "):
        embed_files(encoder, [str(path)], tmp_path / "out", part_rows=2)


STRAY_QUOTE = b'text,n\nfine,1\n"open,2\n' + b"fine,3\n" * 40


def test_a_stray_quote_says_what_it_took_in(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(STRAY_QUOTE)
    with pytest.raises(InputValueError, match=r"row 2: not valid CSV: .* It spans 41 lines, 3 to 43, probably because a quote"):
        embed_files(encoder, [str(tmp_path / "a.csv")], tmp_path / "out", on_error="skip")
    (tmp_path / "two.csv").write_bytes(b'text,n\nfine,1\n"open,2\nfine"\nfine,4\n')
    with pytest.raises(InputValueError, match=r"It spans 2 lines, 3 to 4,"):
        embed_files(encoder, [str(tmp_path / "two.csv")], tmp_path / "two", on_error="skip")
    (tmp_path / "b.csv").write_bytes(b'text,n\nfine,1\n"open,2\nfine,3\nfine"\nfine,4\n')
    with pytest.raises(
        InputValueError, match=r"row 2: its number of fields is 1, not 2 as in the header\. It spans 3 lines, 3 to 5,"
    ):
        embed_files(encoder, [str(tmp_path / "b.csv")], tmp_path / "other", part_rows=1, on_error="skip")


@pytest.mark.parametrize(
    ("name", "content", "rejects"),
    [
        ("a.csv", b"text,n\nfine,1\n" + b"long " * 20 + b",2\nfine,3\n", [(2, "it has more than")]),
        ("a.txt", b"fine\n" + b"long " * 20 + b"\nfine\n", [(2, "it has more than")]),
        ("a.jsonl", b'{"text": "fine"}\n{"text": "' + b"long " * 20 + b'"}\n{"text": "fine"}\n', [(2, "it has more")]),
    ],
)
def test_a_record_has_a_largest_size(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, content: bytes, rejects: Any
) -> None:
    monkeypatch.setattr("e5onnx.files.records.RECORD_BYTES", 60)
    (tmp_path / name).write_bytes(content)
    summary = embed_files(encoder, [str(tmp_path / name)], tmp_path / "out", on_error="skip", part_rows=2)
    found = [json.loads(line) for line in (tmp_path / "out/_e5onnx/rejects.jsonl").read_text().splitlines()]
    assert [each["row"] for each in found] == [row for row, _ in rejects]
    assert all(reason in each["reason"] for each, (_, reason) in zip(found, rejects, strict=True))
    assert summary.rows == 2


def test_nothing_to_embed_is_no_error(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").touch()
    assert embed_files(encoder, [str(tmp_path / "a.jsonl")], tmp_path / "out").rows == 0
    table = pq.read_table(tmp_path / "out/part-000000.parquet")  # so that readers of part-*.parquet find something
    assert (table.num_rows, table.column_names) == (0, ["id", "embedding"])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.parquet", b"PAR1 no", "is damaged"),
        ("a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 1000, mtime=0)[:40], "is damaged"),
        ("a.jsonl.zst", b"nothing like it", "is damaged"),
        ("a.csv", b"a,b\n1,2\n", "has no column 'text'; it has 'a', 'b'"),
        ("a.csv", b"text,text\n1,2\n", "has two columns with the same name"),
        ("a.csv", b"text\rfoo\rbar\r", "is damaged"),
        ("a.csv", b'"text"b,c\n1,2\n', "is damaged"),
        ("a.jsonl.gz", gzip.compress(b"", mtime=0)[:10] + b"\xff" * 50, "is damaged"),
        ("a.json", b'\xef\xbb\xbf[{"text": "a"},\n{"text": "b"}]\n', "is one JSON array"),
        ("a.jsonl", b'\n[\n{"text": "a"}\n]\n', "is one JSON array"),
        ("a.bin", b"", "the name of .* does not tell its format"),
    ],
)
def test_what_is_wrong_with_a_file_is_said(
    encoder: Encoder, tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputValueError, match=message):
        embed_files(encoder, [str(tmp_path / name)], tmp_path / "out")


def test_two_processes_do_not_write_into_one_folder(encoder: Encoder, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    with opened_folder(tmp_path / "out"), pytest.raises(JobRunningError, match="another process writes"):
        embed_files(encoder, [str(path)], tmp_path / "out")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EIO])
def test_a_lock_that_fails_is_not_taken_for_another_process(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def flock(*_: Any) -> None:
        raise OSError(code, os.strerror(code))

    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", flock)
        with pytest.raises(JobLockError, match=f"out cannot be locked.*{os.strerror(code)}"):
            embed_files(encoder, [str(path)], tmp_path / "out")
    assert embed_files(encoder, [str(path)], tmp_path / "out").rows == len(ROWS)


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
            write_csv(path, rows or [{"text": "", "n": ""}])
            rows = rows or [{"text": "", "n": ""}]
        elif kind == "parquet":
            pq.write_table(pa.table({"text": pa.array(texts, pa.string())}), path, row_group_size=3)
        else:
            lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode()
            path.write_bytes(gzip.compress(lines) if kind.endswith("gz") else lines)
        described.append(describe_file(path))
        expected += [row["text"] for row in rows]
    parts = plan_parts(described, part_rows=part_rows, part_bytes=part_bytes)
    read = [RowReader(described, Columns()).read(part) for part in reversed(parts)]
    assert [text for rows in reversed(read) for text in rows.texts] == expected
    assert [number for rows in reversed(read) for number in rows.columns.column("id").to_pylist()] == list(
        range(len(expected))
    )
    assert all(1 <= part.rows <= part_rows for part in parts) or (len(parts) == 1 and not expected)
    reader = RowReader(described, Columns())  # which goes on where it stands
    assert [text for part in parts for text in reader.read(part).texts] == expected
