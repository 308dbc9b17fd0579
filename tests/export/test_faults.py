"""An export that is killed, or whose disk is full, leaves no half folder and nothing lost."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from checkpoints import make_checkpoint
from e5onnx import Encoder
from e5onnx.model_folder import ModelFolder

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="signals and mounts as on Linux")


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    make_checkpoint(folder, layers=1, hidden_size=48, heads=4)
    return folder


def export(checkpoint: Path, output: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "e5onnx", "export", str(checkpoint), str(output), "--precision", "fp32", *options]


@pytest.mark.parametrize("stage", ["onnx/model.onnx", "e5onnx.json"])
def test_a_killed_export_leaves_no_half_folder(checkpoint: Path, tiny_model: Path, tmp_path: Path, stage: str) -> None:
    output = tmp_path / "model"
    options: list[str] = []
    if stage == "e5onnx.json":  # what is replaced must stay until the end
        shutil.copytree(tiny_model, output)
        options = ["--force"]
    process = subprocess.Popen(export(checkpoint, output, *options), stdout=subprocess.DEVNULL)
    try:
        until = time.monotonic() + 120
        while not any(tmp_path.rglob(f".model.*.partial/new/{stage}")):
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.005)
    finally:
        process.kill()
        process.wait()
    if options:
        assert ModelFolder.open(output).verify()
        assert ModelFolder.open(output).manifest == ModelFolder.open(tiny_model).manifest
    else:
        assert not output.exists()
    subprocess.run(export(checkpoint, output, "--force"), check=True, stdout=subprocess.DEVNULL)  # and goes on
    assert ModelFolder.open(output).verify()


def test_an_export_goes_on_beside_the_remains_of_a_killed_one(checkpoint: Path, tmp_path: Path) -> None:
    remains = tmp_path / ".model.abc.partial/new/onnx"
    remains.mkdir(parents=True)
    subprocess.run(export(checkpoint, tmp_path / "model"), check=True, stdout=subprocess.DEVNULL)
    assert Encoder(tmp_path / "model").encode("text").shape == (48,)


def mounted(folder: Path, size: str) -> list[str]:
    """Return the start of a command that runs where a small file system is mounted at `folder`, and lists it then."""
    folder.mkdir()
    mount = f'mount -t tmpfs -o size={size} tmpfs "$1"; shift; "$@"; status=$?; ls -A {folder} >&2; exit $status'
    isolated = ["unshare", "--mount", "sh", "-c", mount, "sh", str(folder)]
    if shutil.which("unshare") is None or subprocess.run([*isolated, "true"], check=False).returncode:
        pytest.skip("no file system can be mounted here")
    return isolated


@pytest.mark.parametrize(
    ("size", "expected"),
    [("1m", "the disk of the output has 1 MB free: no space left"), ("6100k", "No space left on device")],
)
def test_a_full_disk_is_one_line_and_leaves_nothing(checkpoint: Path, tmp_path: Path, size: str, expected: str) -> None:
    small = tmp_path / "small"
    command = [*mounted(small, size), *export(checkpoint, small / "model")]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    lines = [line for line in done.stderr.splitlines() if not line.startswith("e5onnx: warning")]
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("e5onnx: error: ")
    assert re.search(expected, lines[0])
    assert ("Tracing" in done.stdout) == ("device" in expected)


def test_an_empty_mount_point_is_filled_and_filled_again(checkpoint: Path, tmp_path: Path) -> None:
    """As a container's volume is: it cannot be renamed, nor can anything be moved to it from outside."""
    volume = tmp_path / "volume"
    use = "from e5onnx import Encoder; print(Encoder('.').encode('').shape)"
    twice = f'"$@" && "$@" --force && cd {volume} && "$0" -c "{use}"'
    command = [*mounted(volume, "40m"), "sh", "-c", twice, sys.executable, *export(checkpoint, volume)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "e5onnx.json" in done.stderr.splitlines()
    assert "partial" not in done.stderr
    assert done.stdout.endswith("(48,)\n")


def test_a_read_only_place_is_refused_before_the_work(checkpoint: Path, tmp_path: Path) -> None:
    place = tmp_path / "place"
    command = ["sh", "-c", f'mount -o remount,ro "{place}"; "$@"', "sh", *export(checkpoint, place / "a/model")]
    done = subprocess.run([*mounted(place, "40m"), *command], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 1
    assert f"cannot be written: {place} is read-only" in done.stderr
    assert "Exporting" not in done.stdout
