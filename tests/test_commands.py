"""Every command's help, and the examples in it as a user types them."""

from __future__ import annotations

import json
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from e5onnx.cli import COMMANDS
from hub_stand_in import HubStandIn

EXPORT, *OTHERS = (example for command in COMMANDS.values() for example in command.examples)
WRITES = {
    "--output questions.npy": "questions.npy",
    "--output vectors": "vectors/_e5onnx/summary.json",
    "function.zip": "function.zip",
    "--json results.json": "results.json",
    "models/mine": "models/mine/e5onnx.json",
}
"""What an example writes, by the words that say so."""


class Shell:
    """A user's current folder, hub and command line."""

    def __init__(self, folder: Path, hub: HubStandIn) -> None:
        self.folder = folder
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        self.environment = hub.environment(folder / "home", HF_TOKEN="writer", PATH=path)

    def run(self, line: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            shlex.split(line), cwd=self.folder, env=self.environment, capture_output=True, text=True, timeout=600
        )


@pytest.fixture(scope="module")
def shell(tmp_path_factory: pytest.TempPathFactory, tiny_checkpoint: Path) -> Iterator[Shell]:
    folder = tmp_path_factory.mktemp("user")
    (folder / "checkpoints").mkdir()
    (folder / "checkpoints/mine").symlink_to(tiny_checkpoint)
    texts = [f"Text {number} is about the number {number * number}." for number in range(40)]
    for name in ("texts.txt", "questions.txt"):
        (folder / name).write_text("\n".join(texts))
    (folder / "keys.txt").write_text("secret\n")
    (folder / "corpus.jsonl").write_text("".join(f"{json.dumps({'text': text, 'title': 't'})}\n" for text in texts))
    (folder / "pairs.tsv").write_text("score\tsentence1\tsentence2\n1\ta\tb\n2\ta\tc\n3\ta\ta\n")
    (folder / "scifact/qrels").mkdir(parents=True)
    for name in ("corpus", "queries"):
        (folder / f"scifact/{name}.jsonl").write_text(f'{{"_id": "{name}-1", "text": "a"}}\n')
    (folder / "scifact/qrels/test.tsv").write_text("query-id\tcorpus-id\tscore\nqueries-1\tcorpus-1\t1\n")
    with HubStandIn() as hub:
        hub.writer = "writer"
        hub.add("intfloat/e5-small-v2", tiny_checkpoint)
        user = Shell(folder, hub)
        done = user.run(EXPORT)
        assert done.returncode == 0, done.stderr
        yield user


def test_the_steps_of_an_export_have_their_seconds(shell: Shell) -> None:
    done = shell.run("e5onnx export checkpoints/mine models/again --precision fp32")
    lines = done.stdout.splitlines()
    assert re.fullmatch(r" +0\.\d s  Exporting mine", lines[0])
    assert re.fullmatch(r" +\d+\.\d s  Wrote .*models/again \(\d+ MB\)", lines[-1])
    assert all(re.match(r" {10}\S|[ \d]{4}\.\d s  \S| {12}\S", line) for line in lines), done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_help_has_a_sentence_groups_defaults_and_examples(shell: Shell, name: str) -> None:
    text = shell.run(f"e5onnx {name} --help").stdout
    usage, sentence, *_, examples = text.split("\n\n")
    assert usage.startswith(f"usage: e5onnx {name} [OPTIONS]")
    assert re.fullmatch(r"[A-Z][^.]*(\([^()]*\))?\.", sentence)
    first, second = COMMANDS[name].examples
    assert examples.rstrip() == f"examples:\n  {first}\n  {second}"
    for group in re.split(r"\n\n(?=\w[^\n]*:\n)", text):
        assert len(re.findall(r"^  -", group, re.MULTILINE)) <= 10, group


@pytest.mark.parametrize("example", OTHERS)
def test_examples_run(shell: Shell, example: str) -> None:
    if example.startswith("e5onnx serve"):
        serve(shell, example)
        return
    # the last of two values counts: a second will do where two minutes are the default
    done = shell.run(f"{example} --seconds 1" if "benchmark" in example else example)
    assert done.returncode == 0, done.stderr
    for words, written in WRITES.items():
        if words in example:
            assert (shell.folder / written).stat().st_size > 0
    if "questions.npy" in example:
        assert np.load(shell.folder / "questions.npy").shape == (40, 48)
    if example.endswith("--json"):
        json.loads(done.stdout)


def serve(shell: Shell, example: str) -> None:
    command = [*shlex.split(example), "--port", "0"]
    with (shell.folder / "log").open("w+") as log:
        process = subprocess.Popen(command, cwd=shell.folder, env=shell.environment, stderr=log)
        try:
            while "http://" not in (shell.folder / "log").read_text():
                assert process.poll() is None, (shell.folder / "log").read_text()
                time.sleep(0.05)
        finally:
            process.send_signal(signal.SIGINT)
            process.wait(60)
