"""A server in a process of its own, on a free port of the loopback interface."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


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
        until = time.monotonic() + 60
        while time.monotonic() < until:
            for line in self.log():
                if (line["event"], line.get("id")) == ("request", identity):
                    return line
            time.sleep(0.02)
        raise AssertionError(f"there is no line of {identity}")


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
