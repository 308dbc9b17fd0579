"""The command line as a user runs it: a process, its output, its exit code. `export` is in tests/export."""

from __future__ import annotations

import argparse
import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from e5onnx import Encoder, __version__, cli, terminal

COMMANDS = [*cli.COMMANDS]
ENVIRONMENT = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
posix = pytest.mark.skipif(os.name != "posix", reason="needs a POSIX shell")
needs_dev_full = pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")


def e5onnx(*arguments: object, stdin: bytes | None = None, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run `python -m e5onnx`."""
    command = [sys.executable, "-m", "e5onnx", *map(str, arguments)]
    return subprocess.run(command, input=stdin or b"", capture_output=True, timeout=120, check=False, **options)


def redirected(redirection: str, *arguments: object, **options: Any) -> subprocess.CompletedProcess[bytes]:
    """Run `python -m e5onnx` with a shell's redirection of its streams, such as `>&-`."""
    command = ["sh", "-c", f'exec "$@" {redirection}', "sh", sys.executable, "-m", "e5onnx", *map(str, arguments)]
    return subprocess.run(
        command, capture_output=True, timeout=120, check=False, **{"input": b"", "env": ENVIRONMENT, **options}
    )


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
    for command in COMMANDS:
        assert f"\n    {command}" in done.stdout.decode()
    bare = e5onnx()
    assert (bare.returncode, bare.stdout, bare.stderr) == (0, done.stdout, b"")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in ([command, "--help"], [command, "MODEL", "-h", "--nonsense"]):
        with pytest.raises(SystemExit) as caught:
            cli.main(arguments[: 2 + (arguments[1] == "MODEL")])
        assert caught.value.code == 0
        assert capsys.readouterr().out.startswith(f"usage: e5onnx {command} [OPTIONS]")


@pytest.mark.parametrize("arguments", [["--version"], ["--help"], ["nonsense"], []])
def test_what_needs_no_model_needs_no_numpy(tmp_path: Path, arguments: list[str]) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit(9)")
    done = e5onnx(*arguments, env={**os.environ, "PYTHONPATH": str(tmp_path)})
    assert done.returncode == (2 if arguments == ["nonsense"] else 0)


@pytest.mark.parametrize(
    "arguments",
    [
        ["nonsense"],
        ["--json", "info"],
        ["--", "info"],
        ["inf"],
        ["--vers"],
        ["verify", "m", "--jso"],
        ["verify", "m", "another"],
        ["info", "m", "another"],
        ["portable"],
        ["pack-lambda", "m"],
        ["embed", "-m"],
        ["embed", "m", "-1"],
        ["similarity", "m", "--query", "--json"],
        ["similarity", "m", "--query", "--", "a"],
        ["similarity", "m", "-q", "a", "b", "-d", "c"],
        ["similarity", "m", "-q", "a", "-d", "b", "c"],
        ["export", "sample", "m", "--precision", "fp32", "int8"],
        ["export", "--precision", "fp32", "int8", "sample", "m"],
        ["export", "sample", "m", "--precision", "fp32,fp16"],
        ["export", "sample", "m", "--precision", ""],
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
def test_wrong_usage_is_exit_code_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        cli.main(arguments)
    captured = capsys.readouterr()
    assert (caught.value.code, captured.out) == (2, "")
    assert "usage:" in captured.err


def test_a_second_value_after_an_option_is_explained() -> None:
    done = e5onnx("similarity", "m", "--query", "a", "b", "--document", "c")
    assert_fails(done, 2, "too many arguments: b; an option takes one value, repeat it for several")
    assert_fails(e5onnx("embed", "m", "-x.txt"), 2, "unknown option -x.txt; put -- before names that begin with a dash")


@st.composite
def command_lines(draw: st.DrawFn, command: str) -> tuple[list[str], dict[str, Any]]:
    """Arguments of a command, options and positionals in any order, and what they mean."""
    parser = argparse.ArgumentParser()
    cli.COMMANDS[command].add_arguments(parser)
    expected = {action.dest: action.default for action in parser._actions if action.default != argparse.SUPPRESS}
    expected |= {name: value for name, value in parser._defaults.items() if name == "json"}
    groups: list[list[str]] = []
    options = [action for action in parser._get_optional_actions() if action.dest != "help"]
    for action in draw(st.lists(st.sampled_from(options), max_size=5)) if options else []:
        assert action.nargs in (None, 0), f"{action.option_strings} takes several values"
        name = draw(st.sampled_from(action.option_strings))
        if action.nargs == 0:
            groups.append([name])
            expected[action.dest] = action.const
            continue
        text = draw(values(action))
        attached = text.startswith("-") or draw(st.booleans())
        groups.append([f"{name}={text}"] if attached else [name, text])
        value = action.type(text) if callable(action.type) else text
        if isinstance(action, argparse._AppendAction):
            added = value if isinstance(action, argparse._ExtendAction) else [value]
            value = [*(expected.get(action.dest) or []), *added]
        expected[action.dest] = value
    names: list[str] = []
    for action in parser._get_positional_actions():
        assert action.nargs in (None, "?", "*", "+")
        several = action.nargs in ("*", "+")
        least, most = (1 if action.nargs in (None, "+") else 0), (3 if several else 1)
        own = draw(st.lists(st.text(max_size=5).filter(lambda name: name != "--"), min_size=least, max_size=most))
        names += own
        converted = [action.type(name) if callable(action.type) else name for name in own]
        expected[action.dest] = converted if several else converted[0] if converted else None
    needs_dashes = next((i for i, name in enumerate(names) if name.startswith("-") and name != "-"), len(names))
    before = draw(st.integers(0, needs_dashes))
    places = sorted(draw(st.integers(0, len(groups))) for _ in names[:before])
    for place, name in reversed(list(zip(places, names[:before], strict=True))):
        groups.insert(place, [name])
    superfluous: bool = draw(st.booleans())
    after = ["--", *names[before:]] if names[before:] or superfluous else []
    return [*(part for group in groups for part in group), *after], expected


def values(action: argparse.Action) -> st.SearchStrategy[str]:
    """What an option may be given."""
    if action.choices is not None:
        return st.sampled_from(list(action.choices))
    if action.dest == "precision":
        return st.sampled_from(["fp32", "int8", "fp32,int8", "int8,fp32"])
    if action.dest == "provider":
        return st.sampled_from(["cpu", "cpu,kernels"])
    if action.type in (None, Path):
        return st.text(max_size=5).filter(lambda text: text != "--")
    return st.integers(1, 60_000).map(str)


@pytest.mark.parametrize("argument", ["--revision=--", "--query=--", "-q--", "-q=--", "--threads=--"])
def test_two_dashes_are_not_a_value(argument: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        cli.parse(["similarity", "m", argument])
    assert f"error: argument {argument[:-2].rstrip('=')}: a value cannot be --" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_options_and_positionals_come_in_any_order(command: str) -> None:
    @given(command_lines(command))
    @settings(deadline=None)
    def check(line: tuple[list[str], dict[str, Any]]) -> None:
        arguments, expected = line
        found = vars(cli.parse([command, *arguments]))
        assert {name: found[name] for name in expected} == expected

    check()


def test_orders_that_used_to_be_errors(sample_model: Path, tmp_path: Path) -> None:
    (tmp_path / "-texts.txt").write_text("one\ntwo\n")
    files = ["--precision", "int8", "--output", "x.npy", "--", "-texts.txt"]
    assert e5onnx("embed", sample_model, *files, cwd=tmp_path).returncode == 0
    expected = Encoder(sample_model, precision="int8").encode_document(["one", "two"])
    np.testing.assert_allclose(np.load(tmp_path / "x.npy"), expected, rtol=0, atol=1e-6)
    done = e5onnx("similarity", "--query", "a", sample_model, "-d", "b", "--json")
    assert [result["query"] for result in json.loads(done.stdout)] == ["a"]


# the streams


@pytest.mark.parametrize("encoding", ["cp437", "cp1252", "ascii", "utf-16"])
def test_json_is_utf_8_and_text_never_an_error(sample_model: Path, encoding: str) -> None:
    text = "ça coûte 1 € 🙂 "
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = e5onnx("embed", sample_model, stdin=text.encode(), env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.startswith(f'{{"text": "{text}", "embedding": ['.encode())
    long = text * 20
    done = e5onnx("similarity", sample_model, "-q", text, "-d", long, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert len(done.stdout.decode(encoding).splitlines()) == 2
    done = e5onnx("similarity", sample_model, "-q", text, "-d", long, "--json", env=environment)
    assert json.loads(done.stdout.decode("utf-8"))[0]["documents"][0]["document"] == long


@posix
def test_a_locale_without_an_encoding(sample_model: Path) -> None:
    environment = {**os.environ, "LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = e5onnx("embed", sample_model, stdin="ça".encode(), env=environment)
    assert json.loads(done.stdout.decode("utf-8"))["text"] == "ça"
    done = e5onnx("similarity", sample_model, "-q", "a", "-d", "word " * 50, env=environment)
    assert (done.returncode, done.stderr) == (0, b"")
    assert done.stdout.endswith(b"word\\u2026\n")


def test_lines_end_as_on_unix_and_lone_surrogates_are_escaped(monkeypatch: pytest.MonkeyPatch) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="cp1252", newline="\r\n"))
    terminal.prepare()
    terminal.print_line("é \u0394 \udcff")
    terminal.use_utf8()
    terminal.print_line(json.dumps("é \u0394 \udcff", ensure_ascii=False))
    sys.stdout.flush()
    assert written.getvalue() == b'\xe9 \\u0394 \\udcff\n"\xc3\xa9 \xce\x94 \\udcff"\n'


@posix
def test_paths_that_are_not_text(sample_model: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"a\xff.npy")
    done = e5onnx("embed", sample_model, "--output", name, "--json", stdin=b"text", cwd=tmp_path)
    assert json.loads(done.stdout.decode("utf-8"))["output"] == name
    assert np.load(tmp_path / name).shape == (1, 384)
    assert_fails(e5onnx("info", name, cwd=tmp_path), 1, "a\\udcff.npy")
    assert_fails(e5onnx(name), 2, "a\\udcff.npy")


@posix
def test_closed_standard_output_is_an_error(sample_model: Path, tmp_path: Path) -> None:
    for arguments in (["--version"], ["info"], ["embed", sample_model], ["verify", sample_model, "--json"]):
        done = redirected(">&-", *arguments, input=b"text")
        assert_fails(done, 1, "bad file descriptor: standard output")
    # nothing is written to standard output here, so that nothing is lost, and no other file is taken for it
    done = redirected(">&- 2>&-", "embed", sample_model, "--output", tmp_path / "x.npy", input=b"word " * 300)
    assert done.returncode == 0
    np.testing.assert_allclose(
        np.load(tmp_path / "x.npy"), Encoder(sample_model).encode_document(["word " * 254]), rtol=0, atol=1e-6
    )


@posix
def test_closed_standard_error_loses_notes_alone(sample_model: Path) -> None:
    lines = b"text\n" + b"word " * 300
    expected = e5onnx("embed", sample_model, stdin=lines)
    assert b"warning" in expected.stderr
    for redirection in ("2>&-", "2>/dev/full"):
        done = redirected(redirection, "embed", sample_model, input=lines)
        assert (done.returncode, done.stdout, done.stderr) == (0, expected.stdout, b"")
        for arguments, code in ((["info", "nowhere"], 1), (["nonsense"], 2), (["embed"], 2)):
            done = redirected(redirection, *arguments)
            assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")


@posix
def test_closed_standard_input_is_an_error_where_it_is_read(sample_model: Path, tmp_path: Path) -> None:
    assert_fails(redirected("<&-", "embed", sample_model), 1, "bad file descriptor: standard input")
    assert redirected("<&-", "info", sample_model).returncode == 0
    assert redirected("<&- >&- 2>&-", "embed", sample_model).returncode == 1
    (tmp_path / "a.txt").write_text("text")
    assert redirected("<&-", "embed", sample_model, tmp_path / "a.txt").stdout.startswith(b'{"text": "text"')


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
    assert "cut 2 texts longer than the model's 256 tokens" in error
    assert "longest has 402" in error


def test_embed_can_refuse_to_cut(sample_model: Path, tmp_path: Path) -> None:
    done = e5onnx("embed", sample_model, "--truncate", "error", "--output", tmp_path / "x.npy", stdin=b"word " * 300)
    assert_fails(done, 1, "302 tokens")
    assert not any(tmp_path.iterdir())


def test_embed_names_file_and_line_of_bad_bytes(sample_model: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.txt").write_bytes(b"fine\n\xff\xfe\n")
    done = e5onnx("embed", sample_model, tmp_path / "bad.txt", "--output", tmp_path / "x.npy")
    assert_fails(done, 1, f"{tmp_path / 'bad.txt'}, line 2: it is not valid UTF-8")
    assert_fails(e5onnx("embed", sample_model, tmp_path / "none.txt"), 1, "none.txt")


def test_embed_keeps_an_old_output_if_it_fails(sample_model: Path, tmp_path: Path) -> None:
    output = tmp_path / "x.npy"
    output.write_bytes(b"precious")
    assert_fails(e5onnx("embed", sample_model, "--output", output, stdin=b"\xff"), 1, "standard input, line 1")
    assert output.read_bytes() == b"precious"
    assert_fails(e5onnx("embed", sample_model, "--output", tmp_path / "no/x.npy", stdin=b"a"), 1, "no")
    assert [path.name for path in tmp_path.iterdir()] == ["x.npy"]


@needs_dev_full
@pytest.mark.parametrize(
    ("arguments", "unbuffered"),
    [
        (["embed"], ""),
        (["embed"], "1"),
        (["similarity"], ""),
        (["verify", "--json"], "1"),
        (["info"], ""),
        (["-h"], ""),
    ],
)
def test_a_full_disk_is_one_clear_line(sample_model: Path, arguments: list[str], unbuffered: str) -> None:
    models = [] if arguments == ["-h"] else [sample_model]
    environment = {**os.environ, "PYTHONUNBUFFERED": unbuffered}
    done = redirected(">/dev/full", *arguments, *models, input=b"text\n" * 100, env=environment)
    assert done.stderr.decode() == "e5onnx: error: no space left on device: standard output\n"
    assert done.returncode == 1


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


@posix
def test_a_broken_pipe_of_standard_error_does_not_end_the_work(sample_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "e5onnx", "embed", str(sample_model), "--output", str(tmp_path / "x.npy")]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, input=b"word " * 300, stdout=subprocess.PIPE, stderr=writing, check=False)
    os.close(writing)
    assert (done.returncode, done.stdout) == (0, b"")
    assert np.load(tmp_path / "x.npy").shape == (1, 384)


@posix
def test_an_error_is_an_error_even_if_nobody_reads_the_output(sample_model: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "e5onnx", "embed", str(sample_model)]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        command, input=b"a\n\xff", stdout=writing, stderr=subprocess.PIPE, check=False, env=ENVIRONMENT
    )
    os.close(writing)
    assert done.returncode == 1
    assert done.stderr.count(b"\n") == 1
    assert b"standard input, line 2: it is not valid UTF-8" in done.stderr


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
    texts = [part for document in documents for part in ("--document", document)]
    done = e5onnx("similarity", *("-q", queries[0], "--query", queries[1]), e5_model, *texts, "--json")
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


def test_similarity_says_what_was_cut_without_advice_on_python(sample_model: Path) -> None:
    error = e5onnx("similarity", sample_model, "-q", "word " * 300, "-d", "a").stderr.decode()
    cut = "cut 1 of 1 text to the model's 256 tokens; the longest, at position 0, has 302 tokens"
    assert error == f"e5onnx: warning: {cut}\n"


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
        for part in ("onnxruntime", "available", "latency", "throughput", "exactness"):
            assert part in text
        host = json.loads(e5onnx("info", *arguments, "--json").stdout)["host"]
        assert set(host["providers"]) == {"cpu", "kernels", "openvino"}
        assert set(host["recommended"]) == {"latency", "throughput", "exactness"}


def test_verify(sample_model: Path, tmp_path: Path) -> None:
    done = e5onnx("verify", sample_model, "--json")
    assert done.returncode == 0
    assert {"onnx/model.onnx", "tokenizer.json"} <= {entry["file"] for entry in json.loads(done.stdout)["files"]}
    assert "unchanged since the export" in e5onnx("verify", sample_model).stdout.decode()
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


@pytest.mark.parametrize("command", ["embed", "similarity", "serve"])
@pytest.mark.parametrize("threads", ["0", "-1", "two", "1.5", "nan"])
def test_threads_of_the_environment_must_be_possible(sample_model: Path, command: str, threads: str) -> None:
    pytest.importorskip("uvicorn" if command == "serve" else "e5onnx")
    done = e5onnx(command, sample_model, stdin=b"a", env={**os.environ, "E5ONNX_THREADS": threads})
    assert_fails(done, 1, "E5ONNX_THREADS", threads)


@pytest.mark.parametrize("lines", ["", "except KeyboardInterrupt as e: raise ImportError('as pybind11 does') from e"])
def test_an_interrupt_while_packages_are_imported_ends_quietly(sample_model: Path, tmp_path: Path, lines: str) -> None:
    # a process started in the background inherits that interrupts are ignored
    begin = "import signal\nsignal.signal(signal.SIGINT, signal.default_int_handler)"
    lines = f"{begin}\ntry: signal.raise_signal(signal.SIGINT)\n{lines or 'finally: pass'}"
    (tmp_path / "numpy.py").write_text(lines)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    for command in ("embed", "similarity", "serve"):
        done = e5onnx(command, sample_model, env=environment)
        assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")


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
