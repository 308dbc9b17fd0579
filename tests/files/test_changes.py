"""Input that changes at any moment or comes back, and runs that are killed: whatever ends with success is right.

Whenever a run returns, its output matches the bytes now in the input.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corpora import near, only_linux, read_output, write_jsonl
from e5onnx import Encoder, InputValueError
from e5onnx.files import Columns, JobChangedError, embed, embed_files, engines, inputs
from e5onnx.files.inputs import describe_file, format_of
from e5onnx.files.job import Job
from e5onnx.files.plan import plan_parts
from e5onnx.files.records import read_batches, read_records

PART_ROWS = 3


VERSIONS = [
    [f"text {number}" for number in range(10)],
    [f"text {9 - number}" for number in range(10)],  # of the same size
    [f"text {number}" for number in (0, 1, 2, 3, 4, 5, 6, 7, 9, 8)],  # only the last blocks differ
    [f"text {number}" for number in range(9)],
    [f"text {number}" for number in range(12)],
]


PAD = "x" * 3000  # so that no buffer holds a whole file


BLOCK = 1000


Action = int | None
"""Write the version with this number; None kills the process."""


@pytest.fixture(scope="module")
def vectors(encoder: Encoder) -> dict[str, Any]:
    texts = VERSIONS[-1]
    return dict(zip(texts, encoder.encode_document(texts), strict=True))


class Killed(BaseException):
    pass


def bytes_of(kind: str, texts: list[str], pad: str = PAD) -> bytes:
    if kind == "parquet":
        buffer = io.BytesIO()
        pq.write_table(
            pa.table({"text": texts, "pad": [pad] * len(texts)}),
            buffer,
            row_group_size=4,
            compression="none",
            use_dictionary=False,
        )
        return buffer.getvalue()
    if kind == "csv":
        return "\r\n".join(["text,pad", *(f"{text},{pad}" for text in texts), ""]).encode()
    lines = "".join(json.dumps({"text": text, "pad": pad}) + "\n" for text in texts).encode()
    return gzip.compress(lines, mtime=0) if kind == "jsonl.gz" else lines


def write(path: Path, content: bytes, how: str) -> None:
    """Write in place or replace the file, and restore its old modification time."""
    before = path.stat() if path.exists() else None
    if how == "renamed":
        (path.parent / "new").write_bytes(content)
        (path.parent / "new").replace(path)
    else:
        path.write_bytes(content)
    if before is not None:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def check_output(folder: Path, texts: list[str], vectors: dict[str, Any]) -> None:
    table = read_output(folder)
    assert table.column("text").to_pylist() == texts
    assert table.column("id").to_pylist() == list(range(len(texts)))
    found = np.array(table.column("embedding").to_pylist(), np.float32)
    near(found, [vectors[text] for text in texts])


POINTS: dict[str, tuple[Any, str]] = {  # an event happens before one of these calls
    "planned": (embed, "write_plan"),
    "read": (engines, "prepare"),
    "run": (engines, "embed"),
    "written": (engines, "write"),
    "noted": (Job, "note"),
    "ended": (embed, "_finished"),
}


EVENTS = st.dictionaries(
    st.tuples(st.sampled_from(list(POINTS)), st.integers(0, 3)),
    st.none() | st.integers(0, len(VERSIONS) - 1),
    max_size=3,
)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(["jsonl", "csv", "parquet", "jsonl.gz"]),
    how=st.sampled_from(["in place", "renamed"]),
    runs=st.lists(st.tuples(st.none() | st.integers(0, len(VERSIONS) - 1), EVENTS), min_size=1, max_size=4),
)
def test_what_ends_with_success_is_right(
    encoder: Encoder,
    vectors: dict[str, Any],
    kind: str,
    how: str,
    runs: list[tuple[Action, dict[tuple[str, int], Action]]],
) -> None:
    with tempfile.TemporaryDirectory() as name:
        path, output = Path(name) / f"corpus.{kind}", Path(name) / "out"
        now = 0
        changing = threading.Lock()  # reading, running and writing are on different threads

        def change(version: int) -> None:
            nonlocal now
            with changing:
                now = version
                write(path, bytes_of(kind, VERSIONS[version]), how)

        def run(events: dict[tuple[str, int], Action]) -> bool:
            calls: Counter[str] = Counter()

            def hooked(point: str, call: Callable[..., Any]) -> Callable[..., Any]:
                def hook(*arguments: Any, **options: Any) -> Any:
                    action = events.get((point, calls[point]), -1)
                    calls[point] += 1
                    if action is None:
                        raise Killed
                    if action >= 0:
                        change(action)
                    return call(*arguments, **options)

                return hook

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(inputs, "BLOCK", BLOCK)
                for point, (owner, function) in POINTS.items():
                    patch.setattr(owner, function, hooked(point, getattr(owner, function)))
                try:
                    embed_files(encoder, [path], output, columns=Columns(keep=("text",)), part_rows=PART_ROWS)
                except (JobChangedError, Killed):
                    return False
            if ("ended", 0) not in events:  # a change after the last comparison is not this run's
                check_output(output, VERSIONS[now], vectors)
            return True

        change(0)
        for version, events in runs:
            if version is not None:
                change(version)
            run(events)
        if (output / "_e5onnx/plan.json").exists():
            ended = []
            for version in range(len(VERSIONS)):
                change(version)
                ended.append(run({}))
            assert ended.count(True) == 1  # the planned version


def test_a_change_during_the_run_that_is_undone_is_noticed(
    encoder: Encoder, vectors: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    write(path, bytes_of("jsonl", VERSIONS[0]), "in place")
    prepare = engines.prepare

    def change_and_prepare(*arguments: Any, **options: Any) -> Any:
        write(path, bytes_of("jsonl", VERSIONS[2]), "in place")
        try:
            return prepare(*arguments, **options)
        finally:
            write(path, bytes_of("jsonl", VERSIONS[0]), "in place")

    monkeypatch.setattr(inputs, "BLOCK", BLOCK)
    monkeypatch.setattr(engines, "prepare", change_and_prepare)
    with pytest.raises(JobChangedError, match=r"a\.jsonl has changed since it was first read"):
        embed_files(encoder, [path], tmp_path / "out", columns=Columns(keep=("text",)), part_rows=PART_ROWS)
    notes = sorted(note.name for note in (tmp_path / "out/_e5onnx/done").iterdir())
    assert notes == ["part-000000.json", "part-000001.json"]  # the third part reads the changed block
    monkeypatch.setattr(engines, "prepare", prepare)
    embed_files(encoder, [path], tmp_path / "out", columns=Columns(keep=("text",)), part_rows=PART_ROWS)
    check_output(tmp_path / "out", VERSIONS[0], vectors)


def read_all(path: Path, file: inputs.InputFile) -> Iterator[object]:
    if format_of(path, None) == "parquet":
        yield from read_batches(file, ["text"])
    else:
        yield from read_records(file)


@pytest.mark.parametrize("kind", ["jsonl", "csv", "parquet", "jsonl.gz", "txt"])
def test_no_byte_of_a_file_may_change(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "BLOCK", 64)
    path = tmp_path / f"a.{kind}"
    whole = bytes_of(kind, VERSIONS[0], pad="")
    path.write_bytes(whole)
    file = describe_file(path)
    plan_parts([file])
    list(read_all(path, file))
    for position in range(len(whole)):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 1]) + whole[position + 1 :])
        assert not file.is_unchanged()
        if kind != "parquet":  # not all of which is read
            with pytest.raises(JobChangedError):
                list(read_all(path, file))
    path.write_bytes(whole + b"\n")
    assert not file.is_unchanged()
    path.write_bytes(whole)
    assert file.is_unchanged()
    list(read_all(path, file))


def test_a_link_may_lead_elsewhere_only_to_the_same(encoder: Encoder, vectors: dict[str, Any], tmp_path: Path) -> None:
    for name, version in (("a", 0), ("same", 0), ("other", 1)):
        (tmp_path / name).write_bytes(bytes_of("jsonl", VERSIONS[version]))
    link = tmp_path / "link.jsonl"
    link.symlink_to(tmp_path / "a")

    def run() -> None:
        embed_files(encoder, [str(link)], tmp_path / "out", columns=Columns(keep=("text",)), part_rows=PART_ROWS)

    run()
    for name in ("other", "same"):
        link.unlink()
        link.symlink_to(tmp_path / name)
        if name == "other":
            with pytest.raises(JobChangedError):
                run()
    run()
    check_output(tmp_path / "out", VERSIONS[0], vectors)


def test_every_byte_is_read_once_to_plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(bytes_of("jsonl", VERSIONS[0]) * 20)
    os.utime(path, (0, 0))
    monkeypatch.setattr(inputs, "_NEW_NS", -(10**18))  # as if it were old
    read: list[int] = []

    def sha256(block: bytes, original: Any = hashlib.sha256) -> Any:
        read.append(len(block))
        return original(block)

    monkeypatch.setattr(hashlib, "sha256", sha256)
    file = describe_file(path)
    plan_parts([file])
    assert sum(read) == path.stat().st_size
    assert file.is_unchanged()
    assert sum(read) == path.stat().st_size


def test_a_new_file_may_change_within_the_steps_of_the_clock(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(bytes_of("jsonl", VERSIONS[0]))
    monkeypatch.setattr(inputs, "_state", lambda status: (status.st_size,))  # as if the clock stood still
    embed_files(encoder, [path], tmp_path / "out")
    path.write_bytes(bytes_of("jsonl", VERSIONS[1]))
    with pytest.raises(JobChangedError, match="has changed since"):
        embed_files(encoder, [path], tmp_path / "out")


ROWS = [{"text": f"row {number}"} for number in range(20)]


@pytest.mark.parametrize("version", [1, 3, 4], ids=["other", "shorter", "longer"])
def test_a_file_that_changes_during_the_run_is_noticed(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int
) -> None:
    path, output = tmp_path / "a.jsonl", tmp_path / "out"
    path.write_bytes(bytes_of("jsonl", VERSIONS[0]))
    run_locally = engines.run_locally

    def change_and_run(*arguments: Any, **options: Any) -> Iterator[Any]:
        path.write_bytes(bytes_of("jsonl", VERSIONS[version]))
        return run_locally(*arguments, **options)

    monkeypatch.setattr(engines, "run_locally", change_and_run)
    for _ in range(2):
        with pytest.raises(JobChangedError, match=r"a\.jsonl has changed since"):
            embed_files(encoder, [path], output)
        assert not (output / "_e5onnx/summary.json").exists()


def test_a_file_that_changes_while_it_is_described_is_noticed(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    with pytest.raises(JobChangedError, match="changes while it is read"):
        plan_parts([describe_file(path)], advance=lambda size: os.truncate(path, 10))


@only_linux
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("is_new", [False, True])
def test_a_change_with_the_old_date_is_noticed(
    encoder: Encoder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_new: bool, in_place: bool
) -> None:
    if not is_new:
        monkeypatch.setattr(inputs, "_NEW_NS", 0)
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    embed_files(encoder, [path], tmp_path / "out")
    status = path.stat()
    other = write_jsonl(path if in_place else tmp_path / "other", [{"text": f"now {number}"} for number in range(20)])
    os.utime(other, ns=(status.st_atime_ns, status.st_mtime_ns))
    other.replace(path)
    assert (path.stat().st_size, path.stat().st_mtime_ns) == (status.st_size, status.st_mtime_ns)
    with pytest.raises(JobChangedError, match="has changed since"):
        embed_files(encoder, [path], tmp_path / "out")


def test_what_changed_since_is_noticed(encoder: Encoder, sample_model: Path, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)

    def embed(with_encoder: Encoder = encoder, **options: Any) -> Any:
        return embed_files(with_encoder, [str(path)], tmp_path / "out", **options)

    first = embed()
    path.touch()  # a new date, but the same bytes
    assert embed() == first
    other: dict[str, Any] = {
        "role": "query",
        "dtype": "int8",
        "columns": Columns(title="t"),
        "part_rows": 5,
        "input_format": "jsonl",
    }
    for name, value in other.items():
        with pytest.raises(JobChangedError, match=f"was started with .*{name}"):
            embed(**{name: value})
    with pytest.raises(JobChangedError, match=r"started with checkpoint '.*', now '.*', dimension 48, now 384"):
        embed(Encoder(sample_model))
    embed_files(Encoder(sample_model), [path], tmp_path / "sample")
    with pytest.raises(JobChangedError, match=r"sample was started with precision 'fp32', now 'int8': name another"):
        embed_files(Encoder(sample_model, precision="int8"), [path], tmp_path / "sample")
    write_jsonl(path, ROWS[1:])
    with pytest.raises(JobChangedError, match="has changed since"):
        embed()
    with pytest.raises(InputValueError, match="is not empty and is not an output folder of e5onnx"):
        embed_files(encoder, [path], tmp_path)
