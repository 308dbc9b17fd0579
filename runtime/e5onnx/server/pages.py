"""The files of the folder `page`: the page to try the model, and the OpenAPI document with Redoc, which shows it.

`redoc.standalone.js` is Redoc 2.5.4 as its authors publish it on npm (`npm pack redoc@2.5.4`, file
`bundles/redoc.standalone.js`); a test knows its hash. Redoc 3 is twice as large and reports to a server of its makers.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from .. import __version__
from .options import ServerOptions

PAGES = {
    "/": ("index.html", "text/html"),
    "/docs": ("docs.html", "text/html"),
    "/page.css": ("page.css", "text/css"),
    "/page.js": ("page.js", "text/javascript"),
    "/docs.css": ("docs.css", "text/css"),
    "/docs.js": ("docs.js", "text/javascript"),
    "/redoc.standalone.js": ("redoc.standalone.js", "text/javascript"),
}
"""Path -> file and its media type."""
ADDRESS = f"http://127.0.0.1:{ServerOptions.port}"
"""Where the samples look for the server; `docs.js` puts its real address there."""
_FOLDER = Path(__file__).with_name("page")
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'{more}; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_FOR_REDOC = " 'sha256-47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU='; img-src data:"
"""Allows Redoc's arrows, and the style element that it adds empty and then fills: the hash is that of no bytes."""


def page(path: str) -> Callable[[Request], Coroutine[Any, Any, Response]]:
    """Return an endpoint that sends a file."""
    name, media_type = PAGES[path]
    content = (_FOLDER / name).read_bytes()
    headers = {
        "content-security-policy": _POLICY.format(more=_FOR_REDOC if path == "/docs" else ""),
        "x-content-type-options": "nosniff",
        "referrer-policy": "no-referrer",
    }

    async def send(request: Request) -> Response:
        return Response(content, headers=headers, media_type=media_type)

    return send


def openapi(*, secured: bool) -> dict[str, Any]:
    """Return the OpenAPI document of this version; `secured` says whether requests need an API key."""
    document: dict[str, Any] = json.loads((_FOLDER / "openapi.json").read_bytes())
    document["info"]["version"] = __version__
    if not secured:
        del document["security"], document["components"]["securitySchemes"]
    for path, operations in document["paths"].items():
        for method, operation in operations.items():
            needs_key = secured and operation.get("security") != []
            operation["x-codeSamples"] = list(_samples(path, method, operation, needs_key=needs_key))
    return document


def _samples(path: str, method: str, operation: dict[str, Any], *, needs_key: bool) -> Iterator[dict[str, str]]:
    """Yield code that sends the example of an operation, as Redoc's extension `x-codeSamples`."""
    for parameter in operation.get("parameters", ()):
        path = path.replace(f"{{{parameter['name']}}}", parameter["example"])
    url, key = ADDRESS + path, {"Authorization": "Bearer YOUR_API_KEY"} if needs_key else {}
    body = operation["requestBody"]["content"]["application/json"]["example"] if method == "post" else None
    headers = key | ({"Content-Type": "application/json"} if body else {})
    is_json = "application/json" in operation["responses"]["200"].get("content", {"application/json": ...})

    options = [f"-H {shlex.quote(f'{name}: {value}')}" for name, value in headers.items()]
    options += [f"-d {shlex.quote(json.dumps(body))}"] if body else []
    yield {"lang": "Shell", "label": "curl", "source": " \\\n  ".join([f"curl --fail-with-body {url}", *options])}

    arguments = [f'"{url}"']
    arguments += [f"headers={json.dumps(key)}"] if key else []
    arguments += [f"json={_one_key_a_line(body)}"] if body else []
    call = arguments[0] if len(arguments) == 1 else "".join(f"\n    {each}," for each in arguments) + "\n"
    yield {
        "lang": "Python",
        "source": f"import requests\n\nreply = requests.{method}({call})\nreply.raise_for_status()\n"
        f"print({'reply.json()' if is_json else 'reply.text'})",
    }

    settings = [f'method: "{method.upper()}"'] if body else []
    settings += [f"headers: {json.dumps(headers)}"] if headers else []
    settings += [f"body: JSON.stringify({_one_key_a_line(body)})"] if body else []
    second = ", {\n    " + ",\n    ".join(settings) + ",\n}" if settings else ""
    yield {
        "lang": "JavaScript",
        "source": f'const reply = await fetch("{url}"{second});\n'
        f"if (!reply.ok) throw new Error(await reply.text());\n"
        f"console.log(await reply.{'json' if is_json else 'text'}());",
    }


def _one_key_a_line(body: dict[str, Any]) -> str:
    """Return an object for JavaScript, and for Python unless it holds true, false or null."""
    lines = [f"        {json.dumps(key)}: {json.dumps(value)},\n" for key, value in body.items()]
    return "{\n" + "".join(lines) + "    }"
