"""The output folder: its lock, plan and notes, and what is done about damage."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from corpora import only_linux, write_jsonl
from e5onnx import Encoder, InputValueError
from e5onnx.errors import JobLockError, JobRunningError
from e5onnx.files import embed, embed_files, engines
from e5onnx.files.job import opened_folder

ROWS = [{"text": f"row {number}"} for number in range(20)]


def test_two_processes_do_not_write_into_one_folder(encoder: Encoder, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    with opened_folder(tmp_path / "out"), pytest.raises(JobRunningError, match="another process is writing"):
        embed_files(encoder, [path], tmp_path / "out")


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
        with pytest.raises(JobLockError, match=rf"(?i)out cannot be locked.*{os.strerror(code)}"):
            embed_files(encoder, [path], tmp_path / "out")
    assert embed_files(encoder, [path], tmp_path / "out").rows == len(ROWS)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def replace_in(path: Path, old: bytes, new: bytes) -> None:
    assert old in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(old, new))


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[200] ^= 1
    path.write_bytes(content)


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


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_is_not_as_noted_is_written_again(
    encoder: Encoder, tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    first = embed_files(encoder, [path], tmp_path / "out", part_rows=5)
    whole = contents(tmp_path / "out")
    damage(tmp_path / "out")
    assert contents(tmp_path / "out") != whole
    assert embed_files(encoder, [path], tmp_path / "out", part_rows=5) == first
    assert contents(tmp_path / "out") == whole


def test_a_summary_is_there_only_while_all_is_done(encoder: Encoder, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"text": "a"}, {"text": "b"}])
    embed_files(encoder, [path], tmp_path / "out", part_rows=1)
    summary = tmp_path / "out/_e5onnx/summary.json"
    before = summary.read_bytes()
    (tmp_path / "out/part-000001.parquet").write_bytes(b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(engines, "run_locally", lambda *_, **__: iter(()))  # as if it were killed
        patch.setattr(embed, "_finished", lambda job: None)
        embed_files(encoder, [path], tmp_path / "out", part_rows=1)
    assert not summary.exists()
    embed_files(encoder, [path], tmp_path / "out", part_rows=1)
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
    embed_files(encoder, [path], tmp_path / "out")
    plan, part, note = ["plan", "_e5onnx"], ["part-000000", "out"], ["part-000000", "done"]
    assert synced == [*plan, *part, *note, "summary", "_e5onnx"]


def test_notes_are_those_of_one_plan(encoder: Encoder, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    embed_files(encoder, [path], tmp_path / "out", part_rows=5)
    other = write_jsonl(path, [{"text": f"now {number}"} for number in range(20)])
    embed_files(encoder, [str(other)], tmp_path / "other", part_rows=5)
    (tmp_path / "out/_e5onnx/plan.json").unlink()
    with pytest.raises(InputValueError, match=r"has parts but .*plan\.json is missing"):
        embed_files(encoder, [path], tmp_path / "out", part_rows=5)
    shutil.copy(tmp_path / "other/_e5onnx/plan.json", tmp_path / "out/_e5onnx/plan.json")
    embed_files(encoder, [path], tmp_path / "out", part_rows=5)
    assert contents(tmp_path / "out") == contents(tmp_path / "other")


def test_an_edited_plan_is_reported(encoder: Encoder, tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    embed_files(encoder, [path], tmp_path / "out", part_rows=20)
    plan = tmp_path / "out/_e5onnx/plan.json"
    content = json.loads(plan.read_text())
    content["parts"][0][1][0][2] = 19
    plan.write_text(json.dumps(content))
    with pytest.raises(InputValueError, match=r"plan\.json is damaged"):
        embed_files(encoder, [path], tmp_path / "out", part_rows=20)


@pytest.mark.parametrize("plan", ["", "[]", "{}", '{"format": 4}', '{"format": 4, "files": [{}], "parts": []}'])
def test_a_damaged_plan_is_reported(encoder: Encoder, tmp_path: Path, plan: str) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", ROWS)
    embed_files(encoder, [path], tmp_path / "out")
    (tmp_path / "out/_e5onnx/plan.json").write_text(plan)
    with pytest.raises(InputValueError, match=r"plan\.json is damaged"):
        embed_files(encoder, [path], tmp_path / "out")
