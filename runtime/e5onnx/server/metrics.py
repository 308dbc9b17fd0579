"""The metrics at `/metrics`, for Prometheus."""

from __future__ import annotations

from typing import get_args

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest

from .. import __version__
from ..encoder import Encoder
from .protocol import Ended
from .scheduler import Run, Scheduler

_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
_TOKENS = (16, 32, 64, 128, 256, 512, 1024)

# a second time series beside every counter
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # it has no annotations


class Metrics:
    """The metrics of one server. Padding tokens over padding and other tokens give the share of padding."""

    media_type = "text/plain; version=0.0.4"

    def __init__(self, encoder: Encoder, scheduler: Scheduler) -> None:
        """Register the metrics; every scrape asks the scheduler what waits."""
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        about = {"version": __version__, "model": encoder.manifest.checkpoint, "precision": encoder.precision}
        info = Gauge("e5onnx_model_info", "The model; the value is 1", [*about, "fingerprint"], registry=registry)
        info.labels(*about.values(), encoder.fingerprint).set(1)
        self.requests = Counter("e5onnx_requests", "Requests answered", ["path", "status"], registry=registry)
        self.in_flight = Gauge("e5onnx_requests_in_flight", "Requests being answered", registry=registry)
        self.seconds = Histogram(
            "e5onnx_request_seconds", "Seconds to answer a request", ["path"], buckets=_SECONDS, registry=registry
        )
        self.ended = Counter(
            "e5onnx_ended_connections", "Connections that the server ended early", ["why"], registry=registry
        )
        for why in get_args(Ended):
            self.ended.labels(why)
        self.texts = Counter("e5onnx_texts", "Texts embedded for requests", registry=registry)
        self.truncated = Counter("e5onnx_truncated_texts", "Texts cut at the model's maximum", registry=registry)
        self._tokens = Counter("e5onnx_tokens", "Tokens that the model ran on, without padding", registry=registry)
        self._padding = Counter("e5onnx_padding_tokens", "Padding tokens that the model ran on", registry=registry)
        self._failures = Counter("e5onnx_run_failures", "Runs that failed", registry=registry)
        self._run_seconds = Histogram("e5onnx_run_seconds", "Seconds of a run", buckets=_SECONDS, registry=registry)
        self._run_texts = Histogram("e5onnx_batch_texts", "Texts in a run", buckets=_SIZES, registry=registry)
        self._run_tokens = Histogram("e5onnx_batch_tokens", "Tokens in a run", buckets=_TOKENS, registry=registry)
        self._queue_seconds = Histogram(
            "e5onnx_queue_seconds", "Seconds before the first run of a request", buckets=_SECONDS, registry=registry
        )
        requests = Gauge("e5onnx_waiting_requests", "Requests that wait", registry=registry)
        requests.set_function(lambda: scheduler.waiting_requests)
        tokens = Gauge("e5onnx_waiting_tokens", "Tokens that wait", registry=registry)
        tokens.set_function(lambda: scheduler.waiting_tokens)

    def observe(self, run: Run) -> None:
        """Count a run of the model."""
        if run.failed:
            self._failures.inc()
            return
        self._tokens.inc(run.tokens)
        self._padding.inc(run.padding)
        self._run_seconds.observe(run.seconds)
        self._run_texts.observe(run.texts)
        self._run_tokens.observe(run.tokens)
        for seconds in run.waited:
            self._queue_seconds.observe(seconds)

    def page(self) -> bytes:
        """Return the text that Prometheus reads."""
        return generate_latest(self._registry)
