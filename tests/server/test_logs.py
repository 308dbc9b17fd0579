"""The log's lines."""

from __future__ import annotations

import json
import logging
import re
import sys
from datetime import datetime

import httpx
import pytest

from e5onnx import Encoder
from e5onnx.server.logs import _Line
from serving import Server


def test_a_line_names_an_error_and_quotes_nothing_of_it() -> None:
    try:
        raise ValueError("a secret text")
    except ValueError:
        logger = logging.getLogger("uvicorn.error")
        record = logger.makeRecord(logger.name, logging.ERROR, __file__, 1, "failed: %s", ("app\n",), sys.exc_info())
    line = json.loads(_Line().format(record))
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
