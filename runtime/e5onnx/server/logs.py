"""The log: a line of JSON on standard error for every event."""

from __future__ import annotations

import logging
import sys
from datetime import datetime, timezone

import orjson

from .middleware import log


def log_to_standard_error() -> None:
    """Write a line for every event. Of what uvicorn and asyncio say, only errors are events."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line())
    others = (logging.getLogger(name) for name in ("uvicorn.error", "asyncio"))
    for logger, level in ((log, logging.INFO), *((other, logging.ERROR) for other in others)):
        logger.addHandler(handler)
        logger.setLevel(level)
        logger.propagate = False


class _Line(logging.Formatter):
    """Makes lines of records whose message is a mapping, and of any other library's."""

    def format(self, record: logging.LogRecord) -> str:
        event = record.msg if isinstance(record.msg, dict) else {"event": "server", "message": record.getMessage()}
        if record.exc_info and record.exc_info[0] is not None:
            event = {**event, "error": record.exc_info[0].__name__}  # what it says may quote a text
        moment = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname.lower(), **event}
        return orjson.dumps(line, default=str).decode()
