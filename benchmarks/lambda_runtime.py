"""AWS Lambda's runtime API on the loopback interface, and a function's process that AWS' own client serves there.

After AWS' documentation, "Using the Lambda runtime API": the client asks for the next invocation, and posts its
response or its error. One invocation at a time.
"""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

_API = "/2018-06-01/runtime"
_TIMEOUT = 120.0


class FunctionError(RuntimeError):
    """The function raised an error, or could not be initialised; the message is what it reported, as JSON."""


@dataclass
class LambdaFunction:
    """A function's container: its process and the invocations on their way."""

    process: subprocess.Popen[bytes]
    events: queue.Queue[bytes] = field(default_factory=queue.Queue)
    replies: queue.Queue[tuple[bool, bytes]] = field(default_factory=queue.Queue)

    def invoke(self, event: Any) -> Any:
        """Return the function's reply; raise :class:`FunctionError` for its error."""
        self.events.put(json.dumps(event).encode())
        good, body = self.replies.get(timeout=_TIMEOUT)
        if not good:
            raise FunctionError(body.decode())
        return json.loads(body)


@contextmanager
def lambda_function(code: Path, environment: dict[str, str], python: str = sys.executable) -> Iterator[LambdaFunction]:
    """Start `awslambdaric` on the unzipped code, as Lambda does; it ends with the context."""
    events: queue.Queue[bytes] = queue.Queue()
    replies: queue.Queue[tuple[bool, bytes]] = queue.Queue()

    class RuntimeApi(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True
        wbufsize = -1  # head and body in one packet

        def do_GET(self) -> None:
            self._send(200, events.get(), {"Lambda-Runtime-Aws-Request-Id": "1", **_deadline()})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"])) if self.headers["Content-Length"] else b""
            if self.headers["Transfer-Encoding"] == "chunked":
                while size := int(self.rfile.readline(), 16):
                    body += self.rfile.read(size)
                    self.rfile.readline()
                self.rfile.readline()
            self._send(202, b'{"status": "OK"}', {})
            replies.put((self.path == f"{_API}/invocation/1/response", body))

        def _send(self, status: int, body: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Type": "application/json"}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *arguments: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), RuntimeApi)
    server.daemon_threads = True
    server.block_on_close = False
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    variables = {
        "AWS_LAMBDA_RUNTIME_API": f"127.0.0.1:{server.server_address[1]}",
        "LAMBDA_TASK_ROOT": str(code),
        "AWS_LAMBDA_FUNCTION_NAME": "embed",
        "AWS_LAMBDA_FUNCTION_MEMORY_SIZE": "1769",
        "AWS_LAMBDA_LOG_GROUP_NAME": "embed",
        "PATH": os.environ.get("PATH", ""),
        "PYTHONDONTWRITEBYTECODE": "1",
        **environment,
    }
    # S603: AWS' client on the code of the caller
    process = subprocess.Popen(  # noqa: S603
        [python, "-m", "awslambdaric", "e5onnx.aws_lambda.handler"], cwd=code, env=variables
    )
    try:
        yield LambdaFunction(process, events, replies)
    finally:
        process.kill()
        process.wait()
        server.shutdown()
        server.server_close()


def _deadline() -> dict[str, str]:
    return {
        "Lambda-Runtime-Deadline-Ms": str(int((time.time() + _TIMEOUT) * 1000)),
        "Lambda-Runtime-Invoked-Function-Arn": "arn:aws:lambda:eu-west-1:1:function:embed",
    }
