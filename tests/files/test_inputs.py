"""Which files are meant, each once; and that nothing is lost where they change."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tqdm import tqdm

from e5onnx import Encoder, InputValueError
from e5onnx.files import IgnoredFilesWarning, JobChangedError, embed, embed_files, engines, inputs, records
from e5onnx.files.columns import Columns
from e5onnx.files.inputs import describe_file, find_files
from e5onnx.files.plan import plan_parts
from e5onnx.files.rows import RowReader

ROWS = [{"text": f"row {number}"} for number in range(20)]
only_linux = pytest.mark.skipif(sys.platform != "linux", reason="names that are no text, and times of inodes")


@pytest.fixture(scope="module")
def encoder(tiny_model: Path) -> Encoder:
    return Encoder(tiny_model, threads=1)


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


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


def test_a_run_goes_on_with_another_spelling_of_its_input(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    monkeypatch.chdir(tmp_path)
    first = embed_files(encoder, ["a.jsonl"], tmp_path / "out")
    assert embed_files(encoder, [str(path)], tmp_path / "out") == first
    assert json.loads((tmp_path / "out/_e5onnx/plan.json").read_text())["files"][0][0] == str(path)


def test_output_folders_are_no_input_unless_named(encoder: Encoder, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "a.jsonl", ROWS)
    for name in ("out", "other"):  # the second run finds the output of the first
        columns = Columns(keep=("text",))
        assert embed_files(encoder, [str(tmp_path)], tmp_path / name, columns=columns).rows == len(ROWS)
    with pytest.raises(InputValueError, match="there are no files at"):
        found(tmp_path / "*/*.parquet")
    assert found(tmp_path / "out/*.parquet") == ["part-000000.parquet"]
    assert found(tmp_path / "out") == ["part-000000.parquet"]


def test_files_without_a_known_suffix_are_counted(encoder: Encoder, tmp_path: Path) -> None:
    write_jsonl(tmp_path / "corpus/a.jsonl", ROWS)
    (tmp_path / "corpus/b.md").touch()
    with pytest.warns(IgnoredFilesWarning, match="because of their suffix: 1"):
        embed_files(encoder, [str(tmp_path / "corpus")], tmp_path / "out")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "'' is not a file name"),
        ("a\0b", "is not a file name"),
        ("-", "reads its input twice"),
        ("**.jsonl", "is not a glob|there are no files"),
    ],
)
def test_what_names_no_file_is_said(
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
def test_links_that_lead_in_a_circle_are_said(encoder: Encoder, tmp_path: Path) -> None:
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


@only_linux
def test_names_need_not_be_text(encoder: Encoder, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff")
    write_jsonl(tmp_path / f"{name}.jsonl", ROWS)
    columns = Columns(keep=("text",))
    first = embed_files(encoder, [str(tmp_path)], tmp_path / f"out {name}", columns=columns)
    parquet = tmp_path / f"out {name}/part-000000.parquet"
    again = parquet.rename(tmp_path / f"{name}.parquet")
    for _ in range(2):  # the second time it finds its plan
        second = embed_files(encoder, [str(again)], tmp_path / f"other {name}", columns=columns, on_error="skip")
        assert second == first


CHANGES: list[Callable[[Path], object]] = [
    lambda path: path.write_bytes(path.read_bytes()[:100]),
    lambda path: path.write_bytes(path.read_bytes().replace(b"row", b"now")),
    lambda path: path.write_bytes(path.read_bytes() + b'{"text": "more"}\n'),
]


@pytest.mark.parametrize("change", CHANGES, ids=["shorter", "other", "longer"])
def test_a_file_that_changes_during_the_run_is_noticed(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], object]
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    run_parts = engines.run_locally

    def change_and_run(*arguments: Any, **options: Any) -> Iterator[Any]:
        change(path)
        return run_parts(*arguments, **options)

    monkeypatch.setattr(engines, "run_locally", change_and_run)
    with pytest.raises(JobChangedError, match=r"a\.jsonl has changed since"):
        embed_files(encoder, [str(path)], tmp_path / "out")
    assert not (tmp_path / "out/_e5onnx/summary.json").exists()
    with pytest.raises(JobChangedError, match="has changed since"):
        embed_files(encoder, [str(path)], tmp_path / "out")


def test_a_file_that_changes_while_it_is_described_is_noticed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)

    def truncate(size: int) -> None:
        os.truncate(path, 10)

    with pytest.raises(JobChangedError, match="changes while it is read"):
        plan_parts([describe_file(path)], advance=truncate)


@only_linux
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("is_new", [False, True])
def test_a_change_with_the_old_date_is_noticed(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool, in_place: bool
) -> None:
    if not is_new:
        monkeypatch.setattr(inputs, "_NEW_NS", 0)
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    embed_files(encoder, [str(path)], tmp_path / "out")
    status = path.stat()
    other = write_jsonl(path if in_place else tmp_path / "other", [{"text": f"now {number}"} for number in range(20)])
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    with pytest.raises(JobChangedError, match="has changed since"):
        embed_files(encoder, [str(path)], tmp_path / "out")


def test_what_changed_since_is_noticed(encoder: Encoder, sample_model: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)

    def embed(with_encoder: Encoder = encoder, **options: Any) -> Any:
        return embed_files(with_encoder, [str(path)], tmp_path / "out", **options)

    first = embed()
    path.touch()  # another date, the same bytes
    assert embed() == first
    for options in (
        {"role": "query"},
        {"dtype": "int8"},
        {"columns": Columns(title="title")},
        {"part_rows": 5},
        {"input_format": "jsonl"},
    ):
        with pytest.raises(JobChangedError, match="was started with other options"):
            embed(**options)
    with pytest.raises(JobChangedError, match="fingerprint"):
        embed(Encoder(sample_model))
    write_jsonl(path, ROWS[1:])
    with pytest.raises(JobChangedError, match="has changed since"):
        embed()
    with pytest.raises(InputValueError, match="is not empty and is not an output folder of e5onnx"):
        embed_files(encoder, [str(path)], tmp_path)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


DAMAGES: list[Callable[[Path], object]] = [
    lambda out: (out / "_e5onnx/done/part-000001.json").write_bytes(b""),
    lambda out: (out / "_e5onnx/done/part-000001.json").write_bytes(b"[1]"),
    lambda out: (out / "_e5onnx/done/part-000001.json").write_bytes(b"{}"),
    lambda out: (out / "_e5onnx/done/part-000001.json").unlink(),
    lambda out: replace_in(out / "_e5onnx/done/part-000001.json", b'"rows": 5', b'"rows": 6'),
    lambda out: shutil.copy(out / "_e5onnx/done/part-000002.json", out / "_e5onnx/done/part-000001.json"),
    lambda out: shutil.copy(out / "part-000002.parquet", out / "part-000001.parquet"),
    lambda out: (out / "part-000001.parquet").write_bytes(b"half"),
    lambda out: (out / "part-000001.parquet").unlink(),
    lambda out: flip_a_byte(out / "part-000001.parquet"),
]


def replace_in(path: Path, old: bytes, new: bytes) -> None:
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_as_noted_is_written_anew(
    encoder: Encoder, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    first = embed_files(encoder, [str(path)], tmp_path / "out", part_rows=5)
    whole = contents(tmp_path / "out")
    damage(tmp_path / "out")
    assert contents(tmp_path / "out") != whole
    assert embed_files(encoder, [str(path)], tmp_path / "out", part_rows=5) == first
    assert contents(tmp_path / "out") == whole


def test_a_summary_is_there_only_while_all_is_done(encoder: Encoder, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b"}])
    embed_files(encoder, [str(path)], tmp_path / "out", part_rows=1)
    summary = tmp_path / "out/_e5onnx/summary.json"
    before = summary.read_bytes()
    (tmp_path / "out/part-000001.parquet").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "run_locally", lambda *_, **__: iter(()))  # as if it were killed
        patch.setattr(embed, "_finished", lambda job: None)
        embed_files(encoder, [str(path)], tmp_path / "out", part_rows=1)
    assert not summary.exists()
    embed_files(encoder, [str(path)], tmp_path / "out", part_rows=1)
    assert summary.read_bytes() == before


@only_linux
def test_a_part_is_on_the_disk_before_its_note(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    synced: list[str] = []
    fsync = os.fsync

    def noted(descriptor: int) -> None:
        fsync(descriptor)
        name = Path(f"/proc/self/fd/{descriptor}").readlink().name
        synced.append(name.removeprefix(".").split(".")[0])

    monkeypatch.setattr(os, "fsync", noted)
    embed_files(encoder, [str(path)], tmp_path / "out")
    plan, part, note = ["plan", "_e5onnx"], ["part-000000", "out"], ["part-000000", "done"]
    assert synced == [*plan, *part, *note, "summary", "_e5onnx"]


def test_notes_are_those_of_one_plan(encoder: Encoder, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    embed_files(encoder, [str(path)], tmp_path / "out", part_rows=5)
    other = write_jsonl(path, [{"text": f"now {number}"} for number in range(20)])
    embed_files(encoder, [str(other)], tmp_path / "other", part_rows=5)
    (tmp_path / "out/_e5onnx/plan.json").unlink()
    with pytest.raises(InputValueError, match=r"has parts but .*plan\.json is missing"):
        embed_files(encoder, [str(path)], tmp_path / "out", part_rows=5)
    shutil.copy(tmp_path / "other/_e5onnx/plan.json", tmp_path / "out/_e5onnx/plan.json")
    embed_files(encoder, [str(path)], tmp_path / "out", part_rows=5)
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_an_edited_plan_is_said(encoder: Encoder, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    embed_files(encoder, [str(path)], tmp_path / "out", part_rows=20)
    plan = tmp_path / "out/_e5onnx/plan.json"
    content = json.loads(plan.read_text())
    content["parts"][0][1][0][2] = 19
    plan.write_text(json.dumps(content))
    with pytest.raises(InputValueError, match=r"plan\.json is damaged"):
        embed_files(encoder, [str(path)], tmp_path / "out", part_rows=20)


@pytest.mark.parametrize("plan", ["", "[]", "{}", '{"format": 3}', '{"format": 3, "files": [{}], "parts": []}'])
def test_a_damaged_plan_is_said(encoder: Encoder, tmp_path: Path, plan: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    embed_files(encoder, [str(path)], tmp_path / "out")
    (tmp_path / "out/_e5onnx/plan.json").write_text(plan)
    with pytest.raises(InputValueError, match=r"plan\.json is damaged"):
        embed_files(encoder, [str(path)], tmp_path / "out")


def test_a_compressed_file_is_read_once_by_parts_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl.gz"
    path.write_bytes(gzip.compress(write_jsonl(tmp_path / "a.jsonl", ROWS).read_bytes()))
    files = [describe_file(path)]
    parts = plan_parts(files, part_rows=3)
    opened: list[Any] = []
    read_records = records.read_records

    def open_and_read(*arguments: Any) -> Iterator[records.Record]:
        opened.append(arguments)
        return read_records(*arguments)

    monkeypatch.setattr(records, "read_records", open_and_read)
    reader = RowReader(files, Columns())
    for position in (0, 1, 3, 6):
        rows = reader.read(parts[position])
        assert rows.texts == [row["text"] for row in ROWS[3 * position : 3 * position + 3]]
    assert len(opened) == 1
    assert reader.read(parts[2]).texts == [row["text"] for row in ROWS[6:9]]
    assert len(opened) == 2


def test_a_parquet_file_is_opened_once_by_parts_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.Table.from_pylist(ROWS), path, row_group_size=4)
    files = [describe_file(path)]
    parts = plan_parts(files, part_rows=3)
    opened: list[int] = []
    read_batches = records.read_batches

    def open_and_read(file: Any, columns: Any, row: int) -> Iterator[Any]:
        opened.append(row)
        return read_batches(file, columns, row)

    monkeypatch.setattr(records, "read_batches", open_and_read)
    reader = RowReader(files, Columns())
    for position in (0, 1, 2, 4, 3):
        rows = reader.read(parts[position])
        assert rows.texts == [row["text"] for row in ROWS[3 * position : 3 * position + 3]]
    assert opened == [1, 13, 10]


def test_progress_tells_of_reading_too(encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    bars: list[Any] = []

    class Bar(tqdm):  # type: ignore[misc]  # tqdm has no types
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **{**options, "disable": options["disable"] or False})
            bars.append(self)

    monkeypatch.setattr("e5onnx.files.embed.tqdm", Bar)
    embed_files(encoder, [str(path)], tmp_path / "out", show_progress_bar=True)
    assert [(bar.desc, bar.n) for bar in bars] == [
        ("Reading input", path.stat().st_size),
        ("Checking parts", 0),
        ("Embedding", len(ROWS)),
    ]


def test_a_cluster_that_does_not_answer_is_said(encoder: Encoder, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(RuntimeError, match=r"there is no Ray cluster at 127\.0\.0\.1:1: "):
        embed_files(encoder, [str(path)], tmp_path / "out", engine="ray", address="127.0.0.1:1")


def test_wrong_usage_is_two(tiny_model: Path, tmp_path: Path) -> None:
    arguments = ["embed", str(tiny_model), "a.jsonl", "--output", str(tmp_path / "out"), "--part-rows", "0"]
    failed = subprocess.run([sys.executable, "-m", "e5onnx", *arguments], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "--part-rows must be at least 1, got 0" in failed.stderr
    arguments[-2:] = ["--address", "127.0.0.1:1"]
    failed = subprocess.run([sys.executable, "-m", "e5onnx", *arguments], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert "--address needs --engine ray" in failed.stderr
