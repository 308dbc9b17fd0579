"""The log: one line of JSON on standard error per event. It never quotes the text of a request."""

from __future__ import annotations

import logging
import sys
from datetime import datetime, timezone

import orjson

log = logging.getLogger("e5onnx.server")


def log_to_standard_error() -> None:
    """Write a line for every event of the server, and for errors of uvicorn and asyncio."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line())
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

    def format(self, record: logging.LogRecord) -> str:
        event = record.msg if isinstance(record.msg, dict) else {"event": "server", "message": record.getMessage()}
        if record.exc_info and record.exc_info[0] is not None:
            event = {**event, "error": record.exc_info[0].__name__}  # without its message, which may quote a text
        moment = datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds")
        line = {"time": moment, "level": record.levelname.lower(), **event}
        return orjson.dumps(line, default=str).decode()
