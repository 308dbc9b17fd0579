"""How a server answers under open-loop load, against the same model in process, and against infinity.

Two kinds of requests to `/v1/embeddings`: one short question each, and 32 passages each. First the capacity: requests
a second of four callers that wait for their replies, in turns with the encoder in this process on the same texts. Then
requests arrive at random (Poisson) at a share of that capacity, whether or not earlier ones were answered; latency
counts from the moment a request should have been sent. The encoder in this process gets the same texts at the same
moments, one after the other, where it can keep up. What asks runs on the same processors, and takes some of their time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import selectors
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import chain, cycle, islice
from typing import Any

import numpy as np

from e5onnx import Encoder

from .environments import environment
from .forms import SHAPED, form, log_of, offline
from .peers import ENCODERS, THREADS, e5onnx_model
from .report import parser, write
from .texts import queries, require_data, short_passages

_SERVERS = (*ENCODERS, "infinity")
_PASSAGES = 32
_CALLERS = 4
_LIMITS = ("--max-waiting-tokens", "16384", "--max-waiting-requests", "128")
"""A few seconds of work on a small machine: what is beyond it is refused at once."""
Kind = str


def main() -> None:
    """Run as a program."""
    options = parser("server", __doc__, rounds=3)
    options.add_argument("--servers", nargs="+", choices=_SERVERS, default=_SERVERS)
    options.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 0.8, 1.2], help="of capacity")
    options.add_argument("--seconds", type=float, default=10.0, help="of questions at every share; passages: 4 times")
    arguments = options.parse_args()
    require_data()
    passages = short_passages(256)
    requests: dict[Kind, list[list[str]]] = {
        "question": [[text] for text in queries(256)],
        "passages": [passages[i : i + _PASSAGES] for i in range(0, len(passages), _PASSAGES)],
    }
    seconds = {"question": arguments.seconds, "passages": 4 * arguments.seconds}
    results = {}
    for name in arguments.servers:
        with serving(name, *(() if name == "infinity" else _LIMITS)) as (_, port, model):
            sys.stderr.write(f"{name} listens\n")
            loads = (
                _Load(name, kind, port, _bodies(kind, model, texts), texts, seconds[kind])
                for kind, texts in requests.items()
            )
            results[name] = {load.kind: _run(load.run(arguments.rounds, arguments.shares)) for load in loads}
    content = {"limits": _LIMITS, "seconds": seconds, "passages_of_a_request": _PASSAGES, "servers": results}
    write(arguments.output, {"benchmark": "server", **content})


def _run(load: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any]:
    """Run it on a loop whose timers are exact: that of epoll is late by up to a millisecond."""
    with asyncio.Runner(loop_factory=lambda: asyncio.SelectorEventLoop(selectors.SelectSelector())) as runner:
        return runner.run(load)


def _bodies(kind: Kind, model: str, requests: Sequence[Sequence[str]]) -> list[bytes]:
    prefix = {"question": "query: ", "passages": "passage: "}[kind]  # written out: infinity knows no roles
    return [json.dumps({"model": model, "input": [prefix + text for text in texts]}).encode() for texts in requests]


@contextmanager
def serving(name: str, *options: str) -> Iterator[tuple[subprocess.Popen[bytes], int, str]]:
    """Start a server, and yield it, its port and the name of its model when it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    if name == "infinity":
        model = form("", SHAPED)
        command = [str(environment("infinity").with_name("infinity_emb")), "v2", "--model-id", str(model)]
        command += ["--engine", "torch", "--device", "cpu", "--dtype", "float32", "--no-bettertransformer"]
        command += ["--url-prefix", "/v1", "--served-model-name", "e5", "--host", "127.0.0.1", "--port", str(port)]
        served = "e5"
    else:
        model, served = e5onnx_model(), "e5-small-v2"
        command = [str(environment("server")), "-m", "e5onnx", "serve", str(model), "--port", str(port)]
        precision, provider = ENCODERS[name]
        command += ["--precision", precision, "--provider", provider, "--threads", str(THREADS), *options]
    with log_of(f"server-{name}").open("w") as log:
        # S603: fixed commands on paths of the harness
        process = subprocess.Popen(command, stdout=log, stderr=log, env=offline())  # noqa: S603
    try:
        until = time.monotonic() + 120
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{name} does not start; see {log_of(f'server-{name}')}")
            time.sleep(0.1)
        yield process, port, served
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
        return b" 200 " in connection.recv(100)
    return False


class _Load:
    """One kind of requests to one server."""

    def __init__(
        self, name: str, kind: Kind, port: int, bodies: Sequence[bytes], texts: Sequence[Sequence[str]], seconds: float
    ) -> None:
        self.kind = kind
        self._texts, self._bodies, self._seconds = texts, bodies, seconds
        self._client = Client(port)
        self._encoder = None
        if name in ENCODERS:
            precision, provider = ENCODERS[name]
            self._encoder = Encoder(e5onnx_model(), precision=precision, provider=provider, threads=THREADS)

    async def run(self, rounds: int, shares: Sequence[float]) -> dict[str, Any]:
        """Return capacity, and what came back at each share of it."""
        async with self._client.open():
            for texts, body in zip(self._texts[:8], self._bodies[:8], strict=True):
                self._encode(texts)
                await self._client.post(body)
            in_process, served = [], []
            for _ in range(rounds):
                in_process.append(self._rate_in_process())
                served.append(await self._rate())
            result: dict[str, Any] = {"capacity_requests_per_second": statistics.median(served)}
            if self._encoder is not None:
                result["in_process_requests_per_second"] = statistics.median(in_process)
                shares_reached = [rate / alone for rate, alone in zip(served, in_process, strict=True)]
                result["share_of_in_process"] = statistics.median(shares_reached)
            levels = []
            for share in shares:
                rate = share * statistics.median(served)
                sys.stderr.write(f"  {self.kind}: {share:.0%}, {rate:.1f} requests/s\n")
                moments = list(_moments(rate, self._seconds))
                level: dict[str, Any] = {"share": share, "requests_per_second": rate}
                if self._encoder is not None and share < 1:
                    level["in_process_milliseconds"] = self._arrivals_in_process(moments)
                levels.append(level | await self._arrivals(moments))
                await asyncio.sleep(1)
        return {**result, "levels": levels}

    def _encode(self, texts: Sequence[str]) -> None:
        if self._encoder is not None:
            (self._encoder.encode_query if self.kind == "question" else self._encoder.encode_document)(texts)

    def _rate_in_process(self) -> float:
        start = time.perf_counter()
        for texts in self._texts:
            self._encode(texts)
        return len(self._texts) / (time.perf_counter() - start)

    async def _rate(self) -> float:
        """Return the requests a second of callers that wait for their replies."""
        waiting = chain(self._bodies, self._bodies)
        start = time.perf_counter()

        async def caller() -> None:
            for body in waiting:
                await self._client.post(body)

        await asyncio.gather(*(caller() for _ in range(_CALLERS)))
        return 2 * len(self._bodies) / (time.perf_counter() - start)

    def _arrivals_in_process(self, moments: Sequence[float]) -> dict[str, float]:
        latencies = []
        start = time.perf_counter()
        for moment, texts in zip(moments, cycle(self._texts), strict=False):
            time.sleep(max(0.0, start + moment - time.perf_counter()))
            self._encode(texts)
            latencies.append(time.perf_counter() - start - moment)
        return _percentiles(latencies)

    async def _arrivals(self, moments: Sequence[float]) -> dict[str, Any]:
        """Send requests at these moments, and return how they were answered."""
        statuses: Counter[int] = Counter()
        latencies: dict[int, list[float]] = {}
        await asyncio.sleep(0.1)  # to hear of connections that were closed while this loop stood still
        start = time.perf_counter()

        async def request(moment: float, body: bytes) -> None:
            status = await self._client.post(body)
            statuses[status] += 1
            latencies.setdefault(status, []).append(time.perf_counter() - start - moment)

        tasks = []
        for moment, body in zip(moments, islice(cycle(self._bodies), len(moments)), strict=True):
            await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
            tasks.append(asyncio.create_task(request(moment, body)))
        await asyncio.gather(*tasks)
        return {
            "requests": len(moments),
            "statuses": {str(status): number for status, number in sorted(statuses.items())},
            "answered_per_second": statuses[200] / (time.perf_counter() - start),
            "milliseconds": {str(status): _percentiles(seconds) for status, seconds in sorted(latencies.items())},
        }


def _moments(rate: float, seconds: float) -> Iterator[float]:
    """Yield the seconds at which requests arrive."""
    generator = random.Random(0)  # noqa: S311 - no secret
    moment = generator.expovariate(rate)
    while moment < seconds:
        yield moment
        moment += generator.expovariate(rate)


class Client:
    """HTTP/1.1 with connections kept alive, as little of it as the load needs."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        """Close the connections at the end."""
        yield
        for _, writer in self._idle:
            writer.close()

    async def post(self, body: bytes) -> int:
        """Return the status of the reply, 0 where there was none."""
        try:
            # a connection that the server hung up on meanwhile is no loss
            self._idle = [each for each in self._idle if not each[0].at_eof()]
            reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
            head = "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
            writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
            answer = (await reader.readuntil(b"\r\n\r\n")).lower()
            length = int(answer.split(b"content-length:")[1].split(b"\r\n")[0])
            await reader.readexactly(length)
        except (OSError, asyncio.IncompleteReadError):
            return 0
        self._idle.append((reader, writer))
        return int(answer.split(b" ")[1])


def _percentiles(seconds: Sequence[float]) -> dict[str, float]:
    """Return percentiles in milliseconds."""
    return {f"p{share}": float(np.percentile(seconds, share) * 1000) for share in (50, 95, 99)}


if __name__ == "__main__":
    main()
