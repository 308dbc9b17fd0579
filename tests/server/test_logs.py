"""The log's lines."""

from __future__ import annotations

import io
import json
import logging
import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path

import httpx
import pytest

from e5onnx import Encoder
from e5onnx.server.logs import _Line
from serving import Server, connect


def test_a_line_names_an_error_and_quotes_nothing_of_it() -> None:
    try:
        raise ValueError("a secret text")
    except ValueError:
        logger = logging.getLogger("uvicorn.error")
        record = logger.makeRecord(logger.name, logging.ERROR, __file__, 1, "failed: %s", ("app\n",), sys.exc_info())
    line = json.loads(_Line("json").format(record))
    assert datetime.fromisoformat(line.pop("time")).timestamp() == pytest.approx(record.created, abs=0.002)
    assert line == {"level": "error", "event": "server", "message": "failed: app\n", "error": "ValueError"}


def test_the_log_has_a_line_a_request_and_no_text(http: httpx.Client, server: Server, encoder: Encoder) -> None:
    http.post("/v1/embeddings", json={"input": "a secret text"}, headers={"x-request-id": "secretly-1"})
    http.post("/embed", json={"inputs": 1, "another secret": 2}, headers={"x-request-id": "secretly-2"})
    http.post("/v1/embeddings", json={"input": ["word " * 600, ""]}, headers={"x-request-id": "cut-1"})
    cut = server.logged("cut-1")
    assert (cut["texts"], cut["tokens"]) == (2, 512 + encoder.count_tokens("passage: "))
    last = [server.logged(f"secretly-{number}") for number in (1, 2)]
    assert [(line["path"], line["status"]) for line in last] == [("/v1/embeddings", 200), ("/embed", 422)]
    assert not any("secret" in str(line[name]) for line in last for name in line if name != "id")
    assert "secret text" not in server.log_file.read_text()
    assert "another secret" not in server.log_file.read_text()


def test_requests_have_an_id(http: httpx.Client, server: Server) -> None:
    reply = http.post("/v1/embeddings", json={"input": ["a", "b"]}, headers={"x-request-id": "mine-1"})
    assert reply.headers["x-request-id"] == "mine-1"
    other = http.get("/nothing", headers={"x-request-id": 'no"line'}).headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", other)
    mine, others = server.logged("mine-1"), server.logged(other)
    assert (mine["path"], mine["status"], mine["texts"]) == ("/v1/embeddings", 200, 2)
    assert (others["path"], others["status"]) == ("other", 404)


@pytest.mark.parametrize(
    "value", ["\x1b[2J", "\r\n2026 error forged", "\x9b0m", "é", "a b", 'a"', "a=b", "", "\u202e", "\x7f"]
)
def test_text_quotes_and_escapes_what_could_be_misread(value: str) -> None:
    record = logging.makeLogRecord({"msg": {"event": "request", "id": value}, "levelname": "INFO"})
    line = _Line("text").format(record)
    assert line.isascii()
    assert line.isprintable()
    assert line.endswith(f" info request id={value!a}")
    record = logging.makeLogRecord({"msg": "failed: %s", "args": (value,), "levelname": "ERROR"})
    assert _Line("text").format(record).endswith(f" error server message={'failed: ' + value!a}")


@pytest.mark.skipif(sys.platform == "win32", reason="pseudo-terminals as on POSIX")
@pytest.mark.parametrize("format", ["text", "json"])
def test_on_a_terminal_the_log_is_text_unless_asked_otherwise(tiny_model: Path, format: str) -> None:
    options = [] if format == "text" else ["--log-format", format]
    command = [
        sys.executable,
        "-m",
        "e5onnx",
        "serve",
        str(tiny_model),
        "--port",
        "0",
        "--drain-seconds",
        "0",
        *options,
    ]
    ours, terminal = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as reader:
        process = subprocess.Popen(command, stderr=terminal, env={**os.environ, "E5ONNX_API_KEY": "secret-key"})
        os.close(terminal)
        try:
            first = reader.readline().decode()
            url = first.split()[0] if format == "text" else json.loads(first)["url"]
            assert httpx.get(f"{url}/health").status_code == 200  # at once
            for head in (
                b"GET /\x1b[2J HTTP/1.1\r\nHost: localhost\r\n",
                b"GET /%1b%5b2J?secret-query HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: %1b]0;\r\n",
                b"GET /\xe2\x80\xae HTTP/1.1\r\nHost: \x1b[31m\r\nX-Request-Id: \x1b]0;title\x07\r\n",
                b"G\x1bT / HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a\x9b\r\n",
                b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Request-Id: a\xc2\x9b2J\r\n",
            ):
                with connect(url) as hostile:
                    hostile.sendall(head + b"Connection: close\r\n\r\n")
                    while hostile.recv(2**16):
                        pass
            headers = {"x-request-id": "mine-1", "authorization": "Bearer secret-key"}
            assert httpx.post(f"{url}/embed", json={"inputs": "a secret text"}, headers=headers).status_code == 200
            process.send_signal(signal.SIGTERM)
            lines = [first.strip(), *(line.decode().strip() for line in _until_the_end(reader))]
        finally:
            process.kill()
            process.wait()
    assert not any("secret" in line or not line.isascii() or not line.isprintable() for line in lines)
    facts = [_facts(line) if format == "text" else json.loads(line) for line in lines]
    assert [facts[0]["event"], facts[-1]["event"]] == ["listening", "ended"]
    mine = next(line for line in facts if line.get("id") == "mine-1")
    assert datetime.fromisoformat(str(mine.pop("time"))).tzinfo is not None
    assert float(str(mine.pop("milliseconds"))) > 0
    numbers = {"status": 200, "texts": 1, "tokens": 5}
    wanted = {"level": "info", "event": "request", "id": "mine-1", "method": "POST", "path": "/embed", **numbers}
    assert {name: str(value) for name, value in mine.items()} == {name: str(value) for name, value in wanted.items()}


def _facts(line: str) -> dict[str, object]:
    words = shlex.split(line)
    url = {"url": words.pop(0)} if line.startswith("http://") else {}
    date, time, level, event, *rest = words
    pairs = (word.partition("=") for word in rest)
    return {
        "time": f"{date} {time}",
        "level": level,
        "event": event,
        **url,
        **{name: value for name, _, value in pairs},
    }


def _until_the_end(reader: io.RawIOBase) -> Iterator[bytes]:
    try:
        while line := reader.readline():
            yield line
    except OSError:  # how Linux reports the end of a terminal
        return
