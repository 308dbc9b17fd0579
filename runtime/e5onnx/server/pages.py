"""The files of the folder `page`: the page to try the model, and the OpenAPI document with the page that shows it."""

from __future__ import annotations

import json
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from .. import __version__

PAGES = {
    "/": ("index.html", "text/html"),
    "/docs": ("docs.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/docs.js": ("docs.js", "text/javascript"),
}
"""Path -> file and its media type."""
_FOLDER = Path(__file__).with_name("page")
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
}


def page(path: str) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """Return an endpoint that sends a file."""
    name, media_type = PAGES[path]
    content = (_FOLDER / name).read_bytes()

    async def send(request: Request) -> Response:
        return Response(content, headers=_HEADERS, media_type=media_type)

    return send


def openapi(*, secured: bool) -> dict[str, Any]:
    """Return the OpenAPI document of this version; `secured` says whether requests need an API key."""
    document: dict[str, Any] = json.loads((_FOLDER / "openapi.json").read_bytes())
    document["info"]["version"] = __version__
    if not secured:
        del document["security"], document["components"]["securitySchemes"]
    return document
