"""The options of `e5onnx serve`. The extra is needed only once it serves."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, get_args

from ..encoder import Encoder
from ..errors import InputValueError, MissingDependencyError
from ..tokenizer import Role
from .options import LogFormat, ServerOptions


def add_arguments(serve: argparse.ArgumentParser) -> None:
    """Add the options of the command, except those of the model."""
    requests, access, limits = map(serve.add_argument_group, ("requests", "access", "limits"))

    def add(group: argparse._ArgumentGroup, name: str, help: str, **how: Any) -> None:
        flag, default = f"--{name.replace('_', '-')}", getattr(ServerOptions, name)
        group.add_argument(flag, default=default, help=f"{help} (default: %(default)s)", **how)

    add(requests, "default_role", "role of texts whose request does not name one", choices=get_args(Role))
    requests.add_argument(
        "--served-model-name",
        metavar="NAME",
        action="append",
        type=_model_name,
        default=argparse.SUPPRESS,
        help="name of the model in OpenAI's API, for programs with a fixed one, such as text-embedding-3-small; repeat "
        "it for several (default: the checkpoint's name)",
    )
    requests.add_argument(
        "--force-dimensions",
        dest="force",
        help="let requests ask for shorter vectors (`dimensions`), although the model is not known to be trained for "
        "them and the quality may drop",
        action="store_true",
    )
    add(access, "host", "address to listen on")
    add(access, "port", "port to listen on; 0 picks a free one", type=_port, metavar="N")
    access.add_argument(
        "--api-key-file",
        metavar="FILE",
        type=Path,
        help="file of API keys, one per line; E5ONNX_API_KEY adds one (default: no key is needed)",
    )
    access.add_argument(
        "--allowed-hosts",
        metavar="HOSTS",
        type=_hosts,
        default=ServerOptions.allowed_hosts,
        help="host names that the server answers to, separated by commas, such as *.example.org or * "
        "(default: on a loopback address only its own names, on other addresses every name)",
    )
    add(limits, "max_texts", "most texts in a request", type=_count, metavar="N")
    add(limits, "max_characters", "most characters in a text", type=_count, metavar="N")
    add(limits, "max_body", "most bytes in the body of a request", type=_count, metavar="BYTES")
    add(limits, "max_waiting_tokens", "most tokens that wait before new requests get 429", type=_count, metavar="N")
    add(limits, "max_waiting_requests", "most requests that wait before new ones get 429", type=_count, metavar="N")
    add(limits, "request_timeout", "seconds that a request may take before it gets 503", type=_seconds, metavar="S")
    add(
        limits,
        "drain_seconds",
        "seconds after SIGTERM in which the server still takes requests while /health is red",
        type=_seconds,
        metavar="S",
    )
    serve.add_argument(
        "--log-format",
        choices=get_args(LogFormat),
        help="how to write the log on standard error (default: text on a terminal, json elsewhere)",
    )


def run(options: argparse.Namespace, load: Callable[[], Encoder]) -> None:
    """Serve the model that `load` returns."""
    try:
        from .serve import serve
    except ModuleNotFoundError as error:
        if error.name is None or error.name.startswith("e5onnx"):
            raise
        raise MissingDependencyError("the command `serve` needs more: pip install 'e5onnx[serve]'") from error
    given = {field.name: getattr(options, field.name) for field in fields(ServerOptions) if field.name in options}
    server_options = ServerOptions(**given, api_keys=_api_keys(options.api_key_file))
    serve(load(), server_options)


def _api_keys(file: Path | None) -> list[str]:
    """Return the keys of a file and of the environment variable; raise an error if either is set but holds none."""
    given = {"the environment variable E5ONNX_API_KEY": os.environ.get("E5ONNX_API_KEY")}
    if file is not None:
        try:
            given[str(file)] = file.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError as error:
            raise InputValueError(f"{file} is not UTF-8 text: write one key per line") from error
    keys = []
    for source, text in given.items():
        if text is None:
            continue
        lines = [line.strip() for line in text.split("\n") if line.strip()]  # splitlines knows other line ends, too
        if not lines:
            raise InputValueError(f"{source} does not hold a key: write one per line, or leave it out")
        if not all(key.isascii() and key.isprintable() for key in lines):
            raise InputValueError(f"{source} holds a key that is not printable ASCII: a header cannot carry it")
        keys += lines
    return keys


def _hosts(text: str) -> tuple[str, ...]:
    """Return host names as a Host header has them, without the port."""
    hosts = tuple(host.strip() for host in text.split(",") if host.strip())
    for host in hosts:
        if not re.fullmatch(r"\*|(\*\.)?[A-Za-z0-9._-]+", host):
            raise argparse.ArgumentTypeError(f"holds {host!r}, which is not a name: leave out port and scheme")
    return hosts


def _model_name(text: str) -> str:
    if not text.strip() or not text.isprintable():
        raise argparse.ArgumentTypeError(f"must be a name of printable characters, got {text!r}")
    return text


def _count(text: str) -> int:
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
    if not 0 <= number <= 86_400:  # also false for nan
        raise argparse.ArgumentTypeError(f"must be 0 to 86400 seconds, got {text}")
    return number
