"""Killed at any moment, out of disk, or interrupted: the same command resumes, and ends with the same bytes."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from corpora import only_linux, write_jsonl
from e5onnx.cli import main
from texts import TEXTS

ROWS = 400
PART_ROWS = 16
# Sends itself a signal before it syncs or renames a file, which it does six times a part, for so many times.
SIGNALLED = """
import os, sys
from e5onnx import atomic, cli
kind, moment, *arguments = sys.argv[1:]
moments = iter(range(int(moment)))
def before(call):
    def called(*arguments):
        if next(moments, None) is None:
            os.kill(os.getpid(), int(kind))
        return call(*arguments)
    return called
os.fsync = before(os.fsync)
atomic.Path.replace = before(atomic.Path.replace)
sys.exit(cli.main(arguments))
"""


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = random.Random(0)
    rows: list[dict[str, Any]] = [
        {"id": f"row {number}", "text": generator.choice(TEXTS) + str(number)} for number in range(ROWS)
    ]
    rows[37]["text"] = None
    rows[250]["text"] = 5
    return write_jsonl(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", rows)


def arguments(model: Path, corpus: Path, output: Path, *options: str) -> list[str]:
    options = ("--id-column", "id", "--on-error", "skip", "--part-rows", str(PART_ROWS), "--threads", "1", *options)
    return ["embed", str(model), str(corpus), "--output", str(output), *options]


def content(folder: Path) -> dict[str, Any]:
    """All files of an output folder, except what the plan says about the age of the input, and what names the plan."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    plan = json.loads(files["_e5onnx/plan.json"])
    for file in plan["files"]:
        file[3] = None
    del plan["sha256"]
    notes = {name: json.loads(note)["done"] for name, note in files.items() if "/done/" in name}
    return {**files, **notes, "_e5onnx/plan.json": plan}


@pytest.fixture(scope="module")
def undisturbed(tiny_model: Path, corpus: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("undisturbed") / "out"
    assert main(arguments(tiny_model, corpus, output)) == 0
    found = content(output)
    assert len([name for name in found if name.endswith(".parquet")]) == ROWS // PART_ROWS
    assert len(found["_e5onnx/rejects.jsonl"].splitlines()) == 2
    return found


@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
@pytest.mark.parametrize("moments", [(0, 3, 44), (1, 25, 40), (2, 22, 35)])
def test_killed_at_any_moment_it_ends_with_the_same_bytes(
    tiny_model: Path, corpus: Path, undisturbed: dict[str, Any], tmp_path: Path, moments: Sequence[int]
) -> None:
    command = arguments(tiny_model, corpus, tmp_path / "out")
    for moment in moments:
        killed = [sys.executable, "-c", SIGNALLED, str(int(signal.SIGKILL)), str(moment), *command]
        done = subprocess.run(killed, capture_output=True, check=False)
        assert done.returncode == -signal.SIGKILL, done.stderr
    assert main(command) == 0
    assert content(tmp_path / "out") == undisturbed


def test_an_interrupt_stops_soon_and_keeps_what_is_done(
    tiny_model: Path, corpus: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    command = arguments(tiny_model, corpus, tmp_path / "out")
    interrupted = subprocess.run(
        [sys.executable, "-c", SIGNALLED, str(int(signal.SIGINT)), "20", *command],
        capture_output=True,
        timeout=20,
        check=False,
        # a process started in the background is told to ignore interrupts
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (interrupted.returncode, b"Traceback" in interrupted.stderr) == (130, False), interrupted.stderr
    assert interrupted.stderr.endswith(b"e5onnx: interrupted; the same command goes on where it stopped\n")
    assert 1 <= len(list((tmp_path / "out/_e5onnx/done").glob("*.json"))) < ROWS // PART_ROWS
    assert main(command) == 0
    assert content(tmp_path / "out") == undisturbed


def in_namespace(script: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr}")
    return done


@only_linux
@pytest.mark.parametrize(
    ("size", "names", "options"),
    [("4k,nr_inodes=99", ["plan.json"], ["--part-rows", "1"]), ("120k", ["part-0000", "rejects.jsonl"], [])],
)
def test_a_full_disk_is_one_line_that_names_a_file_and_nothing_is_lost(
    tiny_model: Path,
    corpus: Path,
    undisturbed: dict[str, Any],
    tmp_path: Path,
    size: str,
    names: list[str],
    options: list[str],
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    run = " ".join([sys.executable, "-m", "e5onnx", *arguments(tiny_model, corpus, disk / "out")])
    done = in_namespace(
        f"mount -t tmpfs -o size={size} none {disk} || exit 77; {' '.join([run, *options])}; echo code $?; "
        f"mount -o remount,size=50m {disk} && {run}; cp -r {disk}/out {tmp_path}/out"
    )
    assert done.stdout.startswith("code 1")
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("e5onnx: error")]
    assert f"no space left on device: {disk}/out/" in error
    assert any(name in error for name in names)
    assert ".partial" not in error
    assert content(tmp_path / "out") == undisturbed


@only_linux
def test_a_folder_that_cannot_be_written_to_is_not_called_locked(
    tiny_model: Path, corpus: Path, tmp_path: Path
) -> None:
    output = tmp_path / "disk/out"
    (output / "_e5onnx").mkdir(parents=True)
    run = " ".join([sys.executable, "-m", "e5onnx", *arguments(tiny_model, corpus, output)])
    mount = f"mount --bind {output} {output} && mount -o remount,ro,bind {output} || exit 77; "
    done = in_namespace(f"{mount} {run}; echo code $?")
    assert done.stdout.startswith("code 1")
    assert f"{output} cannot be locked for writing (read-only file system: {output}/_e5onnx/lock)" in done.stderr
    assert "another process" not in done.stderr


def test_of_processes_that_begin_at_once_one_writes(
    tiny_model: Path, corpus: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    command = [sys.executable, "-m", "e5onnx", *arguments(tiny_model, corpus, tmp_path / "out")]
    processes = [subprocess.Popen(command, stderr=subprocess.PIPE, text=True) for _ in range(3)]
    ended = [(process.communicate()[1], process.returncode) for process in processes]
    assert 0 in [code for _, code in ended]
    assert all("another process is writing into" in error for error, code in ended if code != 0), ended
    assert content(tmp_path / "out") == undisturbed
