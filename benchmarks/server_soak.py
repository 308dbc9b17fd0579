"""Whether a server's memory stays flat over an hour of all kinds of requests, good and bad ones.

Memory is that of the server's process, read a hundred times; what the first tenth of the time needed at most is what
the rest is compared with.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from .report import parser, write
from .server import Client, serving
from .soak import random_text, resident_megabytes

_CALLERS = 4
_STATUSES = {"good": {200}, "bad": {400, 413}, "gone": {200, 0}}


def main() -> None:
    """Run as a program."""
    options = parser("server_soak", __doc__, rounds=1)
    options.add_argument("--minutes", type=float, default=60.0, help="how long (default: %(default)s)")
    options.add_argument("--server", choices=["e5onnx", "e5onnx-int8"], default="e5onnx-int8")
    arguments = options.parse_args()
    with serving(arguments.server) as (process, port, _):
        content = asyncio.run(_soak(port, Path(f"/proc/{process.pid}/status"), arguments.minutes * 60))
    write(arguments.output, {"benchmark": "server_soak", "server": arguments.server, "callers": _CALLERS, **content})


async def _soak(port: int, status: Path, seconds: float) -> dict[str, object]:
    statuses: Counter[str] = Counter()
    samples: list[tuple[float, int, float]] = []
    start = time.perf_counter()
    client = Client(port)

    async def caller(number: int) -> None:
        for kind, body in _requests(random.Random(number)):  # noqa: S311 - no secret
            if time.perf_counter() - start > seconds:
                return
            if kind == "gone":
                _, writer = await asyncio.open_connection("127.0.0.1", port)
                head = "POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                writer.write(f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body)
                await asyncio.sleep(0.05)
                writer.close()
                statuses["gone"] += 1
                continue
            answer = await client.post(body)
            if answer not in _STATUSES[kind]:
                raise RuntimeError(f"a {kind} request was answered by {answer}: {body[:200]!r}")
            statuses[str(answer)] += 1

    async def watch() -> None:
        for sample in count():
            wait = start + sample * seconds / 100 - time.perf_counter()
            if wait > seconds / 100 or sample > 100:
                return
            await asyncio.sleep(max(0.0, wait))
            samples.append((time.perf_counter() - start, sum(statuses.values()), resident_megabytes(status)))
            sys.stderr.write(f"{samples[-1][0]:8.1f} s, {samples[-1][1]:>8} requests, {samples[-1][2]:.1f} MB\n")

    async with client.open():
        await asyncio.gather(watch(), *(caller(number) for number in range(_CALLERS)))
    return {
        "seconds": samples[-1][0],
        "requests": dict(statuses),
        "megabytes_after_a_tenth": max(megabytes for _, _, megabytes in samples[:11]),
        "megabytes_at_most": max(megabytes for _, _, megabytes in samples),
        "megabytes_at_the_end": samples[-1][2],
        "samples": samples,
    }


def _requests(generator: random.Random) -> Iterator[tuple[str, bytes]]:
    """Yield requests without end: mostly good ones, of one or several texts."""
    for number in count():
        texts = [random_text(generator) for _ in range(1 if number % 4 else 8)]
        if number % 20 == 5:
            yield "bad", generator.choice([b"{", b'{"input": NaN}', b'{"input": [1]}', b'{"input": "\\ud800"}'])
        elif number % 20 == 15:
            yield "gone", json.dumps({"input": texts * 8}).encode()
        else:
            encoding = generator.choice(["float", "base64"])
            yield "good", json.dumps({"input": texts, "encoding_format": encoding, "input_type": "query"}).encode()


if __name__ == "__main__":
    main()
