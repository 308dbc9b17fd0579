"""The log's lines."""

from __future__ import annotations

import json
import logging
import sys
from datetime import datetime

import pytest

from e5onnx.server.logs import _Line


def test_a_line_names_an_error_and_quotes_nothing_of_it() -> None:
    try:
        raise ValueError("a secret text")
    except ValueError:
        logger = logging.getLogger("uvicorn.error")
        record = logger.makeRecord(logger.name, logging.ERROR, __file__, 1, "failed: %s", ("app\n",), sys.exc_info())
    line = json.loads(_Line().format(record))
    assert datetime.fromisoformat(line.pop("time")).timestamp() == pytest.approx(record.created, abs=0.002)
    assert line == {"level": "error", "event": "server", "message": "failed: app\n", "error": "ValueError"}
