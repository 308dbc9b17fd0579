"""The command `e5onnx embed`, with and without an output folder."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest

from corpora import TITLED_ROWS as ROWS
from corpora import content, near, read_output, write_jsonl
from e5onnx import Encoder
from e5onnx.files import Columns, cli, embed_files
from e5onnx.quantization import quantization_ranges

Command: TypeAlias = Callable[..., "subprocess.CompletedProcess[str]"]


def process(*arguments: Any, stdin: bytes = b"", **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run the command in a process of its own, for what depends on its standard streams or environment."""
    command = [sys.executable, "-m", "e5onnx", "embed", *map(str, arguments)]
    return subprocess.run(command, **{"input": stdin, "capture_output": True, "check": False, **options})


def texts_in(lines: str | bytes) -> list[str]:
    return [json.loads(line)["text"] for line in lines.splitlines()]


@pytest.mark.parametrize("name", ["a.jsonl", "a.csv", "a.tsv", "a.parquet", "a.json.gz", "a.csv.zst"])
def test_files_are_read_by_their_format(
    e5onnx: Command, encoder: Encoder, tiny_model: Path, tmp_path: Path, name: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content(name, ROWS))
    is_csv = "sv" in name
    # of CSV an empty title is a text, not null
    titled = ["A title first", (" " if is_csv else "") + ROWS[1]["text"], " " + ROWS[2]["text"]]
    printed = e5onnx("embed", tiny_model, path)
    assert printed.returncode == 0, printed.stderr
    lines = [json.loads(line) for line in printed.stdout.splitlines()]
    assert [list(line) for line in lines] == [["text", "embedding"]] * 3
    assert [line["text"] for line in lines] == [row["text"] for row in ROWS]
    near([line["embedding"] for line in lines], encoder.encode_document([row["text"] for row in ROWS]))

    array = tmp_path / "x.npy"
    done = e5onnx("embed", tiny_model, path, "--title-column", "title", "--output", array)
    assert (done.returncode, done.stderr) == (0, f"e5onnx: wrote 3 embeddings of dimension 48 to {array}\n")
    near(np.load(array), encoder.encode_document(titled))
    embed_files(encoder, [path], tmp_path / "out", columns=Columns(title="title", keep=("text",)))
    near(np.load(array), read_output(tmp_path / "out").column("embedding").to_pylist())


def test_other_columns_and_standard_input(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "rows"
    path.write_bytes(content("a.jsonl", [{"body": "a"}, {"body": "b"}]))
    options = ("--text-column", "body", "--input-format", "jsonl")
    done = process(tiny_model, path, "-", *options, stdin=b'{"body": "c"}\n')
    assert texts_in(done.stdout) == ["a", "b", "c"], done.stderr
    done = process(tiny_model, stdin=b'{"text": "a"}\n')  # text, as nothing else is said
    assert texts_in(done.stdout) == ['{"text": "a"}']
    done = process(tiny_model, path)
    assert (done.returncode, done.stdout) == (1, b"")
    assert f"the name of {path} does not tell its format: choose one with --input-format" in done.stderr.decode()
    done = process(tiny_model, "--input-format", "parquet", stdin=content("a.parquet", ROWS))
    assert done.returncode == 1
    assert b"standard input is a pipe, but Parquet is read from its end: write it to a file" in done.stderr


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX'")
def test_pipes_can_be_read_once(e5onnx: Command, tiny_model: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.csv")
    writer = subprocess.Popen(["sh", "-c", 'printf "text,n\\na,1\\nb,2\\n" > "$1"', "sh", str(tmp_path / "pipe.csv")])
    done = e5onnx("embed", tiny_model, tmp_path / "pipe.csv")
    assert writer.wait() == 0
    assert texts_in(done.stdout) == ["a", "b"], done.stderr


def test_bad_rows_stop_or_are_named(e5onnx: Command, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n{"text": 5}\nno\n{"text": "b"}\n')
    done = e5onnx("embed", tiny_model, path, "--output", tmp_path / "x.npy")
    assert done.returncode == 1
    assert done.stderr == f"e5onnx: error: {path}, line 2: column 'text' is a number, not a text\n"
    assert not (tmp_path / "x.npy").exists()
    done = e5onnx("embed", tiny_model, path, "--on-error", "skip", "--json", "--output", tmp_path / "x.npy")
    assert json.loads(done.stdout)["shape"] == [2, 48]
    notes = done.stderr.splitlines()
    assert notes[0] == f"e5onnx: warning: skipped: {path}, line 2: column 'text' is a number, not a text"
    assert notes[1].startswith(f"e5onnx: warning: skipped: {path}, line 3: it is not valid JSON: ")
    assert len(notes) == 2


@pytest.mark.parametrize("name", ["a.parquet", "a.csv.zst", "a.jsonl", "a.csv", "a.txt", "folder"])
def test_lines_and_csv_need_no_extra(tiny_model: Path, tmp_path: Path, name: str) -> None:
    path = tmp_path / (name if "." in name else "a.txt")
    path.write_bytes(b"first\n" if path.suffix == ".txt" else content(name, ROWS))
    for missing in ("pyarrow", "tqdm", "filelock"):
        (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('no', name='{missing}')")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}
    output = ["--output", tmp_path / "out"] if name == "folder" else []
    done = process(tiny_model, path, *output, env=environment)
    needs = {"a.parquet": "reading Parquet", "a.csv.zst": "reading .zst files", "folder": "embedding into a folder"}
    if name in needs:
        assert done.returncode == 1
        assert done.stderr.decode() == f"e5onnx: error: {needs[name]} needs more: pip install 'e5onnx[bulk]'\n"
    else:
        assert texts_in(done.stdout)[0] == "first", done.stderr


def test_too_long_texts_are_named_or_skipped_like_other_bad_rows(
    e5onnx: Command, tiny_model: Path, tmp_path: Path
) -> None:
    path = tmp_path / "a.txt"
    path.write_text("short\n" * 1100 + "word " * 600 + "\nlast\n")
    refused = e5onnx("embed", tiny_model, path, "--truncate", "error")
    reason = f"{path}, line 1101: its text has 602 tokens, the model's maximum is 512; split it, or let it be cut with "
    reason += "--truncate warn"
    assert (refused.returncode, refused.stderr) == (1, f"e5onnx: error: {reason}\n")
    skipped = e5onnx("embed", tiny_model, path, "--truncate", "error", "--on-error", "skip")
    assert (skipped.returncode, skipped.stderr) == (0, f"e5onnx: warning: skipped: {reason}\n")
    assert texts_in(skipped.stdout) == ["short"] * 1100 + ["last"]


def test_output_that_is_appended_to_its_own_input_is_refused(tiny_model: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    before = path.read_bytes()
    with path.open("ab") as output:
        done = process(tiny_model, path, capture_output=False, stdout=output, stderr=subprocess.PIPE)
    assert (done.returncode, path.read_bytes()) == (1, before)
    assert done.stderr.decode() == f"e5onnx: error: {path} is also standard output: reading it would never end\n"


def test_what_was_cut_is_reported_even_if_a_later_row_fails(e5onnx: Command, tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"word " * 600 + b"\n" + b"short\n" * 1100 + b"\xff\n")
    done = e5onnx("embed", tiny_model, path)
    assert (done.returncode, len(done.stdout.splitlines())) == (1, 1024)
    warning, error = done.stderr.splitlines()
    cut = "cut 1 text longer than the model's 512 tokens (the longest has 602 tokens)"
    assert warning == f"e5onnx: warning: {cut}; use --truncate error to refuse such texts"
    assert error.startswith(f"e5onnx: error: {path}, line 1102: it is not valid UTF-8")


def test_few_long_texts_are_held_at_once(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "_CHARACTERS_AT_ONCE", 25)
    (tmp_path / "a.txt").write_text("1234567890\n" * 7)
    options = Namespace(
        text_column="text", title_column=None, input_format=None, on_error="stop", role="raw", truncate="warn"
    )
    read = list(cli._Texts(options, [str(tmp_path / "a.txt")]).embedded(encoder))
    assert [len(some) for some, _ in read] == [3, 3, 1]
    near(np.concatenate([vectors for _, vectors in read]), [encoder.encode("1234567890", prompt="")] * 7)


def test_an_output_that_cannot_be_written_is_noticed_before_the_model_is_loaded(
    e5onnx: Command, tmp_path: Path
) -> None:
    (tmp_path / "folder.npy").mkdir()
    (tmp_path / "a.txt").write_text("a\n")
    (tmp_path / "file").touch()
    for output, message in (
        ("no/x.npy", "no such file or directory"),
        ("folder.npy", "is a folder: name a file"),
        ("file/x.npy", "not a directory"),
    ):
        done = e5onnx("embed", tmp_path / "no-model", tmp_path / "a.txt", "--output", tmp_path / output)
        assert done.returncode == 1
        assert message in done.stderr
        assert str(tmp_path / output) in done.stderr
        assert "no-model" not in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.txt", "file", "folder.npy"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--part-rows", "0"], "--part-rows must be at least 1, got 0"),
        (["--address", "127.0.0.1:1"], "--address needs --engine ray"),
    ],
)
def test_wrong_usage_is_two(e5onnx: Command, tiny_model: Path, tmp_path: Path, options: Any, message: str) -> None:
    failed = e5onnx("embed", tiny_model, "a.jsonl", "--output", tmp_path / "out", *options)
    assert failed.returncode == 2
    assert message in failed.stderr


def test_a_folder_is_summarised(e5onnx: Command, tiny_model: Path, tmp_path: Path) -> None:
    rows = [{"text": "a"}, {"text": None}, {"text": "b"}, {"text": "word " * 600}]
    path, output = write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "out"
    options = ("--part-rows", "2", "--on-error", "skip")
    done = e5onnx("embed", tiny_model, path, "--output", output, *options, "--json")
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["rejected"], summary["truncated"], summary["parts"]) == (3, 1, 1, 2)
    done = e5onnx("embed", tiny_model, path, "--output", output, *options)
    assert f"{output} holds 3 embeddings of dimension 48 in 2 parts" in done.stderr
    assert f"warning: skipped 1 row; {output}/_e5onnx/rejects.jsonl says why" in done.stderr
    assert "warning: cut 1 text longer than the model's 512 tokens; use" in done.stderr
    failed = e5onnx("embed", tiny_model, path, "--output", tmp_path / "other")
    error = f"e5onnx: error: {path}, line 2: its text, column 'text', is null"
    assert (failed.returncode, failed.stderr.splitlines()[-1]) == (1, error)


def test_ranges_come_from_a_file(e5onnx: Command, encoder: Encoder, tiny_model: Path, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    ranges = quantization_ranges(encoder.encode_document([row["text"] for row in ROWS]))
    np.save(tmp_path / "ranges.npy", ranges)
    (tmp_path / "text.npy").write_text("no array")
    command = ("embed", tiny_model, tmp_path / "a.jsonl", "--output", tmp_path / "out", "--dtype", "uint8")
    for wrong, message in (("text.npy", "is not an array that numpy.save wrote"), ("none.npy", "none.npy")):
        failed = e5onnx(*command, "--ranges", tmp_path / wrong)
        assert (failed.returncode, (tmp_path / "out").exists()) == (1, False)
        assert message in failed.stderr
    assert e5onnx(*command, "--ranges", tmp_path / "ranges.npy").returncode == 0
    stored = np.array(read_output(tmp_path / "out")["embedding"].to_pylist())
    assert (stored.min(), stored.max()) == (0, 255)


def test_dimensions_cut_the_vectors_if_forced(
    e5onnx: Command, encoder: Encoder, tiny_model: Path, tmp_path: Path
) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    arguments = (tiny_model, tmp_path / "a.jsonl", "--dimensions", "16", "--output")
    refused = e5onnx("embed", *arguments, tmp_path / "no.npy")
    assert (refused.returncode, (tmp_path / "no.npy").exists()) == (1, False)
    assert "--force" in refused.stderr
    for output in ("x.npy", "folder"):
        assert e5onnx("embed", *arguments, tmp_path / output, "--force").returncode == 0
    cut = encoder.encode_document([row["text"] for row in ROWS])[:, :16]
    near(np.load(tmp_path / "x.npy"), cut)  # this model's vectors are not normalised
    near(np.array(read_output(tmp_path / "folder")["embedding"].to_pylist()), cut)
