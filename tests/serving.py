"""The server: in a process of its own, or in this one with and without a socket."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import uvicorn

from e5onnx.server.app import Service
from e5onnx.server.protocol import Protocol


@dataclass
class Server:
    """A running server: its process, where it listens, and the file it logs to."""

    process: subprocess.Popen[bytes]
    url: str
    log_file: Path

    def log(self) -> list[dict[str, object]]:
        """Return what it logged so far."""
        return [json.loads(line) for line in self.log_file.read_text().splitlines()]

    def logged(self, identity: str) -> dict[str, object]:
        """Return the line of a request, which may come after its reply."""
        wait_for(lambda: any(line.get("id") == identity for line in self.log()))
        return next(line for line in self.log() if line.get("id") == identity)


@contextmanager
def serving(model: Path, log_file: Path, *options: str, **environment: str) -> Iterator[Server]:
    """Start `e5onnx serve` and wait until it listens; it is killed if it still runs at the end."""
    command = [sys.executable, "-m", "e5onnx", "serve", str(model), "--port", "0", *options]
    with log_file.open("w") as log:
        process = subprocess.Popen(command, stderr=log, env={**os.environ, **environment})
    server = Server(process, "", log_file)
    try:
        while "\n" not in log_file.read_text():
            assert process.poll() is None, log_file.read_text()
            time.sleep(0.02)
        server.url = str(server.log()[0]["url"])
        yield server
    finally:
        process.kill()
        process.wait()


def answers(service: Service, *requests: tuple[str, Any], **headers: str) -> list[httpx.Response]:
    """Send requests at the same time, without a socket: POST, or GET where there is no content."""

    async def send() -> list[httpx.Response]:
        transport = httpx.ASGITransport(service.app())
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", headers=headers) as client:
            calls = (client.post(path, json=content) if content else client.get(path) for path, content in requests)
            return await asyncio.gather(*calls)

    return asyncio.run(send())


@contextmanager
def running(app: Any, ended: list[str], *, send_buffer: int | None = None) -> Iterator[str]:
    """Serve an application in a thread and yield its URL; `ended` gets the reasons why connections were ended."""
    http: Any = partial(Protocol, on_ended=ended.append)
    config = uvicorn.Config(app, http=http, loop="asyncio", lifespan="off", log_config=None, timeout_keep_alive=60)
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        if send_buffer is not None:
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        try:
            yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        finally:
            server.should_exit = True
            thread.join()


def wait_for(condition: Callable[[], object]) -> None:
    """Wait until a condition holds."""
    until = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < until
        time.sleep(0.02)


def connect(url: str) -> socket.socket:
    """Open a connection to a server."""
    address = httpx.URL(url)
    return socket.create_connection((address.host, address.port or 80), timeout=60)
