"""Metrics: what is counted."""

from __future__ import annotations

from pathlib import Path

import httpx

from e5onnx import Encoder
from e5onnx.server.app import Service
from e5onnx.server.options import ServerOptions
from serving import answers


def test_runs_are_counted_with_their_padding(tiny_model: Path) -> None:
    service = Service(Encoder(tiny_model, threads=1), ServerOptions())
    assert answers(service, ("/embed", {"inputs": ["a", "a b c"]}))[0].status_code == 200  # 3 and 5 tokens
    service.close()
    page = service.metrics.page().decode()
    for line in (
        "texts_total 2",
        "tokens_total 8",
        "padding_tokens_total 2",
        "run_seconds_count 1",
        "batch_texts_sum 2",
    ):
        assert f"\ne5onnx_{line}.0\n" in page
    assert "\ne5onnx_batch_tokens_sum 8.0\n" in page
    assert "\ne5onnx_queue_seconds_count 1.0\n" in page


def test_info_health_and_metrics(http: httpx.Client, encoder: Encoder) -> None:
    info = http.get("/info").json()
    assert (info["dimension"], info["max_input_length"]) == (384, 512)
    assert info["fingerprint"] == encoder.fingerprint
    assert http.get("/health").json() == {"status": "ok"}

    def metric(name: str) -> float:
        lines = http.get("/metrics").text.splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(name))

    names = ("e5onnx_texts_total", "e5onnx_truncated_texts_total", "e5onnx_tokens_total", "e5onnx_batch_texts_sum")
    before = {name: metric(name) for name in names}
    reply = http.post("/v1/embeddings", json={"input": ["word " * 600, "short"]}).json()
    assert reply["truncated"] == 1
    after = {name: metric(name) for name in names}
    tokens = 512 + encoder.count_tokens("passage: short")
    assert [after[name] - before[name] for name in names] == [2, 1, tokens, 2]
    assert metric('e5onnx_requests_total{path="/v1/embeddings",status="200"}') >= 1
    assert (metric("e5onnx_waiting_tokens"), metric("e5onnx_waiting_requests")) == (0, 0)
