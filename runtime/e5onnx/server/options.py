"""The server's options and the one home of their defaults. `cli.py` makes the options of the command from them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..openai_api import Limits
from ..tokenizer import Role

LogFormat = Literal["text", "json"]


@dataclass(frozen=True)
class ServerOptions:
    """What the operator decides. Sizes are in bytes, times in seconds."""

    host: str = "127.0.0.1"
    port: int = 8080
    default_role: Role = "document"
    served_model_name: Sequence[str] = ()
    api_keys: Sequence[str] = ()
    allowed_hosts: Sequence[str] = ()
    max_texts: int = Limits.texts
    max_characters: int = Limits.characters
    max_body: int = 8 * 2**20
    max_waiting_tokens: int = 65_536
    max_waiting_requests: int = 512
    request_timeout: float = 60.0
    body_timeout: float = 15.0
    drain_seconds: float = 2.0
    log_format: LogFormat | None = None
    """None: text on a terminal, JSON elsewhere."""

    @property
    def limits(self) -> Limits:
        """The limits of one request."""
        return Limits(texts=self.max_texts, characters=self.max_characters)
