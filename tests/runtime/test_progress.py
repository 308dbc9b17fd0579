"""Bars and steps, and that a terminal alone sees them."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from e5onnx import MissingDependencyError, progress
from e5onnx.progress import Steps, bar

pytest.importorskip("tqdm")


def test_a_step_counts_its_seconds_until_the_next_one(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "_REFRESH_SECONDS", 0.01)
    lines: list[str] = []
    shown = ""

    def wait_for(text: str) -> None:
        nonlocal shown
        end = time.monotonic() + 60
        while text not in shown:
            assert time.monotonic() < end, shown
            time.sleep(0.01)
            shown += capsys.readouterr().err

    with Steps(lines.append, live=True) as report:
        report("Calibrating")
        wait_for(" 0 s  Calibrating ...")
        report.advance(3, 12)
        wait_for("Calibrating: 3 of 12, 0 s left ...")
        report("  a detail")
        report("Writing")
        wait_for(" 0 s  Writing ...")
    assert [line[8:] for line in lines] == ["  Calibrating", "    a detail", "  Writing"]
    assert lines[1].startswith(" " * 12)


def test_without_a_terminal_steps_are_lines() -> None:
    lines: list[str] = []
    with Steps(lines.append, live=False) as report:
        report("Calibrating")
        report.advance(12, 12)
    assert lines == ["   0.0 s  Calibrating", "            12 of 12"]


def test_a_bar_counts_and_keeps_what_was_noted_beside_it(capsys: pytest.CaptureFixture[str]) -> None:
    with bar(True, "Embedding", 10, "row", done=4) as advance:
        advance(6, "5 tokens/s")
    shown = capsys.readouterr().err
    assert "10/10" in shown
    assert "5 tokens/s" in shown
    with bar(False, "Embedding", 10, "row") as advance:
        advance(6, "5 tokens/s")
    assert capsys.readouterr().err == ""


def test_a_bar_needs_tqdm_only_if_it_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tqdm", "tqdm.auto"):
        monkeypatch.setitem(sys.modules, name, None)
    with bar(False, "Embedding", 10, "row") as advance:
        advance(10)
    with pytest.raises(MissingDependencyError, match="pip install tqdm"), bar(True, "Embedding", 10, "row"):
        pass


@pytest.mark.skipif(os.name != "posix", reason="needs a pseudo-terminal")
@pytest.mark.parametrize("options", [[], ["--quiet"]])
def test_a_terminal_sees_bars_unless_it_wants_quiet(tiny_model: Path, tmp_path: Path, options: list[str]) -> None:
    import fcntl
    import pty
    import struct
    import termios

    (tmp_path / "a.txt").write_text("a text\n" * 50)
    embed = ["embed", tiny_model, tmp_path / "a.txt", "--output", tmp_path / "x.npy"]
    for arguments, shown in ((["verify", tiny_model], "Reading:"), (embed, "Embedding:")):
        theirs, ours = pty.openpty()
        fcntl.ioctl(ours, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 100, 0, 0))
        command = [sys.executable, "-m", "e5onnx", *map(str, arguments), *options]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=ours) as process:
            os.close(ours)
            written = b""
            with contextlib.suppress(OSError):  # how Linux says that the other end was closed
                while block := os.read(theirs, 4096):
                    written += block
        assert process.returncode == 0
        os.close(theirs)
        assert (shown in written.decode()) is (options == []), written
