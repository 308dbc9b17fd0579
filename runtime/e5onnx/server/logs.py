"""The log: one line on standard error per event, as text or JSON. It never quotes the text of a request.

Both formats state the same facts. A line of text is printable ASCII, whatever a client sent.
"""

from __future__ import annotations

import logging
import re
import sys
from datetime import datetime, timezone
from typing import Any

import orjson

from .options import LogFormat

log = logging.getLogger("e5onnx.server")
_PLAIN = re.compile(r"[A-Za-z0-9_./:+@{}-]+")


def log_to_standard_error(format: LogFormat | None = None) -> None:
    """Write a line for every event of the server, and for errors of uvicorn and asyncio.

    Args:
        format: how to write a line; None writes text on a terminal and JSON elsewhere.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line(format or ("text" if sys.stderr.isatty() else "json")))
    others = (logging.getLogger(name) for name in ("uvicorn.error", "asyncio"))
    for logger, level in ((log, logging.INFO), *((other, logging.ERROR) for other in others)):
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False


def log_failure(error: Exception, identity: str) -> None:
    """Log the type of an error and where it was raised. Its message may quote a text, so it is left out."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    where = f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}" if trace is not None else ""
    log.error({"event": "failure", "id": identity, "error": type(error).__name__, "where": where})


class _Line(logging.Formatter):
    """Formats our records, whose message is a mapping, and those of other libraries."""

    def __init__(self, format: LogFormat) -> None:
        super().__init__()
        self._as_text = format == "text"

    def format(self, record: logging.LogRecord) -> str:
        event = record.msg if isinstance(record.msg, dict) else {"event": "server", "message": record.getMessage()}
        if record.exc_info and record.exc_info[0] is not None:
            event = {**event, "error": record.exc_info[0].__name__}  # without its message, which may quote a text
        moment = datetime.fromtimestamp(record.created, timezone.utc)
        if self._as_text:
            return _text(moment, record.levelname, event)
        time = moment.isoformat(timespec="milliseconds")
        line = {"time": time, "level": record.levelname.lower(), **event}
        return orjson.dumps(line, default=str).decode()


def _text(moment: datetime, level: str, event: dict[str, Any]) -> str:
    """Return a line for people: a URL first, if there is one, for a click; then local time, level and facts."""
    facts = dict(event)
    name, url = facts.pop("event"), facts.pop("url", None)
    words = [] if url is None else [url]
    words += [moment.astimezone().isoformat(sep=" ", timespec="milliseconds"), level.lower(), name]
    words += [f"{key}={_value(value)}" for key, value in facts.items()]
    return " ".join(words)


def _value(value: object) -> str:
    """Return a value as it is, or quoted and escaped if it might be misread or control a terminal."""
    text = str(value)
    return text if _PLAIN.fullmatch(text) else ascii(text)
