"""Nothing is half-done or lost: outputs in the way, exports that are killed or fail, full and read-only disks."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from e5onnx import Encoder, InputValueError
from e5onnx.model_folder import ModelFolder
from e5onnx_export import export_model as export_both

export_model = partial(export_both, precisions=["fp32"])
WITHOUT_TORCH = 'import sys; sys.modules.update({"torch": None, "transformers": None})'
"""Begins a program that exports: importing them takes longer than the export, whose vectors are not looked at here."""
linux = pytest.mark.skipif(sys.platform != "linux", reason="signals and mounts as on Linux")


def test_an_output_in_the_way_is_only_replaced_with_force(tmp_path: Path, tiny_checkpoint: Path) -> None:
    output = tmp_path / "model"
    export_model(tiny_checkpoint, output)
    before = (output / "e5onnx.json").read_text()
    with pytest.raises(InputValueError, match="--force"):
        export_model(tiny_checkpoint, output, max_tokens=99)
    assert (output / "e5onnx.json").read_text() == before
    assert export_model(tiny_checkpoint, output, max_tokens=99, force=True).manifest.max_tokens == 99
    assert Encoder(output).max_tokens == 99
    assert list(tmp_path.iterdir()) == [output]


def test_force_never_replaces_what_is_not_a_model_folder(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home/precious.txt").write_text("precious")
    (tmp_path / "file").write_text("precious")
    for output in (tmp_path / "home", tmp_path / "file"):
        with pytest.raises(InputValueError, match="is not a model folder"):
            export_model(tiny_checkpoint, output, force=True)
    assert (tmp_path / "home/precious.txt").read_text() == (tmp_path / "file").read_text() == "precious"


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path: Path, tiny_checkpoint: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert export_model(tiny_checkpoint, tmp_path / "empty").path == tmp_path / "empty"
    folder = export_model(tiny_checkpoint, tmp_path / "a/b/model").path
    assert folder.stat().st_mode == (tmp_path / "a").stat().st_mode  # as open to others as any new folder


def test_a_folder_that_exists_stays_the_folder_it_is(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller's current folder, the target of a symbolic link and the permissions all stay."""
    here = tmp_path / "here"
    here.mkdir(mode=0o711)
    (here / "lost+found").mkdir()  # of a new file system
    monkeypatch.chdir(here)
    (tmp_path / "link").symlink_to(here)
    for output, force in [(Path(), False), (Path(), True), (tmp_path / "link", True)]:
        said: list[str] = []
        folder = export_model(tiny_checkpoint, output, force=force, max_tokens=99, report=said.append)
        assert Path.cwd().samefile(here)
        assert (tmp_path / "link").is_symlink()
        assert here.stat().st_mode & 0o777 == 0o711
        assert sorted(path.name for path in here.iterdir()) == sorted(
            {"lost+found", "e5onnx.json", "onnx", *(record.file for record in folder.manifest.files)}
        )
        assert len(ModelFolder.open(here).verify()) == len(list(folder.manifest.records()))


def test_a_failure_while_files_are_replaced_brings_the_old_ones_back(
    tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "model"
    export_model(tiny_checkpoint, output)
    before = {path: path.read_bytes() for path in output.rglob("*") if path.is_file()}
    rename = Path.rename
    monkeypatch.setattr(
        Path, "rename", lambda self, to: rename(self, to) if "tokenizer.json" not in str(to) else fail()
    )

    def fail() -> Path:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export_model(tiny_checkpoint, output, max_tokens=99, force=True)
    assert {path: path.read_bytes() for path in output.rglob("*") if path.is_file()} == before


def test_a_checkpoint_within_the_output_is_not_replaced(tmp_path: Path, tiny_checkpoint: Path) -> None:
    output = export_model(tiny_checkpoint, tmp_path / "model").path
    checkpoint = shutil.copytree(tiny_checkpoint, output / "checkpoint")
    for source in (checkpoint, output / "checkpoint/../checkpoint"):
        with pytest.raises(InputValueError, match="contains the checkpoint"):
            export_model(source, output, force=True)
    assert (checkpoint / "model.safetensors").read_bytes() == (tiny_checkpoint / "model.safetensors").read_bytes()


@linux
@pytest.mark.parametrize(
    ("killed_in", "done_before"),
    [("export.graph_record", "onnx/model.onnx"), ("validate.measure_parity", "e5onnx.json")],
)
def test_a_killed_export_leaves_no_half_folder(
    tiny_checkpoint: Path, tiny_model: Path, tmp_path: Path, killed_in: str, done_before: str
) -> None:
    output = tmp_path / "model"
    if done_before == "e5onnx.json":  # the old model must stay until the end
        shutil.copytree(tiny_model, output)
    program = f"""
import os, signal
{WITHOUT_TORCH}
from e5onnx_export import export, export_model, validate
{killed_in} = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
export_model({str(tiny_checkpoint)!r}, {str(output)!r}, precisions=["fp32"], force=True)
"""
    assert subprocess.run([sys.executable, "-c", program]).returncode == -signal.SIGKILL
    assert any(tmp_path.rglob(f".model.*.partial/new/{done_before}"))
    if done_before == "e5onnx.json":
        assert ModelFolder.open(output).verify()
        assert ModelFolder.open(output).manifest == ModelFolder.open(tiny_model).manifest
    else:
        assert not output.exists()
    export_model(tiny_checkpoint, output, force=True)  # and goes on
    assert ModelFolder.open(output).verify()


def test_an_export_goes_on_beside_the_remains_of_a_killed_one(tiny_checkpoint: Path, tmp_path: Path) -> None:
    remains = tmp_path / ".model.abc.partial/new/onnx"
    remains.mkdir(parents=True)
    export_model(tiny_checkpoint, tmp_path / "model")
    assert Encoder(tmp_path / "model").encode("text").shape == (48,)


def in_one_process(*commands: list[str]) -> list[str]:
    """Return a command that runs those of e5onnx one after the other and prints their exit codes."""
    program = f"{WITHOUT_TORCH}\nfrom e5onnx.cli import main; print([main(command) for command in {commands}])"
    return [sys.executable, "-c", program]


def mounted(folder: Path, size: str) -> list[str]:
    """Return the start of a command that runs where a small file system is mounted at `folder`, and lists it then."""
    folder.mkdir()
    mount = f'mount -t tmpfs -o size={size} tmpfs "$1"; shift; "$@"; status=$?; ls -A {folder} >&2; exit $status'
    isolated = ["unshare", "--mount", "sh", "-c", mount, "sh", str(folder)]
    if shutil.which("unshare") is None or subprocess.run([*isolated, "true"], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    return isolated


@linux
def test_a_full_disk_is_one_line_and_leaves_nothing(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """Of two disks, one has no room from the start, the other is full before the end."""
    disks = {tmp_path / "tiny": "1m", tmp_path / "small": "6100k"}
    mounts = [word for disk, size in disks.items() for word in mounted(disk, size)]
    commands = [["export", str(tiny_checkpoint), str(disk / "model"), "--precision", "fp32"] for disk in disks]
    done = subprocess.run([*mounts, *in_one_process(*commands)], capture_output=True, text=True, timeout=300)
    assert done.stdout.endswith("[1, 1]\n")
    too_small, full = [line for line in done.stderr.splitlines() if not line.startswith("e5onnx: warning")]
    assert too_small.startswith("e5onnx: error: ")
    assert "no space left: the export needs about" in too_small
    assert full.startswith("e5onnx: error: ")
    assert "no space left on device" in full
    assert done.stdout.count("Building") == 1


@linux
def test_an_empty_mount_point_is_filled_and_filled_again(tiny_checkpoint: Path, tmp_path: Path) -> None:
    """A container's volume is one: it cannot be renamed, nor can anything be moved into it from outside."""
    volume = tmp_path / "volume"
    command = ["export", str(tiny_checkpoint), str(volume), "--precision", "fp32"]
    program = in_one_process(command, [*command, "--force"], ["verify", str(volume)])
    done = subprocess.run([*mounted(volume, "40m"), *program], capture_output=True, text=True, timeout=300)
    assert done.stdout.endswith("[0, 0, 0]\n"), done.stderr
    assert "e5onnx.json" in done.stderr.splitlines()
    assert "partial" not in done.stderr


@linux
def test_a_read_only_place_is_refused_before_the_work(tiny_checkpoint: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    export = ["export", str(tiny_checkpoint), str(place / "a/model")]
    command = ["sh", "-c", f'mount -o remount,ro "{place}"; "$@"', "sh", *in_one_process(export)]
    done = subprocess.run([*mounted(place, "40m"), *command], capture_output=True, text=True, timeout=300)
    assert done.stdout == "[1]\n"
    assert f"cannot be written: {place} is read-only" in done.stderr
