"""The command line as a user runs it: a process, its output, its exit code. `export` is in tests/export."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from e5onnx import Encoder, __version__


def e5onnx(*arguments: object, stdin: bytes | None = None, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run `python -m e5onnx`."""
    command = [sys.executable, "-m", "e5onnx", *map(str, arguments)]
    return subprocess.run(command, input=stdin or b"", capture_output=True, timeout=120, check=False, **options)


def assert_fails(done: subprocess.CompletedProcess[bytes], code: int, *parts: str) -> None:
    """Check for an exit code and, for failures, one clear line on standard error."""
    error = done.stderr.decode()
    assert done.returncode == code, error
    assert done.stdout == b""
    assert "Traceback" not in error
    if code == 1:
        assert error.count("\n") == 1
        assert error.startswith("e5onnx: error: ")
    for part in parts:
        assert part in error


def test_the_installed_command_is_the_module(sample_model: Path) -> None:
    script = Path(sys.executable).with_name("e5onnx")
    done = subprocess.run([script, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"e5onnx {__version__}\n"
    assert e5onnx("--version").stdout.decode() == done.stdout


def test_help_lists_the_commands() -> None:
    done = e5onnx("--help")
    assert done.returncode == 0
    for command in ("export", "portable", "embed", "similarity", "info", "verify"):
        assert command in done.stdout.decode()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["embed"],
        ["info", "--nonsense", "x"],
        ["embed", "m", "--as", "nonsense"],
        ["embed", "m", "a.csv", "--id-column", "id"],
        ["embed", "m", "a.csv", "--dtype", "int8", "--output", "x.npy"],
        ["embed", "m", "--output", "folder"],
        ["embed", "m", "--threads", "two"],
        ["similarity", "m", "--query", "only a query"],
        ["similarity", "m", "--document", "only a document"],
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str]) -> None:
    assert_fails(e5onnx(*arguments), 2, "usage:")


# embed


def test_embed_writes_json_lines(sample_model: Path) -> None:
    done = e5onnx("embed", sample_model, stdin="first line\n\nça va ? 🙂\r\nno line end".encode())
    assert done.returncode == 0
    assert done.stderr == b""
    rows = [json.loads(line) for line in done.stdout.decode().splitlines()]
    texts = ["first line", "", "ça va ? 🙂", "no line end"]
    assert [row["text"] for row in rows] == texts
    found = np.array([row["embedding"] for row in rows], np.float32)
    np.testing.assert_allclose(found, Encoder(sample_model).encode(texts), atol=1e-6)


@pytest.mark.parametrize(("role", "prefix"), [("query", "query: "), ("document", "passage: "), ("raw", "")])
def test_embed_applies_the_role(e5_model: Path, tmp_path: Path, role: str, prefix: str) -> None:
    texts = ["one text", "another"]
    (tmp_path / "texts.txt").write_text("\n".join(texts))
    output = tmp_path / "x.npy"
    done = e5onnx("embed", e5_model, tmp_path / "texts.txt", "--as", role, "--output", output)
    assert done.returncode == 0, done.stderr
    assert done.stdout == b""
    expected = Encoder(e5_model).encode([prefix + text for text in texts], prompt="")
    np.testing.assert_allclose(np.load(output), expected, atol=1e-6)
    assert np.load(output).dtype == np.float32


def test_embed_reads_files_in_order_and_standard_input(sample_model: Path, tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffbyte order mark\n".encode())
    (tmp_path / "b.txt").write_text("last\n")
    done = e5onnx("embed", sample_model, tmp_path / "a.txt", "-", tmp_path / "b.txt", stdin=b"middle\n")
    assert [json.loads(line)["text"] for line in done.stdout.splitlines()] == ["byte order mark", "middle", "last"]


def test_embed_of_nothing(sample_model: Path, tmp_path: Path) -> None:
    assert e5onnx("embed", sample_model).stdout == b""
    done = e5onnx("embed", sample_model, "--output", tmp_path / "x.npy", "--json")
    assert json.loads(done.stdout)["shape"] == [0, 384]
    assert np.load(tmp_path / "x.npy").shape == (0, 384)


def test_embed_says_what_was_cut_in_one_line(sample_model: Path) -> None:
    lines = [b"short", b"word " * 300, *[b"short"] * 1100, b"word " * 400]
    done = e5onnx("embed", sample_model, stdin=b"\n".join(lines))
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == len(lines)
    error = done.stderr.decode()
    assert error.count("\n") == 1
    assert "2 texts were longer than the model's 256 tokens" in error
    assert "longest has 402" in error


def test_embed_can_refuse_to_cut(sample_model: Path, tmp_path: Path) -> None:
    done = e5onnx("embed", sample_model, "--truncate", "error", "--output", tmp_path / "x.npy", stdin=b"word " * 300)
    assert_fails(done, 1, "302 tokens")
    assert not any(tmp_path.iterdir())


def test_embed_names_file_and_line_of_bad_bytes(sample_model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"fine\n\xff\xfe\n")
    done = e5onnx("embed", sample_model, tmp_path / "bad.txt", "--output", tmp_path / "x.npy")
    assert_fails(done, 1, f"{tmp_path / 'bad.txt'}, row 2: it is not valid UTF-8")
    assert_fails(e5onnx("embed", sample_model, tmp_path / "none.txt"), 1, "none.txt")


def test_embed_keeps_an_old_output_if_it_fails(sample_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.npy"
    output.write_bytes(b"precious")
    assert_fails(e5onnx("embed", sample_model, "--output", output, stdin=b"\xff"), 1, "standard input, row 1")
    assert output.read_bytes() == b"precious"
    assert_fails(e5onnx("embed", sample_model, "--output", tmp_path / "no/x.npy", stdin=b"a"), 1, "no")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_clear_line(sample_model: Path) -> None:
    command = [sys.executable, "-m", "e5onnx", "embed", str(sample_model)]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(command, input=b"text\n" * 100, stdout=full, stderr=subprocess.PIPE, check=False)
    assert done.returncode == 1
    assert done.stderr.decode() == "e5onnx: error: [Errno 28] No space left on device\n"


def test_a_broken_pipe_is_no_error(sample_model: Path) -> None:
    command = [sys.executable, "-m", "e5onnx", "embed", str(sample_model)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin
        assert process.stdout
        assert process.stderr
        process.stdin.write(b"text\n" * 2000)
        process.stdin.close()
        assert process.stdout.readline().startswith(b'{"text": "text"')
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait(60) == 0


# similarity


def test_similarity_shows_an_example_best_first(sample_model: Path) -> None:
    done = e5onnx("similarity", sample_model)
    assert done.returncode == 0
    lines = done.stdout.decode().splitlines()
    assert [line for line in lines if line.startswith("query: ")] == [
        "query: how much protein should a female eat",
        "query: summit define",
    ]
    assert "protein a day" in lines[1]
    assert lines[4].split()[1] == "Summit,"
    scores = [float(lines[i].split()[0]) for i in (1, 2, 4, 5)]
    assert scores[0] > 0.7 > 0.2 > scores[1]
    assert scores[2] > 0.7 > 0.2 > scores[3]


def test_similarity_scores_are_those_of_the_encoder(e5_model: Path) -> None:
    queries, documents = ["one query", "another"], ["first document", "second", "third"]
    done = e5onnx("similarity", e5_model, "--query", *queries, "--document", *documents, "--json")
    encoder = Encoder(e5_model)
    expected = encoder.similarity(encoder.encode_query(queries), encoder.encode_document(documents))
    results = json.loads(done.stdout)
    assert [result["query"] for result in results] == queries
    for result, row in zip(results, expected, strict=True):
        scores = [entry["score"] for entry in result["documents"]]
        assert scores == sorted(scores, reverse=True)
        for entry in result["documents"]:
            assert entry["document"] == documents[entry["index"]]
            assert entry["score"] == pytest.approx(row[entry["index"]], abs=1e-6)


# info, verify


def test_info(e5_model: Path) -> None:
    text = e5onnx("info", e5_model).stdout.decode()
    for part in ("e5-small-v2", "12 layers", "512 tokens", "mean", "query 'query: '", "onnx/model.onnx"):
        assert part in text
    content = json.loads(e5onnx("info", e5_model, "--json").stdout)
    assert content["prompts"] == {"query": "query: ", "document": "passage: "}
    assert content["fingerprints"] == {"fp32": Encoder(e5_model).fingerprint}


def test_info_says_what_this_host_has(e5_model: Path) -> None:
    for arguments in ([], [e5_model]):
        text = e5onnx("info", *arguments).stdout.decode()
        for part in ("onnxruntime", "processors available", "latency", "throughput", "exactness"):
            assert part in text
        host = json.loads(e5onnx("info", *arguments, "--json").stdout)["host"]
        assert set(host["providers"]) == {"cpu", "openvino"}
        assert set(host["recommended"]) == {"latency", "throughput", "exactness"}


def test_verify(sample_model: Path, tmp_path: Path) -> None:
    done = e5onnx("verify", sample_model, "--json")
    assert done.returncode == 0
    assert {"onnx/model.onnx", "tokenizer.json"} <= {entry["file"] for entry in json.loads(done.stdout)["files"]}
    assert "as it was exported" in e5onnx("verify", sample_model).stdout.decode()
    folder = shutil.copytree(sample_model, tmp_path / "model")
    with (folder / "tokenizer.json").open("r+b") as stream:
        stream.seek(1000)
        stream.write(b"~")
    assert_fails(e5onnx("verify", folder), 1, "tokenizer.json was changed after the export")


@pytest.mark.parametrize("command", ["embed", "similarity", "info", "verify"])
def test_a_missing_model_is_one_clear_line(tmp_path: Path, command: str) -> None:
    assert_fails(e5onnx(command, tmp_path / "nowhere"), 1, "there is no folder", "nowhere")


def test_threads_must_be_possible(sample_model: Path) -> None:
    assert_fails(e5onnx("embed", sample_model, "--threads", "0", stdin=b"a"), 1, "threads must be at least 1")


def test_an_interrupt_ends_quietly(sample_model: Path) -> None:
    import signal

    command = [sys.executable, "-m", "e5onnx", "embed", str(sample_model)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # a process started in the background hands down that interrupts are ignored
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        assert process.stdin
        assert process.stdout
        process.stdin.write(b"text\n" * 1024)
        process.stdin.flush()
        process.stdout.readline()  # it runs, and waits for more lines
        os.kill(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=60)
        assert process.returncode == 130
        assert b"Traceback" not in error
