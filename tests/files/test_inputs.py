"""Which files are found, each once."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from corpora import only_linux, write_jsonl
from e5onnx import Encoder, InputValueError
from e5onnx.files import Columns, embed_files
from e5onnx.files.inputs import find_files

ROWS = [{"text": f"row {number}"} for number in range(20)]


def found(*inputs: Path | str) -> list[str]:
    return [path.name for path in find_files([str(each) for each in inputs]).files]


def test_folders_and_globs_mean_files_once_and_in_order(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.csv", "sub/c.txt.gz", ".hidden.txt", "_success.txt", "notes.md", "sub/more.md"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "sub/up").symlink_to(tmp_path, target_is_directory=True)
    meant = find_files([str(tmp_path / "b*"), str(tmp_path)])
    assert [str(path.relative_to(tmp_path)) for path in meant.files] == ["b.jsonl", "a.csv", "sub/c.txt.gz"]
    assert meant.ignored == 2
    with pytest.raises(InputValueError, match="there are no files at"):
        find_files([str(tmp_path / "z*")])


def test_folders_behind_links_are_entered(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "elsewhere/a.jsonl", ROWS)
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus/link").symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    assert found(tmp_path / "corpus") == ["a.jsonl"]


def test_one_file_by_many_names_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    (tmp_path / "link.jsonl").symlink_to(path)
    monkeypatch.chdir(tmp_path)
    meant = find_files(["a.jsonl", "./a.jsonl", str(path), "link.jsonl", "*.jsonl", "."]).files
    assert meant == [path]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "'' is not a file name"),
        ("a\0b", "is not a file name"),
        ("-", "reads its input twice"),
        ("**.jsonl", "is not a glob|there are no files"),
    ],
)
def test_a_name_without_a_file_is_reported(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputValueError, match=message):
        embed_files(encoder, [given], tmp_path / "out")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX'")
@pytest.mark.parametrize("kind", ["dangling link", "pipe", "circle"])
def test_what_is_not_a_file_in_a_folder_is_not_left_out_silently(tmp_path: Path, kind: str) -> None:
    write_jsonl(tmp_path / "corpus/a.jsonl", ROWS)
    odd = tmp_path / "corpus/b.jsonl"
    if kind == "pipe":
        os.mkfifo(odd)
    else:
        odd.symlink_to("missing.jsonl" if kind == "dangling link" else odd)
    for given in ("corpus", "corpus/*.jsonl", "corpus/b*"):
        with pytest.raises(InputValueError, match=f"{odd} is not a regular file or a link to one"):
            find_files([str(tmp_path / given)])


@only_linux
def test_links_that_lead_in_a_circle_are_reported(encoder: Encoder, tmp_path: Path) -> None:
    (tmp_path / "loop.jsonl").symlink_to("loop.jsonl")
    with pytest.raises(OSError, match=r"Too many levels of symbolic links: '.*loop\.jsonl'"):
        embed_files(encoder, [str(tmp_path / "loop.jsonl")], tmp_path / "out")


@only_linux
def test_a_folder_that_cannot_be_read_is_not_left_out_silently() -> None:
    user = os.geteuid()
    with tempfile.TemporaryDirectory() as corpus:  # others cannot enter pytest's folders
        write_jsonl(Path(corpus, "a.jsonl"), ROWS)
        write_jsonl(Path(corpus, "sub/b.jsonl"), ROWS).parent.chmod(0)
        Path(corpus).chmod(0o755)
        if user == 0:
            os.seteuid(65534)  # root may read everything
        try:
            with pytest.raises(PermissionError, match=f"{corpus}/sub"):
                find_files([corpus])
        finally:
            os.seteuid(user)
            Path(corpus, "sub").chmod(0o755)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes with names are POSIX'")
def test_a_pipe_is_refused_and_not_waited_for(encoder: Encoder, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jsonl")
    with pytest.raises(InputValueError, match=r"pipe\.jsonl is not a regular file: .* write it to a file first"):
        embed_files(encoder, [str(tmp_path / "pipe.jsonl")], tmp_path / "out")


def test_output_folders_are_not_input_unless_named(encoder: Encoder, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    for name in ("out", "other"):  # the second run finds the output of the first
        columns = Columns(keep=("text",))
        assert embed_files(encoder, [str(tmp_path)], tmp_path / name, columns=columns).rows == len(ROWS)
    with pytest.raises(InputValueError, match="there are no files at"):
        found(tmp_path / "*/*.parquet")
    assert found(tmp_path / "out/*.parquet") == ["part-000000.parquet"]
    assert found(tmp_path / "out") == ["part-000000.parquet"]
