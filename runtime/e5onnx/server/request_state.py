"""What the server notes about a request while it answers it."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.requests import Request


@dataclass
class RequestState:
    """The id of a request, the memory that its body and reply take up, and the work it asked for."""

    id: str
    held_bytes: int = 0
    reply_bytes: int = 0
    texts: int = 0
    tokens: int = 0


def state_of(request: Request) -> RequestState:
    """Return the state of a request."""
    state: RequestState = request.scope["e5onnx"]
    return state
