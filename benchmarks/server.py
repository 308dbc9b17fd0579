"""How a server answers under open-loop load, against the same model in process, and against infinity.

Two kinds of requests to `/v1/embeddings`: one short question each, and 32 passages each. First the capacity: requests
a second of four callers that wait for their replies. Then requests arrive at random (Poisson) at a share of that
capacity, whether or not earlier ones were answered; latency counts from the moment a request should have been sent.
What asks runs in a process of its own on the same processors, and takes some of their time.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from itertools import cycle, islice
from typing import Any

import numpy as np

from .environments import environment
from .forms import SHAPED, form, log_of, offline
from .peers import THREADS, installed
from .report import parser, write
from .texts import queries, require_data, short_passages

_SERVERS = ("e5onnx", "e5onnx-int8", "infinity")
_PASSAGES = 32
_CALLERS = 4
Kind = str


def main() -> None:
    """Run as a program."""
    options = parser("server", __doc__, rounds=1)
    options.add_argument("--servers", nargs="+", choices=_SERVERS, default=_SERVERS)
    options.add_argument("--shares", type=float, nargs="+", default=[0.25, 0.5, 0.8, 1.2], help="of capacity")
    options.add_argument("--seconds", type=float, default=15.0, help="of load at every share (default: %(default)s)")
    arguments = options.parse_args()
    require_data()
    passages = short_passages(256)
    requests: dict[Kind, list[list[str]]] = {
        "question": [[text] for text in queries(256)],
        "passages": [passages[i : i + _PASSAGES] for i in range(0, len(passages), _PASSAGES)],
    }
    results = {}
    for name in arguments.servers:
        in_process = _in_process(name, requests) if name != "infinity" else None
        with _serving(name) as (port, model):
            sys.stderr.write(f"{name} listens\n")
            results[name] = {
                "in_process": in_process,
                **{
                    kind: asyncio.run(_load(port, _bodies(kind, model, texts), arguments.shares, arguments.seconds))
                    for kind, texts in requests.items()
                },
            }
    content = {"seconds": arguments.seconds, "passages_of_a_request": _PASSAGES, "servers": results}
    write(arguments.output, {"benchmark": "server", **content})


def _in_process(name: str, requests: dict[Kind, list[list[str]]]) -> dict[str, Any]:
    """Return what the encoder does without a server: milliseconds of a question, passages a second."""
    with installed(name).launch() as worker:
        worker.receive()
        questions = [request[0] for request in requests["question"]]
        worker.encode(questions[:50], "query", each=True)
        seconds = worker.encode(questions, "query", each=True).seconds
        worker.encode(requests["passages"][0], "document")
        elapsed = sum(worker.encode(request, "document").elapsed for request in requests["passages"])
        texts = sum(map(len, requests["passages"]))
        return {"question_milliseconds": _percentiles(seconds), "passages_per_second": texts / elapsed}


def _bodies(kind: Kind, model: str, requests: Sequence[Sequence[str]]) -> list[bytes]:
    prefix = {"question": "query: ", "passages": "passage: "}[kind]  # written out: infinity knows no roles
    return [json.dumps({"model": model, "input": [prefix + text for text in texts]}).encode() for texts in requests]


@contextmanager
def _serving(name: str) -> Iterator[tuple[int, str]]:
    """Start a server, and yield its port and the name of its model when it answers."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
    if name == "infinity":
        model = form("onnx", SHAPED)
        command = [str(environment("infinity").with_name("infinity_emb")), "v2", "--model-id", str(model)]
        command += ["--engine", "torch", "--device", "cpu", "--dtype", "float32", "--no-bettertransformer"]
        command += ["--url-prefix", "/v1", "--served-model-name", "e5", "--host", "127.0.0.1", "--port", str(port)]
        served = "e5"
    else:
        model, served = form("e5onnx", SHAPED), "e5-small-v2"
        command = [str(environment("server")), "-m", "e5onnx", "serve", str(model), "--port", str(port)]
        command += ["--precision", "int8" if name.endswith("int8") else "fp32", "--threads", str(THREADS)]
    with log_of(f"server-{name}").open("w") as log:
        # S603: fixed commands on paths of the harness
        process = subprocess.Popen(command, stdout=log, stderr=log, env=offline())  # noqa: S603
    try:
        until = time.monotonic() + 120
        while not _answers(port):
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"{name} does not start; see {log_of(f'server-{name}')}")
            time.sleep(0.1)
        yield port, served
    finally:
        process.terminate()
        process.wait()


def _answers(port: int) -> bool:
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        return b" 200 " in connection.recv(100)
    return False


async def _load(port: int, bodies: Sequence[bytes], shares: Sequence[float], seconds: float) -> dict[str, Any]:
    client = _Client(port)
    async with client.open():
        for body in bodies[:8]:
            await client.post(body)
        capacity = await _capacity(client, bodies, seconds / 2)
        levels = []
        for share in shares:
            sys.stderr.write(f"  {share:.0%} of {capacity:.1f} requests/s\n")
            levels.append({"share": share, **await _arrivals(client, bodies, share * capacity, seconds)})
            await asyncio.sleep(1)
    return {"capacity_requests_per_second": capacity, "levels": levels}


async def _capacity(client: _Client, bodies: Sequence[bytes], seconds: float) -> float:
    """Return the requests a second of callers that wait for their replies."""
    waiting = cycle(bodies)
    start, done = time.perf_counter(), 0

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() - start < seconds:
            await client.post(next(waiting))
            done += 1

    await asyncio.gather(*(caller() for _ in range(_CALLERS)))
    return done / (time.perf_counter() - start)


async def _arrivals(client: _Client, bodies: Sequence[bytes], rate: float, seconds: float) -> dict[str, Any]:
    """Send requests at random moments for so long, and return how they were answered."""
    generator = random.Random(0)  # noqa: S311 - no secret
    moments: list[float] = []
    moment = generator.expovariate(rate)
    while moment < seconds:
        moments.append(moment)
        moment += generator.expovariate(rate)
    statuses: Counter[int] = Counter()
    latencies: list[float] = []
    start = time.perf_counter()

    async def request(moment: float, body: bytes) -> None:
        status = await client.post(body)
        statuses[status] += 1
        if status == 200:
            latencies.append(time.perf_counter() - start - moment)

    tasks = []
    for moment, body in zip(moments, islice(cycle(bodies), len(moments)), strict=True):
        await asyncio.sleep(max(0.0, start + moment - time.perf_counter()))
        tasks.append(asyncio.create_task(request(moment, body)))
    await asyncio.gather(*tasks)
    return {
        "requests": len(moments),
        "statuses": {str(status): number for status, number in sorted(statuses.items())},
        "answered_per_second": statuses[200] / (time.perf_counter() - start),
        "latency_milliseconds": _percentiles(latencies) if latencies else None,
    }


class _Client:
    """HTTP/1.1 with connections kept alive, as little of it as the load needs."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._idle: list[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = []

    @asynccontextmanager
    async def open(self) -> AsyncIterator[None]:
        yield
        for _, writer in self._idle:
            writer.close()

    async def post(self, body: bytes) -> int:
        """Return the status of the reply, 0 where there was none."""
        try:
            reader, writer = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self._port)
            head = "POST /v1/embeddings HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
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
