"""Killed at any moment, out of disk, or interrupted: the same command goes on, and ends with the same bytes."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from texts import TEXTS

ROWS = 400
PART = 16


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_corpus(tmp_path_factory.mktemp("corpus") / "corpus.jsonl", ROWS)


def write_corpus(path: Path, number_of_rows: int) -> Path:
    generator = random.Random(0)
    rows: list[dict[str, Any]] = [
        {"id": f"row {number}", "text": generator.choice(TEXTS) + str(number)} for number in range(number_of_rows)
    ]
    rows[37]["text"] = None
    rows[250]["text"] = 5
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def command(model: Path, corpus: Path, output: Path, *options: str) -> list[str]:
    options = ("--id-column", "id", "--on-error", "skip", "--part-rows", str(PART), "--threads", "1", *options)
    return [sys.executable, "-m", "e5onnx", "embed", str(model), str(corpus), "--output", str(output), *options]


def content(folder: Path) -> dict[str, Any]:
    """All files of an output folder, save what the plan knows of the input's age, and what names the plan."""
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
    subprocess.run(command(tiny_model, corpus, output), check=True, capture_output=True)
    found = content(output)
    assert len([name for name in found if name.endswith(".parquet")]) == ROWS // PART
    assert len(found["_e5onnx/rejects.jsonl"].splitlines()) == 2
    return found


# Each round kills once at a random moment, and lets the next run end.
@pytest.mark.skipif(sys.platform == "win32", reason="kill -9 is POSIX")
def test_killed_at_random_moments_it_ends_with_the_same_bytes(
    tiny_model: Path, corpus: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    generator = random.Random()
    killed_between = 0
    for number in range(6):
        output = tmp_path / f"out{number}"
        for _ in range(3):
            process = subprocess.Popen(command(tiny_model, corpus, output), stderr=subprocess.DEVNULL)
            until = time.monotonic() + 30
            parts = len(list(output.glob("part-*.parquet")))
            # after some more parts, and a moment that is no part's end
            more = generator.randrange(8)
            while process.poll() is None and len(list(output.glob("part-*.parquet"))) < parts + more:
                assert time.monotonic() < until
                time.sleep(0.001)
            time.sleep(generator.uniform(0, 0.03))
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed_between += 0 < len(list(output.glob("part-*.parquet"))) < ROWS // PART
        subprocess.run(command(tiny_model, corpus, output), check=True, capture_output=True)
        assert content(output) == undisturbed
    assert killed_between > 4


def test_a_damaged_part_and_a_lost_note_are_made_anew(
    tiny_model: Path, corpus: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "out"
    subprocess.run(command(tiny_model, corpus, output), check=True, capture_output=True)
    (output / "_e5onnx/done/part-000003.json").unlink()
    noted = output / "part-000007.parquet"
    noted.write_bytes(noted.read_bytes()[:-9] + b"\0" + noted.read_bytes()[-8:])  # of the same size
    assert content(output) != undisturbed
    subprocess.run(command(tiny_model, corpus, output), check=True, capture_output=True)
    assert content(output) == undisturbed


def in_namespace(script: str) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(["unshare", "--mount", "sh", "-c", script], capture_output=True, text=True, check=False)
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no file system can be mounted here: {done.stderr}")
    return done


only_linux = pytest.mark.skipif(sys.platform != "linux", reason="small and read-only file systems are Linux'")


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
    run = " ".join(command(tiny_model, corpus, disk / "out"))
    done = in_namespace(
        f"mount -t tmpfs -o size={size} none {disk} || exit 77; {' '.join([run, *options])}; echo code $?; "
        f"mount -o remount,size=50m {disk} && {run}; cp -r {disk}/out {tmp_path}/out"
    )
    assert done.stdout.startswith("code 1")
    (error,) = [line for line in done.stderr.splitlines() if line.startswith("e5onnx: error")]
    assert f"No space left on device: '{disk}/out/" in error
    assert error.endswith("'")
    assert any(name in error for name in names)
    assert ".partial" not in error
    assert content(tmp_path / "out") == undisturbed


@only_linux
def test_a_folder_that_cannot_be_written_to_is_not_called_locked(
    tiny_model: Path, corpus: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    output = tmp_path / "disk/out"
    (output / "_e5onnx").mkdir(parents=True)
    run = " ".join(command(tiny_model, corpus, output))
    mount = f"mount --bind {output} {output} && mount -o remount,ro,bind {output} || exit 77; "
    done = in_namespace(f"{mount} {run}; echo code $?")
    assert done.stdout.startswith("code 1")
    assert f"{output} cannot be locked for writing: [Errno 30] Read-only file system" in done.stderr
    assert "another process" not in done.stderr


def test_of_processes_that_begin_at_once_one_writes(
    tiny_model: Path, corpus: Path, undisturbed: dict[str, Any], tmp_path: Path
) -> None:
    arguments = command(tiny_model, corpus, tmp_path / "out")
    processes = [subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True) for _ in range(4)]
    ended = [(process.communicate()[1], process.returncode) for process in processes]
    assert 0 in [code for _, code in ended]
    assert all("another process writes into" in error for error, code in ended if code != 0), ended
    assert content(tmp_path / "out") == undisturbed


def test_an_interrupt_stops_soon_and_keeps_what_is_done(tiny_model: Path, tmp_path: Path) -> None:
    corpus = write_corpus(tmp_path / "corpus.jsonl", 20 * ROWS)  # so much that it is not done before
    subprocess.run(command(tiny_model, corpus, tmp_path / "undisturbed"), check=True, capture_output=True)
    output = tmp_path / "out"
    process = subprocess.Popen(
        command(tiny_model, corpus, output),
        stderr=subprocess.PIPE,
        # a process started in the background hands down that interrupts are ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(output.glob("part-*.parquet")):
        assert process.poll() is None
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=20)
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    subprocess.run(command(tiny_model, corpus, output), check=True, capture_output=True)
    assert content(output) == content(tmp_path / "undisturbed")


def test_the_command_says_what_it_did(tiny_model: Path, corpus: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = subprocess.run(command(tiny_model, corpus, output, "--json"), capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout)
    assert (summary["rows"], summary["rejected"], summary["parts"]) == (ROWS - 2, 2, ROWS // PART)
    done = subprocess.run(command(tiny_model, corpus, output), capture_output=True, text=True, check=True)
    assert "holds 398 embeddings of dimension 48 in 25 parts" in done.stderr
    assert "skipped 2 rows" in done.stderr
    stopped = [
        option for option in command(tiny_model, corpus, tmp_path / "other") if option not in ("--on-error", "skip")
    ]
    failed = subprocess.run(stopped, capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert failed.stderr.startswith(f"e5onnx: error: {corpus}, line 38: its text, column 'text', is null")


@pytest.mark.parametrize("missing", ["pyarrow", "tqdm"])
def test_without_the_extra_it_says_what_to_install(
    tiny_model: Path, corpus: Path, tmp_path: Path, missing: str
) -> None:
    (tmp_path / f"{missing}.py").write_text(f"raise ModuleNotFoundError('no', name='{missing}')")
    paths = [str(tmp_path), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    arguments = command(tiny_model, corpus, tmp_path / "out")
    failed = subprocess.run(arguments, capture_output=True, text=True, check=False, env=environment)
    assert failed.returncode == 1
    assert failed.stderr == "e5onnx: error: embedding into a folder needs more: pip install 'e5onnx[bulk]'\n"
