"""The options of `e5onnx serve`, and what they mean. Needs the extra only when it serves."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from pathlib import Path

from ..encoder import Encoder
from ..errors import InputValueError, MissingDependencyError
from ..openai_api import Limits


def add_arguments(serve: argparse.ArgumentParser) -> None:
    """Add the options of the command, save those of the model."""
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    serve.add_argument("--port", type=_port, default=8080, help="0 for any that is free (default: %(default)s)")
    serve.add_argument(
        "--default-role",
        choices=["query", "document", "raw"],
        default="document",
        help="which prompt texts get whose request does not say (default: document)",
    )
    serve.add_argument(
        "--api-key-file", metavar="FILE", type=Path, help="keys, one a line (or: E5ONNX_API_KEY); default: none needed"
    )
    serve.add_argument(
        "--allowed-hosts",
        type=_hosts,
        default=(),
        metavar="HOSTS",
        help="names that requests may be sent to, with commas between them; *.example.org and * are possible "
        "(default: on a loopback address its own names only, on any other address every name)",
    )
    serve.add_argument(
        "--max-texts", type=_count, default=2048, metavar="N", help="of a request (default: %(default)s)"
    )
    serve.add_argument(
        "--max-characters", type=_count, default=1_000_000, metavar="N", help="of a text (default: %(default)s)"
    )
    serve.add_argument("--max-body", type=_count, default=8 * 2**20, metavar="BYTES", help="default: %(default)s")
    serve.add_argument(
        "--max-waiting-tokens", type=_count, default=65_536, metavar="N", help="beyond it: 429 (default: %(default)s)"
    )
    serve.add_argument(
        "--max-waiting-requests", type=_count, default=512, metavar="N", help="beyond it: 429 (default: %(default)s)"
    )
    serve.add_argument(
        "--request-timeout", type=_seconds, default=60.0, metavar="S", help="seconds until 503 (default: %(default)s)"
    )
    serve.add_argument(
        "--drain-seconds",
        type=_seconds,
        default=2.0,
        metavar="S",
        help="after SIGTERM, how long requests are still taken while /health is red (default: %(default)s)",
    )


def run(options: argparse.Namespace, load: Callable[[], Encoder]) -> None:
    """Serve the model that `load` returns."""
    try:
        from .app import Settings
        from .run import serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("e5onnx"):
            raise
        raise MissingDependencyError("the command `serve` needs more: pip install 'e5onnx[serve]'") from error
    settings = Settings(
        default_role=options.default_role,
        max_body=options.max_body,
        limits=Limits(texts=options.max_texts, characters=options.max_characters),
        max_waiting_tokens=options.max_waiting_tokens,
        max_waiting_requests=options.max_waiting_requests,
        request_timeout=options.request_timeout,
        api_keys=_api_keys(options.api_key_file),
        allowed_hosts=options.allowed_hosts,
    )
    serve(load(), settings, host=options.host, port=options.port, drain_seconds=options.drain_seconds)


def _api_keys(file: Path | None) -> list[str]:
    """Return the keys of a file, and that of the environment variable E5ONNX_API_KEY; an error if one holds none."""
    given = {"the environment variable E5ONNX_API_KEY": os.environ.get("E5ONNX_API_KEY")}
    if file is not None:
        try:
            given[str(file)] = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputValueError(f"{file} is not UTF-8 text: write the keys into it, one a line") from error
    keys = []
    for source, text in given.items():
        if text is None:
            continue
        lines = [line.strip() for line in text.split("\n") if line.strip()]  # splitlines would divide at others, too
        if not lines:
            raise InputValueError(f"{source} holds no key; write one a line, or leave it out")
        if not all(key.isascii() and key.isprintable() for key in lines):
            raise InputValueError(f"{source} holds a key with other characters than ASCII's, which no header can carry")
        keys += lines
    return keys


def _hosts(text: str) -> tuple[str, ...]:
    """Return names of hosts as in a Host header, without the port."""
    hosts = tuple(host.strip() for host in text.split(",") if host.strip())
    for host in hosts:
        if not re.fullmatch(r"\*|(\*\.)?[A-Za-z0-9._-]+", host):
            raise argparse.ArgumentTypeError(f"holds {host!r}, which is not a name: write it without a port or scheme")
    return hosts


def _count(text: str) -> int:
    """Return a whole number from 1; argparse names the option where it is none."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"must be at least 1, got {text}")
    return number


def _port(text: str) -> int:
    number = int(text)
    if not 0 <= number < 2**16:
        raise argparse.ArgumentTypeError(f"must be 0 to 65535, got {text}")
    return number


def _seconds(text: str) -> float:
    number = float(text)
    if not 0 <= number <= 86_400:  # nor nan
        raise argparse.ArgumentTypeError(f"must be 0 to 86400 seconds, got {text}")
    return number
