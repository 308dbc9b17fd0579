"""`e5onnx embed` without an output folder: files are read by their format, as with one."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from e5onnx import Encoder, InputValueError
from e5onnx.files import IgnoredFilesWarning, RowError, cli, embed_files, records
from e5onnx.files.columns import Columns
from e5onnx.files.records import Reject
from e5onnx.files.texts import open_texts

ROWS: list[dict[str, Any]] = [
    {"text": "first", "title": "A title", "n": 1},
    {"text": '  second, with "quotes"  ', "title": None, "n": 2},
    {"text": "third\twith ünïcode 🙂", "title": "", "n": 3},
]


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder(tiny_model, threads=1)


def e5onnx(*arguments: Any, stdin: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
    command = [sys.executable, "-m", "e5onnx", *map(str, arguments)]
    return subprocess.run(command, input=stdin, capture_output=True, check=False, **options)


def jsonl(rows: Sequence[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row).encode() + b"\n" for row in rows)


def csv(rows: Sequence[dict[str, Any]], delimiter: str = ",") -> bytes:
    def field(value: Any) -> str:
        return '"' + ("" if value is None else str(value)).replace('"', '""') + '"'

    lines = [delimiter.join(rows[0]), *(delimiter.join(map(field, row.values())) for row in rows)]
    return ("\ufeff" + "\r\n".join(lines)).encode()


def parquet(rows: Sequence[dict[str, Any]]) -> bytes:
    pq.write_table(pa.Table.from_pylist(list(rows)), stream := pa.BufferOutputStream())
    content: bytes = stream.getvalue().to_pybytes()
    return content


FORMATS: dict[str, Callable[[Sequence[dict[str, Any]]], bytes]] = {
    "a.jsonl": jsonl,
    "a.csv": csv,
    "a.tsv": lambda rows: csv(rows, "\t"),
    "a.parquet": parquet,
    "a.json.gz": lambda rows: gzip.compress(jsonl(rows)),
    "a.csv.zst": lambda rows: bytes(pa.compress(csv(rows), codec="zstd", asbytes=True)),
}


@pytest.mark.parametrize("name", FORMATS)
def test_files_are_read_by_their_format(encoder: Encoder, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FORMATS[name](ROWS))
    is_csv = "sv" in name
    # of CSV an empty title is a text, not null
    titled = ["A title first", (" " if is_csv else "") + ROWS[1]["text"], " " + ROWS[2]["text"]]
    expected = encoder.encode_document([row["text"] for row in ROWS])
    printed = e5onnx("embed", encoder.arguments()["model"], path)
    assert printed.returncode == 0, printed.stderr
    lines = [json.loads(line) for line in printed.stdout.splitlines()]
    assert [list(line) for line in lines] == [["text", "embedding"]] * 3
    assert [line["text"] for line in lines] == [row["text"] for row in ROWS]
    np.testing.assert_allclose([line["embedding"] for line in lines], expected, rtol=0, atol=1e-6)

    array = tmp_path / "x.npy"
    done = e5onnx("embed", encoder.arguments()["model"], path, "--title-column", "title", "--output", array)
    assert done.returncode == 0, done.stderr
    np.testing.assert_allclose(np.load(array), encoder.encode_document(titled), rtol=0, atol=1e-6)
    embed_files(encoder, [str(path)], tmp_path / "out", columns=Columns(title="title", keep=("text",)))
    table = ds.dataset(sorted(map(str, (tmp_path / "out").glob("part-*")))).to_table()
    np.testing.assert_allclose(np.load(array), table.column("embedding").to_pylist(), rtol=0, atol=1e-6)


def test_other_columns_and_standard_input(encoder: Encoder, tmp_path: Path) -> None:
    rows = [{"body": "a"}, {"body": "b"}]
    path = tmp_path / "rows"
    path.write_bytes(jsonl(rows))
    model = encoder.arguments()["model"]
    options = ("--text-column", "body", "--input-format", "jsonl")
    done = e5onnx("embed", model, path, "-", *options, stdin=jsonl([{"body": "c"}]))
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["a", "b", "c"], done.stderr
    done = e5onnx("embed", model, stdin=b'{"text": "a"}\n')  # text, as nothing else is said
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ['{"text": "a"}']
    done = e5onnx("embed", model, path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert f"the name of {path} does not tell its format: choose one with --input-format" in done.stderr.decode()
    done = e5onnx("embed", model, "--input-format", "parquet", stdin=parquet(ROWS))
    assert done.returncode == 1
    assert b"standard input is a pipe, but Parquet is read from its end: write it to a file" in done.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX'")
def test_pipes_can_be_read_once(encoder: Encoder, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    writer = subprocess.Popen(["sh", "-c", 'printf "text,n\\na,1\\nb,2\\n" > "$1"', "sh", str(tmp_path / "pipe.csv")])
    done = e5onnx("embed", encoder.arguments()["model"], tmp_path / "pipe.csv")
    assert writer.wait() == 0
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["a", "b"], done.stderr


def test_bad_rows_stop_or_are_named(encoder: Encoder, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": 5}\nno\n{"text": "b"}\n')
    model = encoder.arguments()["model"]
    done = e5onnx("embed", model, path, "--output", tmp_path / "x.npy")
    assert done.returncode == 1
    assert done.stderr.decode() == f"e5onnx: error: {path}, line 2: column 'text' is a number, not a text\n"
    assert not (tmp_path / "x.npy").exists()
    done = e5onnx("embed", model, path, "--on-error", "skip", "--json", "--output", tmp_path / "x.npy")
    assert json.loads(done.stdout)["shape"] == [2, 48]
    notes = done.stderr.decode().splitlines()
    assert notes[0] == f"e5onnx: warning: skipped: {path}, line 2: column 'text' is a number, not a text"
    assert notes[1].startswith(f"e5onnx: warning: skipped: {path}, line 3: it is not valid JSON: ")
    assert len(notes) == 2


def test_folders_are_read_and_files_without_a_format_counted(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(csv(ROWS))
    (tmp_path / "b.jsonl").write_bytes(jsonl(ROWS))
    (tmp_path / "c.md").touch()
    with pytest.warns(IgnoredFilesWarning, match="because of their suffix: 1"):
        found = list(open_texts([str(tmp_path), str(tmp_path / "b*")], Columns(), input_format=None, reject=stop))
    numbered = [(row["text"], number) for number, row in enumerate(ROWS, 1)]
    assert [(text, source.path, row) for text, source, row in found] == [(text, str(tmp_path / name), row) for name in ("a.csv", "b.jsonl") for text, row in numbered]


def stop(reject: Reject) -> None:
    raise reject.error()


def texts(path: Path, columns: Columns | None = None, skipped: list[Reject] | None = None) -> list[str]:
    reject = stop if skipped is None else skipped.append
    return [text for text, *_ in open_texts([str(path)], columns or Columns(), input_format=None, reject=reject)]


@pytest.mark.parametrize("name", [name for name in FORMATS if name != "a.csv.zst"])
@pytest.mark.parametrize("columns", [Columns(text="txt"), Columns(title="titel")])
def test_a_misspelt_column_is_an_error(tmp_path: Path, name: str, columns: Columns) -> None:
    (tmp_path / name).write_bytes(FORMATS[name](ROWS))
    wrong = "txt" if columns.text == "txt" else "titel"
    with pytest.raises(InputValueError, match=f"column '{wrong}'"):
        texts(tmp_path / name, columns)
    with pytest.raises(InputValueError, match=f"column '{wrong}'"):
        texts(tmp_path / name, columns, [])


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.txt", "a.json.gz"])
def test_a_file_without_rows_has_no_texts(tmp_path: Path, name: str) -> None:
    content = b"text\n" if name == "a.csv" else b""
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert texts(tmp_path / name) == []


def test_every_file_has_the_columns_that_it_declares(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(csv(ROWS))
    (tmp_path / "b.csv").write_bytes(b"text,n\na,1\n")
    with pytest.raises(InputValueError, match=r"b\.csv has no column 'title'"):
        texts(tmp_path, Columns(title="title"))


def test_a_quote_that_is_not_closed_stops(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b'text,n\nfine,1\n"open,2\n' + b"fine,3\n" * 1990)
    with pytest.raises(InputValueError, match=r"row 2: .* It spans 1,991 lines, 3 to 1993, probably because a quote"):
        texts(tmp_path / "a.csv", skipped=[])


def test_marks_of_utf8_count_at_the_beginning_alone(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffa \u00a0\n\ufeffb  \r\n \tc\n\n".encode())
    expected = ["a \u00a0", "\ufeffb  ", " \tc", ""]  # spaces at the ends are the text's
    assert texts(tmp_path / "a.txt") == expected
    embed_files(encoder, [str(tmp_path / "a.txt")], tmp_path / "out", columns=Columns(keep=("text",)), part_rows=1)
    assert ds.dataset(tmp_path / "out").to_table().column("text").to_pylist() == expected
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
    for part_rows in (1, 2, 10):  # also from the middle on
        output = tmp_path / f"out{part_rows}"
        embed_files(encoder, [str(tmp_path / "a.csv")], output, part_rows=part_rows, on_error="skip")
        rejects = [json.loads(line) for line in (output / "_e5onnx/rejects.jsonl").read_text().splitlines()]
        assert [reject["row"] for reject in rejects] == [3, 5]
        assert ds.dataset(output).to_table().column("id").to_pylist() == [0, 1, 3]


@pytest.mark.parametrize("name", ["a.parquet", "a.csv.zst", "a.jsonl", "a.csv", "a.txt"])
def test_lines_and_csv_need_no_extra(encoder: Encoder, tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(FORMATS[name](ROWS) if name in FORMATS else b"first\n")
    for missing in ("pyarrow", "tqdm", "filelock"):
        (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('no', name='{missing}')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    done = e5onnx("embed", encoder.arguments()["model"], path, env=environment)
    if name in ("a.parquet", "a.csv.zst"):
        assert done.returncode == 1
        assert done.stderr.decode().endswith("needs more: pip install 'e5onnx[bulk]'\n")
    else:
        assert json.loads(done.stdout.splitlines()[0])["text"] == "first", done.stderr


def test_too_long_texts_are_named_or_skipped_like_other_bad_rows(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("short\n" * 1100 + "word " * 600 + "\nlast\n")
    refused = e5onnx("embed", tiny_model, path, "--truncate", "error")
    reason = f"{path}, line 1101: its text has 602 tokens, the model's maximum is 512; split it, or let it be cut with --truncate warn"
    assert (refused.returncode, refused.stderr.decode()) == (1, f"e5onnx: error: {reason}\n")
    skipped = e5onnx("embed", tiny_model, path, "--truncate", "error", "--on-error", "skip")
    assert (skipped.returncode, skipped.stderr.decode()) == (0, f"e5onnx: warning: skipped: {reason}\n")
    assert [json.loads(line)["text"] for line in skipped.stdout.splitlines()] == ["short"] * 1100 + ["last"]


def test_output_that_is_appended_to_its_own_input_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(before := jsonl(ROWS))
    with path.open("ab") as output:
        done = subprocess.run(
            [sys.executable, "-m", "e5onnx", "embed", tiny_model, path],
            stdout=output,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert (done.returncode, path.read_bytes()) == (1, before)
    assert done.stderr.decode() == f"e5onnx: error: {path} is also standard output: reading it would never end\n"


def test_what_was_cut_is_said_even_if_a_later_row_fails(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(jsonl([{"text": "word " * 600}, *[{"text": "short"}] * 1100]) + b"no\n")
    done = e5onnx("embed", tiny_model, path)
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 1024)
    warning, error = done.stderr.decode().splitlines()
    assert warning.startswith("e5onnx: warning: cut 1 text longer than the model's 512 tokens (the longest has 602 tokens); use")
    assert error.startswith(f"e5onnx: error: {path}, line 1102: it is not valid JSON")


def test_few_long_texts_are_held_at_once(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "_CHARACTERS_AT_ONCE", 25)
    (tmp_path / "a.txt").write_text("1234567890\n" * 7)
    options = Namespace(
        text_column="text", title_column=None, input_format=None, on_error="stop", role="raw", truncate="warn"
    )
    read = list(cli._Texts(options, [str(tmp_path / "a.txt")]).embedded(encoder))
    assert [len(some) for some, _ in read] == [3, 3, 1]
    expected = encoder.encode("1234567890", prompt="")
    for _, vectors in read:
        np.testing.assert_allclose(vectors, [expected] * len(vectors), atol=1e-6)


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


COMPRESSORS: dict[str, Callable[[bytes], bytes]] = {".gz": gzip.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


@pytest.mark.parametrize("suffix", COMPRESSORS)
@pytest.mark.parametrize("damage", ["another header", "cut", "text"])
def test_damage_after_the_first_compressed_stream_is_noticed(tmp_path: Path, suffix: str, damage: str) -> None:
    first, second = (COMPRESSORS[suffix](jsonl([{"text": text}])) for text in "ab")
    path = tmp_path / f"a.jsonl{suffix}"
    path.write_bytes(first + second)
    assert texts(path) == ["a", "b"]
    rest = {"another header": b"?" + second[1:], "cut": second[:-1], "text": b"not compressed"}[damage]
    path.write_bytes(first + rest)
    with pytest.raises(InputValueError, match=f"{path} is damaged"):
        texts(path)
    with pytest.raises(InputValueError, match=f"{path} is damaged"):
        texts(path, skipped=[])


@pytest.mark.parametrize("suffix", COMPRESSORS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_compressed_streams_are_read_to_their_end(suffix: str, data: st.DataObject) -> None:
    contents = data.draw(st.lists(st.binary(max_size=300), min_size=1, max_size=4))
    large = data.draw(st.binary(min_size=1, max_size=5)) * 2**17
    padding = b"\0" * data.draw(st.sampled_from([0, 4, 2**17]))
    compressed = [COMPRESSORS[suffix](each) for each in (*contents, large)]
    with records._DECOMPRESSORS[suffix](io.BytesIO(padding.join([*compressed, b""]))) as stream:
        assert stream.read() == b"".join([*contents, large])
    cut = data.draw(st.integers(1, len(compressed[-1]) - 1))
    with (
        pytest.raises((EOFError, gzip.BadGzipFile)),
        records._DECOMPRESSORS[suffix](io.BytesIO(b"".join(compressed)[:-cut])) as stream,
    ):
        stream.read()


def test_an_output_that_cannot_be_written_is_noticed_before_the_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "file").touch()
    for output, message in (
        ("no/x.npy", "No such file or directory"),
        ("folder.npy", "is a folder: name a file"),
        ("file/x.npy", "Not a directory"),
    ):
        done = e5onnx("embed", tmp_path / "no-model", tmp_path / "a.txt", "--output", tmp_path / output)
        assert done.returncode == 1
        assert message in done.stderr.decode()
        assert str(tmp_path / output) in done.stderr.decode()
        assert "no-model" not in done.stderr.decode()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "file", "folder.npy"]


TEXT = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(TEXT, min_size=1, max_size=8), name=st.sampled_from(list(FORMATS)))
def test_texts_are_those_of_the_rows(tmp_path: Path, rows: list[str], name: str) -> None:
    (tmp_path / name).write_bytes(FORMATS[name]([{"text": text, "n": 0} for text in rows]))
    assert texts(tmp_path / name) == rows
